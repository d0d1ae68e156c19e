"""What README and docs say can be typed exists; tests/test_wheel.py runs their Python."""

import re
from importlib.util import find_spec

from docs.generate import pages
from ogpsa.app.compose import CONF
from tests.program import options

ROOT = CONF.parent
PAGES = [
    ROOT / "README.md",
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "experiments").rglob("*.md"),
    *ROOT.glob("*/README.md"),
]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_commands_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    pages = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    typed = "\n".join(re.findall(r"`[^`\n]+`|^make .*", pages, flags=re.M))
    assert set(re.findall(r"\bmake ([a-z0-9-]+)\b", typed)) - {"room"} <= targets
    for module in re.findall(r"python -m ([\w.]+)", pages):
        assert find_spec(module) is not None, module


def test_the_readme_is_short_and_names_every_option() -> None:
    assert len(README.splitlines()) <= 150
    for group in ("method", "stage", "model", "data", "eval", "reward", "distributed", "tracker"):
        [row] = re.findall(rf"^\| `{group}` \| (.*) \|$", README, flags=re.M)
        named = set(re.findall(r"`([a-z0-9_]+)`", row))
        assert set(options(group).split(", ")) <= named, group
    [row] = re.findall(r"^\| judges \| (.*) \|$", README, flags=re.M)
    judges = {file.stem for file in (ROOT / "eval" / "judging" / "judges").glob("[!_]*.py")}
    assert set(re.findall(r"`(\w+)`", row)) == judges


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page}: {link}"


def test_the_pages_made_from_the_code_are_up_to_date() -> None:
    """Every key of every YAML with its comment, type and default; every command with its help."""
    for file, text in pages():
        assert file.read_text(encoding="utf-8") == text, f"{file.name}: make docs"


def test_every_key_has_a_type_and_a_meaning() -> None:
    found = re.findall(r"^\| `([^`]+)` \| (.*?) \| .*? \| (.*) \|$", (DOCS / "keys.md").read_text(), flags=re.M)
    assert len(found) > 500
    assert [key for key, kind, _ in found if not kind or "value" in kind.split()] == []
    assert [key for key, _, meaning in found if not meaning] == []


def test_the_situations_of_robustness_have_their_tests() -> None:
    rows = [
        line
        for line in (ROOT / "docs" / "robustness.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and not line.startswith(("| situation", "| ---"))
    ]
    assert rows
    for row in rows:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", row)
        assert named, row
        for file, test in named:
            assert f"def {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), f"{file}::{test}"
