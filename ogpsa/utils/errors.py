"""The one exception for a user's mistake, and helpers of its messages."""

import io
import os
import select
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path

EXIT_DONE = 0
EXIT_FAILURE = 1
EXIT_USER_ERROR = 2
EXIT_REQUEUE = 85
# A shell's exit code after SIGINT.
EXIT_INTERRUPTED = 130
# And after SIGPIPE.
EXIT_UNREAD = 141
STDOUT = 1


class UserError(Exception):
    """A mistake the user can mend: printed one line per problem, without a traceback, exit code 2.

    Each line names the key or file, what was found, what is allowed and, where there is one, the
    closest match.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class SettingError(UserError):
    """A mistake in a setting of the library: each line begins with its name, without the section of a YAML."""


@contextmanager
def settings_of(section: str) -> Iterator[None]:
    """Name settings as the user of ``section`` types them: ``samples`` as ``method.samples``.

    Raises:
        UserError: in place of a ``SettingError``.
    """
    try:
        yield
    except SettingError as error:
        raise UserError(*(f"{section}.{problem}" for problem in error.problems)) from None


class Problems:
    """Mistakes of several checks, so that the user sees all of them at once."""

    def __init__(self) -> None:
        self.found: list[str] = []

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Run one check: keep its mistake and go on."""
        try:
            yield
        except UserError as error:
            self.found += error.problems

    def tell(self) -> None:
        """Raise the mistakes that were kept.

        Raises:
            UserError: every problem once.
        """
        if self.found:
            raise UserError(*dict.fromkeys(self.found))


def report(error: UserError) -> int:
    """Print a user's mistake, one line per problem, and return its exit code."""
    with suppress(OSError):  # the full disk may hold the log that stderr is
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr, flush=True)
    try:
        sys.stdout.flush()
    except OSError:
        # What is left in it would be tried again at exit, and change the exit code.
        sys.stdout = io.StringIO()
    return EXIT_USER_ERROR


def interrupted() -> int:
    """Say that Ctrl-C ended the program and return its exit code."""
    print("\ninterrupted; the same command resumes with what is finished", file=sys.stderr, flush=True)
    return EXIT_INTERRUPTED


def unread(error: Exception) -> int | None:
    """Leave standard output if nobody reads it any more, as after ``| head``, and return the exit code for that.

    Returns:
        None: ``error`` is another one, or of another pipe.
    """
    if not isinstance(error, BrokenPipeError):
        return None
    state = select.poll()
    # Asked for nothing, it tells of errors alone: here that the pipe has no reader.
    state.register(STDOUT, 0)
    if not state.poll(0):
        return None
    os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
    return EXIT_UNREAD


def first_line(error: BaseException) -> str:
    """The first line of what an error of somebody else's says, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def first_few(names: Sequence[str], most: int = 8) -> str:
    """The names in one line: those after the first ``most`` as a number."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def closest_match(found: str, allowed: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest allowed word, or an empty string."""
    matches = get_close_matches(found, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean '{matches[0]}'?" if matches else ""


def closest_folder(missing: Path) -> str:
    """The same for a folder that is not there, of those that stand where it should."""
    return closest_match(missing.name, [path.name for path in missing.parent.glob("*") if path.is_dir()])
