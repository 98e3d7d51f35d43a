from helpers import backend_pid, census
def test_x(alias, wrapper):
    assert backend_pid(alias)
    assert wrapper.connection is None
    assert census(alias).in_use == 0
