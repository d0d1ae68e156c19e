"""Temporary files go with their process, and those of a killed one with the next."""

import os
import signal
import subprocess
import sys
from pathlib import Path

HOLD = """
import sys, tempfile
from ogpsa.utils.temporary import own_temporary_folder
own_temporary_folder()
print(tempfile.mkdtemp(), flush=True)
sys.stdin.readline()
"""


def hold(place: Path) -> tuple["subprocess.Popen[str]", Path]:
    """A process that has made a temporary folder of its own, and the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        env=os.environ | {"TMPDIR": str(place)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_processs_temporary_files_go_with_it_or_with_the_next(tmp_path: Path) -> None:
    living, its_folder = hold(tmp_path)
    killed, left = hold(tmp_path)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert left.is_dir()
    following, another = hold(tmp_path)
    assert not left.exists()
    assert its_folder.is_dir()
    assert another.is_dir()
    for process in (living, following):
        process.communicate("\n")
        assert process.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == [f"ogpsa-{os.getuid()}.lock"]
