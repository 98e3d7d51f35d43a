"""Says what keeps a version from being released: `release_check.py VERSION [ROOT]`.

`nox -s release -- VERSION --check` builds what is to be released, and runs this.  Nothing
is published, and nothing is changed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from datetime import date
from email.message import Message
from email.parser import BytesParser
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which pytest brings along there

PACKAGE = "django_pg_real_pool"


def problems(root: Path, version: str) -> Iterator[str]:
    """Yield what is wrong with the tree, its tag, its changelog, and what is in `dist`."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    yield from _of_the_tree(root, version)
    if project["version"] != version:
        yield f"pyproject.toml says {project['version']}, not {version}"
    yield from _of_the_changelog(
        (root / "docs" / "changelog.md").read_text("utf-8"), version
    )
    yield from _of_the_files(root, version, project)


def git(root: Path, *arguments: str) -> str:
    ran = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
    )
    return ran.stdout


def _of_the_tree(root: Path, version: str) -> Iterator[str]:
    if changed := git(root, "status", "--porcelain").splitlines():
        yield f"the tree is not as committed: {', '.join(line[3:] for line in changed)}"
    tagged = git(root, "tag", "--list", version).strip()
    if not tagged:
        yield f"there is no tag {version}: git tag {version}"
    elif version not in git(root, "tag", "--points-at", "HEAD").split():
        yield f"the tag {version} is not on this commit"


def _of_the_changelog(text: str, version: str) -> Iterator[str]:
    heading, *rest = re.findall(r"^## (.+)$", text, re.MULTILINE) or [""]
    match = re.fullmatch(rf"{re.escape(version)} - (\d{{4}}-\d\d-\d\d)", heading)
    if match is None:
        yield f"the changelog begins with {heading!r}, not with '{version} - YYYY-MM-DD'"
        return
    try:
        is_later = date.fromisoformat(match[1]) > date.today()
    except ValueError:
        yield f"the changelog has {match[1]}, which is not a date"
    else:
        if is_later:
            yield f"the changelog is dated {match[1]}, which has not come yet"
    section = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    if not re.search(r"^- ", section, re.MULTILINE):
        yield f"the changelog says nothing of {version}"
    if any(other.startswith(f"{version} ") for other in rest):
        yield f"the changelog has {version} twice"


def _of_the_files(root: Path, version: str, project: dict[str, Any]) -> Iterator[str]:
    stem = f"{PACKAGE}-{version}"
    wheel, sdist = f"{stem}-py3-none-any.whl", f"{stem}.tar.gz"
    found = {path.name for path in (root / "dist").glob("*")}
    if found != {wheel, sdist}:
        yield f"dist has {', '.join(sorted(found)) or 'nothing'}, not {sdist} and {wheel}"
        return
    with zipfile.ZipFile(root / "dist" / wheel) as archive:
        packed = {name: archive.read(name) for name in archive.namelist()}
    metadata = packed.get(f"{stem}.dist-info/METADATA", b"")
    yield from _of_the_metadata("the wheel's metadata {}", metadata, project)
    yield from _of_the_package("the wheel", root, packed)
    with tarfile.open(root / "dist" / sdist) as archive:
        packed = {
            member.name.partition("/")[2]: archive.extractfile(member).read()  # type: ignore[union-attr]
            for member in archive.getmembers()
            if member.isfile()
        }
    if packed.get("PKG-INFO") != metadata:
        yield "the sdist's metadata are not the wheel's"
    yield from _of_the_package("the sdist", root, packed)


def _of_the_metadata(text: str, metadata: bytes, project: dict[str, Any]) -> Iterator[str]:
    read: Message = BytesParser().parsebytes(metadata)
    expected = {
        "Name": project["name"],
        "Version": project["version"],
        "Summary": project["description"],
        "License-Expression": project["license"],
        "Requires-Python": project["requires-python"],
        "Description-Content-Type": "text/markdown",
    }
    for key, value in expected.items():
        if read[key] != value:
            yield text.format(f"say {key}: {read[key]}, not {value}")
    if (read.get_all("Classifier") or []) != project["classifiers"]:
        yield text.format("have other classifiers than pyproject.toml")
    needed = [
        each for each in read.get_all("Requires-Dist") or [] if "extra ==" not in each
    ]
    if len(needed) != len(project["dependencies"]):
        yield text.format("need something else than pyproject.toml does")
    if f"# {project['name']}" not in str(read.get_payload()):
        yield text.format("do not have the README")


def _of_the_package(what: str, root: Path, packed: dict[str, bytes]) -> Iterator[str]:
    """Yield where an archive's package is not, byte for byte, the one in the tree."""
    tracked = git(root, "ls-files", PACKAGE).split()
    inside = {name for name in packed if name.startswith(f"{PACKAGE}/")}
    if lacks := sorted({*tracked} - inside):
        yield f"{what} lacks {', '.join(lacks)}"
    if has := sorted(inside - {*tracked}):
        yield f"{what} has {', '.join(has)}, which git has not"
    for name in sorted(inside & {*tracked}):
        if packed[name] != (root / name).read_bytes():
            yield f"{what} has another {name} than the tree"


def main(version: str, root: str = ".") -> int:
    found = list(problems(Path(root), version))
    for problem in found:
        print(f"- {problem}")
    print(
        f"{version} can't be released: {len(found)} problem(s)."
        if found
        else f"{version} can be released: tree, tag, changelog, wheel, sdist and metadata "
        "are as they should be. Nothing was published."
    )
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
