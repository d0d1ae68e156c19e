"""A folder for what libraries put among the system's temporary files, so that a killed process leaves none for long."""

import atexit
import os
import shutil
import tempfile
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from ogpsa.utils.errors import UserError
from ogpsa.utils.files import exclusive

LOCK = ".lock"


@cache
def own_temporary_folder() -> Path:
    """Make a folder that this process and its children use from now on, and remove those of processes that are gone.

    It is removed when the process ends. Call it before libraries that make temporary files when they are imported.
    """
    root = Path(tempfile.gettempdir())
    with exclusive(root / f"ogpsa-{os.getuid()}.lock", "another process starts", wait=lambda: None):
        for left in root.glob(f"ogpsa-{os.getuid()}-*"):
            _remove_unless_in_use(left)
        folder = Path(tempfile.mkdtemp(prefix=f"ogpsa-{os.getuid()}-", dir=root))
        held = ExitStack()
        held.enter_context(exclusive(folder / LOCK, "in use"))
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)

    def remove() -> None:
        held.close()
        shutil.rmtree(folder, ignore_errors=True)

    # Called last: what libraries registered later is called before.
    atexit.register(remove)
    return folder


def _remove_unless_in_use(folder: Path) -> None:
    try:
        with exclusive(folder / LOCK, "in use"):
            shutil.rmtree(folder, ignore_errors=True)
    except UserError:
        return
