"""What the README says can be typed exists; tests/test_wheel.py runs its Python."""

import re
from importlib.util import find_spec

from ogpsa.app.compose import CONF

ROOT = CONF.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_commands_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    assert set(re.findall(r"\bmake ([a-z0-9-]+)\b", README)) - {"a"} <= targets
    pages = [README, *(page.read_text(encoding="utf-8") for page in ROOT.glob("*/README.md"))]
    for module in re.findall(r"python -m ([\w.]+)", "\n".join(pages)):
        assert find_spec(module) is not None, module


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "experiments").rglob("*.md"), *ROOT.glob("*/README.md")]:
        for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page}: {link}"


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
