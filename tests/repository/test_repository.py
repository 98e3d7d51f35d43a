"""What lies around the code: what runs on a change, and what is asked of people."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from places import CHECKOUT

GITHUB = CHECKOUT / ".github"
FORMS = sorted(GITHUB.glob("ISSUE_TEMPLATE/[0-9]*.yml"))

pytestmark = pytest.mark.skipif(not GITHUB.exists(), reason="it is not in the sdist")


def test_the_workflow_runs_sessions_of_nox_and_nothing_else() -> None:
    workflow = (GITHUB / "workflows" / "ci.yml").read_text(encoding="utf-8")
    commands = re.findall(r"^\s*-? *run: (.+)$", workflow, re.MULTILINE)
    assert commands == [
        "pip install nox",
        'echo "sessions=$(nox -l --json -t ci)" >> "$GITHUB_OUTPUT"',
        "pip install nox",
        'nox --error-on-missing-interpreters -s "$SESSION"',
        'test "$RESULTS" = "success success"',
    ]


def test_the_workflow_has_no_versions_of_its_own() -> None:
    """The matrix is pyproject's; 3.13 is the one that nox itself runs on."""
    workflow = (GITHUB / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert {*re.findall(r"\b3\.\d+\b", workflow)} == {"3.13"}


def test_sessions_are_tagged_for_the_workflow() -> None:
    noxfile = (GITHUB.parent / "noxfile.py").read_text(encoding="utf-8")
    tagged = re.findall(r'tags=\["ci"\]\)\n(?:@.+\n)*def (\w+)', noxfile)
    local = {"demo", "bench", "tests", "property_", "chaos", "django_suite", "release"}
    local |= {"interruptions", "greenlets", "bare"}  # they take long; one needs root
    sessions = re.findall(r"^@nox\.session.*\n(?:@.+\n)*def (\w+)", noxfile, re.MULTILINE)
    assert {*tagged} == {*sessions} - local


@pytest.mark.parametrize("form", FORMS, ids=lambda form: str(form.stem))
def test_an_issue_form_asks_for_pool_status(form: Path) -> None:
    assert 'print(pool_status("default"))' in form.read_text(encoding="utf-8")


def test_links_lead_somewhere() -> None:
    linked = [
        (page, target)
        for page in GITHUB.glob("*.md")
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8"))
    ]
    assert {page.name for page, _ in linked} == {"CONTRIBUTING.md", "SECURITY.md"}
    for page, target in linked:
        assert (page.parent / target).exists(), target
