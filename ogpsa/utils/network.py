"""Bounds on what a network may cost."""

import logging
import os
import ssl
import threading
from collections.abc import Callable
from functools import cache
from http.client import HTTPException
from typing import TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

T = TypeVar("T")
# Seconds that a first answer may take.
PROBE_SECONDS = 3.0
# Errors that show a server cannot be used: it does not answer, has no address, or does not speak HTTP.
UNREACHABLE = (OSError, ValueError, HTTPException)
log = logging.getLogger(__name__)


def within(seconds: float, work: Callable[[], T]) -> T:
    """The result of ``work``, which continues in the background if it takes longer: looking up a name has no timeout.

    Raises:
        TimeoutError: ``work`` has not finished.
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


@cache
def ask_hub() -> None:
    """Check once per process whether the model hub answers, and keep its client offline if it does not.

    Its client would retry each file for most of a minute; offline, it takes the file from its cache or fails at once.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return
    try:
        within(PROBE_SECONDS, lambda: _probe(constants.ENDPOINT))
    except UNREACHABLE as error:
        log.warning("%s does not answer (%s); files come from the hub's cache alone", constants.ENDPOINT, error)
        # For the processes that this one starts, and for what is imported already.
        os.environ["HF_HUB_OFFLINE"] = "1"
        constants.HF_HUB_OFFLINE = True
        import datasets

        datasets.config.HF_HUB_OFFLINE = True


def _probe(address: str) -> None:
    """Return once the server says anything at all.

    Raises:
        OSError: it does not.
    """
    try:
        with urlopen(Request(address, method="HEAD"), timeout=PROBE_SECONDS):
            pass
    except HTTPError:
        return
    except URLError as error:
        # Whose certificates count is its client's business.
        if not isinstance(error.reason, ssl.SSLError):
            raise
