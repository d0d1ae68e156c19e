"""Isolation of lm-eval and transformers: no output on the screen, no change of the random state."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

from ogpsa.utils.random_state import preserved_random_state


@contextmanager
def isolated_and_silent() -> Iterator[None]:
    """Keep the libraries' warnings and bars to themselves, and give back the random state that the block found."""
    levels = {logger: logger.level for logger in map(logging.getLogger, ("lm_eval", "transformers"))}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        with preserved_random_state(), redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
