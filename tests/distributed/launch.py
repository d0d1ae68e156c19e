"""Several processes on this machine, as torchrun starts them."""

import os
import subprocess
import sys
from pathlib import Path

from tests.program import ROOT

PROCESSES = 2


ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    # DeepSpeed builds its communication over shared memory with ninja, which is beside Python.
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "DS_ACCELERATOR": "cpu",
}


def python(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """Start a script or module in one process on the CPU, with pipes for both outputs."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def torchrun(*arguments: str, cwd: Path, processes: int = PROCESSES) -> subprocess.Popen[str]:
    """Start a script in several processes."""
    return python("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *arguments, cwd=cwd)


def exit_codes(stderr: str) -> list[int]:
    """The processes' exit codes, from what torchrun says when one of them is not 0."""
    return [int(line.split()[2]) for line in stderr.splitlines() if line.split()[:2] == ["exitcode", ":"]]
