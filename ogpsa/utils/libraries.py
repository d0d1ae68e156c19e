"""The libraries' bars, telemetry and advice, kept out of the log."""

import os
import sys
import warnings


def quiet_libraries() -> None:
    """Call before the heavy imports: some libraries read the environment once."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    # W&B's reports on itself, which a process waits for at its exit.
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    if not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"
    # They deprecate names that they use themselves.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(accelerate|torch|transformers|trl)\.")
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
