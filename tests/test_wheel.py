"""The installed wheel works alone: outside the repository, without its folders on the path."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from ogpsa.data.builders.settings import recipe
from ogpsa.utils.files import read_jsonl
from tests.program import ROOT

pytestmark = pytest.mark.slow

EXAMPLES = [
    example
    for page in (ROOT / "README.md", ROOT / "docs" / "library.md")
    for example in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S)
]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the wheel is installed, by itself."""
    work = tmp_path_factory.mktemp("wheel")
    # A copy, since a build leaves its files beside the sources.
    shutil.copytree(ROOT / "ogpsa", work / "source" / "ogpsa", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, work / "source")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    alone = ["--no-deps", "--no-index"]
    wheels = ["--no-build-isolation", "--wheel-dir", str(work)]
    subprocess.run([*pip, "wheel", *alone, *wheels, str(work / "source")], check=True)
    [wheel] = work.glob("*.whl")
    subprocess.run([*pip, "install", *alone, "--target", str(work / "installed"), str(wheel)], check=True)
    shutil.rmtree(work / "source")
    return work / "installed"


def python(installed: Path, *arguments: str, cwd: Path) -> str:
    """Run Python with the wheel and the packages that it needs, and return what it prints."""
    # With -S no .pth file is read, so that the editable installation is out of reach.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(installed), sysconfig.get_path("purelib")])}
    done = subprocess.run(
        [sys.executable, "-S", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.smoke
def test_nothing_is_read_from_the_repository(installed: Path, tmp_path: Path) -> None:
    code = "import ogpsa, importlib.util as u; print(ogpsa.__file__, u.find_spec('eval'), u.find_spec('slurm'))"
    assert python(installed, "-c", code, cwd=tmp_path).split() == [str(installed / "ogpsa/__init__.py"), "None", "None"]
    assert (installed / "ogpsa" / "py.typed").is_file()


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_of_readme_and_docs_run(number: int, installed: Path, tmp_path: Path) -> None:
    python(installed, "-c", EXAMPLES[number], cwd=tmp_path)


def test_a_builder_explains_its_keys_and_builds(installed: Path, tmp_path: Path) -> None:
    build = ("-m", "ogpsa.data", "build", "mmlu")
    assert "python -m ogpsa.data build NAME" in python(installed, "-m", "ogpsa.data", "--help", cwd=tmp_path)
    assert python(installed, *build, "--help", cwd=tmp_path) == recipe("mmlu")
    rows = [
        {"question": f"Which number follows {n}?", "choices": [str(n + k) for k in (3, 1, 2, 5)], "answer": 1}
        for n in range(4)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    python(installed, *build, "source.path=rows.jsonl", "parts.reference=3", "output=built", cwd=tmp_path)
    assert len(read_jsonl(tmp_path / "built" / "reference.jsonl")) == 3
