"""SIGTERM and SIGUSR1 ask the run to save what it has and leave with exit code 85, to be requeued."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ogpsa.utils.errors import EXIT_REQUEUE

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Interruption:
    """Notes the signals while it is entered; whoever reaches a safe point asks and acts."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interruption":
        self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def safe_point(self) -> None:
        """Leave here if asked to: everything finished so far is on disk.

        Raises:
            SystemExit: with code 85.
        """
        if self.requested:
            raise SystemExit(EXIT_REQUEUE)


@contextmanager
def deaf_children() -> Iterator[None]:
    """Processes started meanwhile do not hear the signals, which a cluster may send to every process of a run.

    One that died of them would be taken for one that failed. They reach this process when the block ends.
    """
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
