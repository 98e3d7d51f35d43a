"""What `nox -s release -- VERSION --check` finds, in a repository made for it."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import pytest
import release_check

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="it needs git")

VERSION = "2.0.0"
STEM = f"django_pg_real_pool-{VERSION}"
WHEEL, SDIST = f"{STEM}-py3-none-any.whl", f"{STEM}.tar.gz"
PYPROJECT = """\
[project]
name = "django-pg-real-pool"
version = "2.0.0"
description = "a pool"
license = "MIT"
requires-python = ">=3.10"
classifiers = ["Typing :: Typed"]
dependencies = ["django>=5.1"]
"""
METADATA = """\
Metadata-Version: 2.4
Name: django-pg-real-pool
Version: 2.0.0
Summary: a pool
License-Expression: MIT
Requires-Python: >=3.10
Classifier: Typing :: Typed
Requires-Dist: django>=5.1
Requires-Dist: sqlalchemy>=2; extra == 'x'
Description-Content-Type: text/markdown

# django-pg-real-pool
"""
CHANGELOG = "# Changelog\n\n## {} - {}\n\n- Something.\n\n## 1.0 - 2020-01-01\n"


class Repository:
    """A tree that can be released, until somebody changes it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("pyproject.toml", PYPROJECT)
        self.write("docs/changelog.md", CHANGELOG.format(VERSION, date.today()))
        self.write("django_pg_real_pool/__init__.py", "code = 1\n")
        self.write(".gitignore", "dist/\n")
        self.git("init", "--quiet")
        self.commit()
        self.git("tag", VERSION)
        self.pack()

    def git(self, *arguments: str) -> None:
        who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *who, *arguments], cwd=self.root, check=True)

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message=x")

    def commit_and_tag(self) -> None:
        self.commit()
        self.git("tag", "--force", VERSION)

    def pack(
        self, metadata: str = METADATA, sdist_metadata: str = "", code: str = "code = 1\n"
    ) -> None:
        dist = self.root / "dist"
        dist.mkdir(exist_ok=True)
        with zipfile.ZipFile(dist / WHEEL, "w") as wheel:
            wheel.writestr("django_pg_real_pool/__init__.py", code)
            wheel.writestr(f"{STEM}.dist-info/METADATA", metadata)
        with tarfile.open(dist / SDIST, "w:gz") as sdist:
            for name, text in [
                ("django_pg_real_pool/__init__.py", code),
                ("PKG-INFO", sdist_metadata or metadata),
            ]:
                member = tarfile.TarInfo(f"{STEM}/{name}")
                member.size = len(text)
                sdist.addfile(member, io.BytesIO(text.encode()))


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


def found(repository: Repository) -> list[str]:
    return list(release_check.problems(repository.root, VERSION))


def test_what_is_right_can_be_released(
    repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    assert release_check.main(VERSION, str(repository.root)) == 0
    assert "2.0.0 can be released" in capsys.readouterr().out


def test_each_problem_is_printed(
    repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    repository.write("new.txt", "")
    assert release_check.main(VERSION, str(repository.root)) == 1
    assert capsys.readouterr().out == (
        "- the tree is not as committed: new.txt\n2.0.0 can't be released: 1 problem(s).\n"
    )


def _changelog(text: str) -> Callable[[Repository], None]:
    def change(repository: Repository) -> None:
        repository.write("docs/changelog.md", text)
        repository.commit_and_tag()

    return change


def _version(repository: Repository) -> None:
    repository.write("pyproject.toml", PYPROJECT.replace("2.0.0", "2.0.1"))
    repository.commit_and_tag()


def _later_commit(repository: Repository) -> None:
    repository.git("commit", "--quiet", "--allow-empty", "--message=x")


def _new_module(repository: Repository) -> None:
    repository.write("django_pg_real_pool/more.py", "")
    repository.commit_and_tag()


def _stray_file(repository: Repository) -> None:
    repository.write("dist/old.whl", "")


TOMORROW = date.today() + timedelta(days=1)
#: What is changed, and what is found then.
MISTAKES: dict[str, tuple[Callable[[Repository], None], list[str]]] = {
    "no tag": (
        lambda repository: repository.git("tag", "--delete", VERSION),
        ["there is no tag 2.0.0: git tag 2.0.0"],
    ),
    "tag elsewhere": (_later_commit, ["the tag 2.0.0 is not on this commit"]),
    "version": (
        _version,
        [
            "pyproject.toml says 2.0.1, not 2.0.0",
            "the wheel's metadata say Version: 2.0.0, not 2.0.1",
        ],
    ),
    "unreleased": (
        _changelog("## Unreleased\n\n- Something.\n"),
        ["the changelog begins with 'Unreleased', not with '2.0.0 - YYYY-MM-DD'"],
    ),
    "no changelog": (
        _changelog(""),
        ["the changelog begins with '', not with '2.0.0 - YYYY-MM-DD'"],
    ),
    "no date": (
        _changelog(CHANGELOG.format(VERSION, "2026-13-01")),
        ["the changelog has 2026-13-01, which is not a date"],
    ),
    "tomorrow": (
        _changelog(CHANGELOG.format(VERSION, TOMORROW)),
        [f"the changelog is dated {TOMORROW}, which has not come yet"],
    ),
    "empty": (
        _changelog("## 2.0.0 - 2020-01-01\n\n## 2.0.0 - 2019-01-01\n"),
        ["the changelog says nothing of 2.0.0", "the changelog has 2.0.0 twice"],
    ),
    "stray file": (
        _stray_file,
        [f"dist has {WHEEL}, {SDIST}, old.whl, not {SDIST} and {WHEEL}"],
    ),
    "other code": (
        lambda repository: repository.pack(code="code = 2\n"),
        [
            f"the {what} has another django_pg_real_pool/__init__.py than the tree"
            for what in ("wheel", "sdist")
        ],
    ),
    "new module": (
        _new_module,
        [f"the {what} lacks django_pg_real_pool/more.py" for what in ("wheel", "sdist")],
    ),
    "other metadata": (
        lambda repository: repository.pack(
            METADATA.replace("Typing", "Other")
            .replace("# django-pg-real-pool", "")
            .replace("Requires-Dist: django>=5.1\n", "")
        ),
        [
            "the wheel's metadata have other classifiers than pyproject.toml",
            "the wheel's metadata need something else than pyproject.toml does",
            "the wheel's metadata do not have the README",
        ],
    ),
    "metadata of the sdist": (
        lambda repository: repository.pack(sdist_metadata="Name: x\n"),
        ["the sdist's metadata are not the wheel's"],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(repository: Repository, mistake: str) -> None:
    make, problems = MISTAKES[mistake]
    make(repository)
    assert found(repository) == problems


def test_a_file_that_git_has_not_is_found(repository: Repository) -> None:
    repository.git("rm", "--quiet", "--cached", "django_pg_real_pool/__init__.py")
    repository.write(".gitignore", "dist/\ndjango_pg_real_pool/\n")
    repository.commit_and_tag()
    assert found(repository) == [
        f"the {what} has django_pg_real_pool/__init__.py, which git has not"
        for what in ("wheel", "sdist")
    ]
