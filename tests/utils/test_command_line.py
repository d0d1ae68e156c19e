"""Words of a command line, as Hydra reads them."""

import subprocess
import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from ogpsa.utils.command_line import quoted
from tests.program import ROOT


@pytest.mark.parametrize(
    "text", ["", "a b", "a,b", "(x)", "it's", "a\\b", "a\\", "a\\\\", "a\\'b", "\\\\server\\x", "two\nlines", "é=[1]"]
)
def test_a_quoted_text_is_the_value_that_it_was(text: str) -> None:
    assert OverridesParser.create().parse_override(f"key={quoted(text)}").value() == text


@pytest.mark.parametrize("program", ["train.py --help", "-m slurm.grid seed=range(0,20000)"])
def test_a_reader_that_leaves_ends_a_program_without_a_word(program: str) -> None:
    started = subprocess.Popen(
        [sys.executable, *program.split()], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert started.stdout is not None and started.stderr is not None
    # Before anything is written.
    started.stdout.close()
    assert (started.wait(), started.stderr.read()) == (141, b"")
