"""Progress of long work: a bar on a terminal, otherwise one plain line per interval, both with the time left."""

import shutil
import sys
import threading
import time
from collections.abc import Iterator
from typing import Self

BAR_WIDTH = 30


class Progress:
    """Says on stderr how far ``label`` is, at most once per interval.

    Args:
        total: units of work.
        label: what is being done.
        start: units done before, by an earlier process.
        interval: seconds between two plain lines; a bar moves more often.
    """

    def __init__(self, total: int, label: str, start: int = 0, interval: float = 10.0) -> None:
        self.total, self.label, self.start = total, label, start
        self._terminal = sys.stderr.isatty()
        self._pause = 0.2 if self._terminal else interval
        self._began = self._shown = time.monotonic()
        self._done = start
        self._stream = sys.stderr
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        """Also say that nothing has moved, once per interval: one piece of work may take longer."""
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _beat(self) -> None:
        while not self._ended.wait(max(self._pause, 1.0)):
            self.show(self._done)

    def show(self, done: int, note: str = "") -> None:
        """Report that ``done`` units are finished, if it is time to."""
        now = time.monotonic()
        self._done = done
        finished = done >= self.total
        if now - self._shown < self._pause and not (self._terminal and finished):
            return
        self._shown = now
        text = f"{self.label}: {done}/{self.total}, {now - self._began:.0f} s, {self.time_left(done)}{note}"
        if self._terminal:
            filled = BAR_WIDTH * done // self.total
            bar = "#" * filled + "." * (BAR_WIDTH - filled)
            # A line that wraps could not be drawn over.
            line = f"[{bar}] {text}"[: shutil.get_terminal_size().columns - 1]
            self._stream.write(f"\r\x1b[K{line}" + ("\n" if finished else ""))
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()

    def time_left(self, done: int) -> str:
        """``about 12 s left``, from the pace so far."""
        if done <= self.start < self.total:
            return "no estimate yet"
        pace = (time.monotonic() - self._began) / max(1, done - self.start)
        return f"about {pace * (self.total - done):.0f} s left"


def track(total: int, label: str) -> Iterator[int]:
    """Yield 0 … ``total - 1`` and show the progress."""
    progress = Progress(total, label)
    for index in range(total):
        yield index
        progress.show(index + 1)
