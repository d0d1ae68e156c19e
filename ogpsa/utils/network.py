"""Bounds on what a network may cost."""

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def within(seconds: float, work: Callable[[], T]) -> T:
    """The result of ``work``, which goes on unheeded where it takes longer: looking up a name has no timeout.

    Raises:
        TimeoutError: there is none yet.
        Exception: that of ``work``.
    """
    results: list[T] = []
    errors: list[Exception] = []

    def attempt() -> None:
        try:
            results.append(work())
        except Exception as error:  # noqa: BLE001  raised again where it is waited for
            errors.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return results[0]
