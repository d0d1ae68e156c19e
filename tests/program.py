"""``train.py`` as its users start it, in this process or in one of its own."""

import io
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "train.py"


def options(group: str, *own: str) -> str:
    """The options of a group of ``conf`` and a user's own, as an error lists them."""
    return ", ".join(sorted([*own, *(path.stem for path in (ROOT / "conf" / group).glob("[!_]*.yaml"))]))


@dataclass(frozen=True)
class Result:
    """Exit code and what was printed."""

    code: int
    stdout: str
    stderr: str


def run_here(*arguments: str, cwd: Path) -> Result:
    """Run the program in this process, which spares the imports."""
    code: int | str | None = 0
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        chdir(cwd),
        patch.object(sys, "argv", [str(PROGRAM), *arguments]),
        redirect_stdout(stdout),
        redirect_stderr(stderr),
    ):
        try:
            runpy.run_path(str(PROGRAM), run_name="__main__")
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int)
    return Result(code, stdout.getvalue(), stderr.getvalue())


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """Start the program in a process of its own, with pipes for both outputs."""
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: str, cwd: Path) -> Result:
    """Run the program in a process of its own."""
    process = start(*arguments, cwd=cwd)
    stdout, stderr = process.communicate()
    return Result(process.returncode, stdout, stderr)


def contents(folder: Path) -> dict[str, bytes | None]:
    """Everything below ``folder``: files by their bytes, folders as None."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


class KilledError(BaseException):
    """Raised in place of a kill."""


def killed_after(calls: int) -> Callable[[], None]:
    """A safe point that ends the work when it is called once more."""
    left = iter(range(calls))

    def safe_point() -> None:
        if next(left, None) is None:
            raise KilledError

    return safe_point
