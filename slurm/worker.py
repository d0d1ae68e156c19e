"""``train.py`` as one process of torchrun: ``python -m slurm.worker SAVED OVERRIDE…``.

torchrun exits with 1 for every failure of its processes. One that saved and left with code 85 therefore creates the
file SAVED, for the task that started torchrun.
"""

import runpy
import sys
from pathlib import Path

from ogpsa.utils.errors import EXIT_REQUEUE

PROGRAM = Path(__file__).resolve().parent.parent / "train.py"


def main(saved: Path, overrides: list[str]) -> None:
    sys.argv = [str(PROGRAM), *overrides]
    try:
        runpy.run_path(str(PROGRAM), run_name="__main__")
    except SystemExit as end:
        if end.code == EXIT_REQUEUE:
            saved.touch()
        raise


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
