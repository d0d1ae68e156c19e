"""Isolation of lm-eval and transformers: no output on the screen, no change of the random state."""

import io
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

import numpy as np
import torch


@contextmanager
def isolated_and_silent() -> Iterator[None]:
    """Keep the libraries' warnings and bars to themselves, and give back the random state that the block found."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    levels = {logger: logger.level for logger in map(logging.getLogger, ("lm_eval", "transformers"))}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())), redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
