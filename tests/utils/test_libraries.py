"""The libraries' remarks on themselves stay out of the log."""

import subprocess
import sys

import pytest

from tests.program import ROOT

SAYS = """
import logging
from ogpsa.utils.libraries import quiet_libraries
quiet_libraries()
import bitsandbytes
log = logging.getLogger("bitsandbytes.backends.cpu.ops")
log.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "No module named 'kernels'")
log.warning("another line")
"""


@pytest.mark.long
def test_of_bitsandbytes_lines_only_a_missing_kernel_is_left_out() -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (make install-8bit)")
    # In a new process, into which bitsandbytes is not loaded yet.
    said = subprocess.run([sys.executable, "-c", SAYS], cwd=ROOT, capture_output=True, text=True, check=True).stderr
    assert said == "another line\n"
