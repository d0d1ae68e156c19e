"""Words of a command line, as Hydra reads them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from ogpsa.utils.command_line import quoted, run_program
from tests.program import PROGRAM, ROOT


@pytest.mark.parametrize(
    "text", ["", "a b", "a,b", "(x)", "it's", "a\\b", "a\\", "a\\\\", "a\\'b", "\\\\server\\x", "two\nlines", "é=[1]"]
)
def test_a_quoted_text_is_the_value_that_it_was(text: str) -> None:
    assert OverridesParser.create().parse_override(f"key={quoted(text)}").value() == text


@pytest.mark.parametrize("program", ["train.py --help", "train.py preflight=true", "-m slurm.grid seed=range(0,20000)"])
def test_a_reader_that_leaves_ends_a_program_without_a_word(program: str, tmp_path: Path) -> None:
    command = [sys.executable, *program.replace("train.py", str(PROGRAM)).split()]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert started.stdout is not None and started.stderr is not None
    # Before anything is written.
    started.stdout.close()
    assert (started.wait(), started.stderr.read()) == (141, b"")


def test_another_pipe_that_breaks_is_no_reader_that_left() -> None:
    def main() -> int:
        raise BrokenPipeError("of a server")

    with pytest.raises(BrokenPipeError, match="of a server"):
        run_program(main)
