"""The notebooks run from their first cell to their last, as a reader would run them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.program import ROOT


@pytest.mark.long
@pytest.mark.parametrize("name", ["projection", "small_suite"])
def test_runs(name: str, tmp_path: Path) -> None:
    """The small suite's with two steps of each row on the testbed's model, in place of real weights."""
    notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    (tmp_path / "cells.py").write_text("\n".join(cells), encoding="utf-8")
    environment = {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT), "OGPSA_SUITE": "check", "OGPSA_OUTPUT": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "cells.py")], cwd=ROOT / "notebooks", env=os.environ | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_what_is_kept_of_a_run_names_no_machine() -> None:
    for file in (ROOT / "notebooks").glob("*.ipynb"):
        text = file.read_text(encoding="utf-8")
        assert "/home/" not in text and "/root/" not in text and "Traceback" not in text
