"""The libraries' bars, telemetry and advice, kept out of the log, and their threads."""

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR, getLogger
from pathlib import Path


def quiet_libraries() -> None:
    """Call before the heavy imports: some libraries read the environment once."""
    _give_a_home()
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
    # It prints a whole request for each batch with a reward that is missing, which are counted in the log.
    getLogger("trl.trainer.grpo_trainer").setLevel(ERROR)
    # DeepSpeed, where it is installed, says on stdout that it found no GPU, whether or not it is used.
    getLogger("DeepSpeed").addFilter(lambda record: not record.getMessage().startswith("Setting accelerator to CPU"))
    # bitsandbytes, where it is installed, misses a kernel for inference in 4 bits on the CPU, which nothing here runs.
    missed = "Failed to load CPU gemm_4bit_forward"
    getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: not record.getMessage().startswith(missed))


def common_kernels() -> None:
    """Have torch, before its first operation, use the AVX2 kernels that nearly every x86-64 processor has.

    Those for AVX-512 round differently, and a base of the testbed that is trained with them is another model.
    """
    processor = Path("/proc/cpuinfo")
    if processor.is_file() and " avx512f " in processor.read_text(encoding="utf-8"):
        os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread in this block.

    More threads round sums in another order, and slow a model of the testbed's size down where another process is busy.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _give_a_home() -> None:
    """Give libraries a home among the temporary files if the user's own cannot be written, as in containers.

    A hub's cache that can be read stays in use.
    """
    home = Path(os.path.expanduser("~"))  # noqa: PTH111  Path.home() wants an account
    if os.access(home, os.W_OK | os.X_OK):
        return
    place = Path(tempfile.gettempdir()) / f"ogpsa-home-{os.getuid()}"
    place.mkdir(mode=0o700, exist_ok=True)
    if (home / ".cache" / "huggingface").is_dir():
        os.environ.setdefault("HF_HOME", str(home / ".cache" / "huggingface"))
    os.environ["HOME"] = str(place)
    # Asked for where there is no account of the user's number.
    os.environ.setdefault("USER", str(os.getuid()))
