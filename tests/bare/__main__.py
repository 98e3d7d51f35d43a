"""Makes a bare machine, and runs the README's commands there, word for word.

    python -m bare MACHINE --make
    python -m bare MACHINE [ARGUMENT ...]

The machine is a folder: Debian sid with its Python and git, and nothing else.  `--make`
makes it if it is not there, and prints why it can't be used if it can't.  Without `--make`
an ordinary user gets a clone of this checkout's HEAD there, and follows the README: it
shows what the package is for, and runs the tests.  Given arguments for pytest, only the
latter.

What is started there is in namespaces of its own, which end with it.  It needs Linux, root
and debootstrap.  REAL_POOL_MIRROR names a mirror of Debian, if it is not the usual one.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGES = ("ca-certificates", "git", "python3", "python3-venv")
USER = "dev"
HOME = f"/home/{USER}"
SOURCE = f"{HOME}/django-pg-real-pool"

#: How this machine reaches others, which is how the bare one will: variables, and files.
_VARIABLES = re.compile(r"PIP_(?!FIND_LINKS)\w+|\w*_CA_BUNDLE|SSL_CERT_\w+|(?i:\w+_proxy)")
_FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf")
#: What is handed on besides.
_MORE = ("CI", "PYTEST_ADDOPTS")

#: What runs in the namespaces: it makes the machine's /proc and /dev, and becomes the user.
_ENTER = f"""
set -eu
mount -t proc proc "$0/proc"
mount --rbind /dev "$0/dev"
exec chroot "$0" su {USER} -c "$1"
"""


def make(machine: Path) -> str:
    """Make the machine if it is not there; return why it can't be used, or nothing."""
    if os.geteuid() != 0:
        return "a bare machine can only be made by root"
    for program in ("debootstrap", "unshare", "chroot"):
        if shutil.which(program) is None:
            return f"there is no {program} on this machine"
    if not (CHECKOUT / ".git").exists():
        return "this is no checkout, of which there could be a clone"
    if not machine.exists():
        unfinished = machine.with_name(f"{machine.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        mirror = os.environ.get("REAL_POOL_MIRROR")
        made = _try(
            *("debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"),
            *("sid", str(unfinished), *([mirror] if mirror else [])),
        )
        if made is not None:
            return f"Debian sid can't be had: {made}"
        added = _try("chroot", str(unfinished), "useradd", "--create-home", USER)
        if added is not None:
            return f"the machine has no user: {added}"
        unfinished.rename(machine)
    entered = _try(*_entering(machine, "true"))
    return "" if entered is None else f"this machine may not make namespaces: {entered}"


def follow(machine: Path, arguments: list[str]) -> int:
    """Follow the README on the machine; return the exit code."""
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    environment, shown, tests = commands(readme)
    for file in _FILES:
        _copy(Path(file), machine)
    variables = {
        name: value
        for name, value in os.environ.items()
        if _VARIABLES.fullmatch(name) or name in _MORE
    }
    for value in variables.values():
        _copy(Path(value), machine)
    shutil.rmtree(f"{machine}{SOURCE}", ignore_errors=True)
    clone = ["git", "clone", "--quiet", "--no-hardlinks", str(CHECKOUT)]
    subprocess.run([*clone, f"{machine}{SOURCE}"], check=True)
    subprocess.run(["chroot", str(machine), "chown", "-R", USER, HOME], check=True)
    steps = [environment, "python --version"]
    if arguments:
        steps.append(f"{tests} -- {shlex.join(arguments)}")
    else:
        steps += [shown, tests]
    command = f"cd {SOURCE} && {' && '.join(steps)}"
    print(f"On Debian sid, as {USER}: {command}", flush=True)
    variables |= {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"}
    ran = subprocess.run(_entering(machine, command), env=variables, check=False)
    if "compatibility" in arguments:  # `-p compatibility`: what it has written there
        page = "docs/reference/compatibility.md"
        shutil.copyfile(f"{machine}{SOURCE}/{page}", CHECKOUT / page)
    return ran.returncode


def commands(readme: str) -> tuple[str, str, str]:
    """Return the README's commands: for an environment, to see it, and for the tests."""
    blocks = re.findall(r"^```sh\n(.+?)^```$", readme, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    (environment,) = (line for line in lines if line.startswith("python3 -m venv"))
    (shown,) = (line for line in lines if line.endswith("nox -s demo"))
    (tests,) = (line for line in lines if line.endswith("nox -s tests"))
    return environment.partition("  #")[0], shown, tests


def _entering(machine: Path, command: str) -> list[str]:
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    return [*namespaces, "sh", "-c", _ENTER, str(machine), command]


def _copy(file: Path, machine: Path) -> None:
    """Copy a file of this machine's to the same place on the other."""
    if file.is_absolute() and file.is_file():
        copy = Path(f"{machine}{file}")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.unlink(missing_ok=True)  # it may be a link
        shutil.copyfile(file, copy)
        copy.chmod(0o644)


def _try(*command: str) -> str | None:
    """Run a command; return the last that it says if it fails."""
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False, errors="replace"
    )
    if ran.returncode == 0:
        return None
    said = f"{ran.stdout}\n{ran.stderr}".strip().splitlines() or [f"exit {ran.returncode}"]
    return f"{command[0]}: {said[-1]}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bare", description=__doc__)
    parser.add_argument("machine", type=Path)
    parser.add_argument("--make", action="store_true")
    given, rest = parser.parse_known_args()
    machine = given.machine.absolute()
    if given.make:
        print(make(machine))
    else:
        sys.exit(follow(machine, rest))


if __name__ == "__main__":
    main()
