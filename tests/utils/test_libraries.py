"""What libraries say of themselves stays out of the log; torch's kernels round alike on all processors."""

import os
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.skipif(
    not Path("/proc/cpuinfo").is_file() or " avx512f " not in Path("/proc/cpuinfo").read_text(encoding="utf-8"),
    reason="this processor has no AVX-512",
)
@pytest.mark.parametrize(("given", "expected"), [(None, "AVX2"), ("default", "DEFAULT")])
def test_kernels_for_avx512_are_left_to_those_who_ask_for_them(given: str | None, expected: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "ATEN_CPU_CAPABILITY"}
    code = (
        "from ogpsa.utils.libraries import common_kernels; common_kernels(); "
        "import torch; print(torch.backends.cpu.get_cpu_capability())"
    )
    asked = {} if given is None else {"ATEN_CPU_CAPABILITY": given}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment | asked, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected
