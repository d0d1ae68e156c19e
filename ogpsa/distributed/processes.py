"""The processes of one run: who they are, and how they stay together.

``torchrun`` starts them and sets their ranks in the environment. The main process alone owns the run
directory, prints, evaluates and opens the tracker; the others wait for it, for days if need be. Training's
own communication is accelerate's business. For one process every function here does nothing.
"""

import os
import signal
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ogpsa.utils.errors import EXIT_FAILURE, EXIT_USER_ERROR, UserError
from ogpsa.utils.system_errors import refusal

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")
# An evaluation may last longer than any timeout that is sensible in training.
PATIENCE = timedelta(days=30)
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def world_size() -> int:
    """Number of processes of this run, as torchrun says."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def launched() -> bool:
    """Whether torchrun started this run, be it one process."""
    return bool(os.environ.get("WORLD_SIZE")) and all(name in os.environ for name in LAUNCHER_VARIABLES)


def rank() -> int:
    return int(os.environ.get("RANK") or 0)


def is_main() -> bool:
    return rank() == 0


def broadcast(value: T) -> T:
    """The main process's ``value`` (it must pickle), on every process."""
    if world_size() == 1:
        return value
    import torch.distributed

    parcel = [value]
    torch.distributed.broadcast_object_list(parcel, src=0, group=_control())
    return parcel[0]


def on_main_process(work: Callable[[], T]) -> T:
    """Let the main process work while the others wait, and give all of them its result, or its failure.

    Raises:
        UserError: the main process's, on itself, so that it is printed once; the others leave with code 2.
        SystemExit: the main process's, on every process.
        Exception: any other of the main process, on itself; the others leave with code 1.
    """
    if world_size() == 1:
        return work()
    result: Any = None
    end: BaseException | None = None
    if is_main():
        try:
            result = work()
        except (UserError, SystemExit) as error:
            end = error
        except BaseException as error:
            end = refusal(error)
            if end is None:
                broadcast((None, SystemExit(EXIT_FAILURE)))
                raise
    result, end = broadcast((result, end))
    if isinstance(end, UserError) and not is_main():
        raise SystemExit(EXIT_USER_ERROR)
    if end is not None:
        raise end
    return cast(T, result)


def on_all_processes(work: Callable[[], T]) -> T:
    """Do the same work on every process; a user's mistake on any of them ends all of them.

    ``work`` must not communicate: a process that fails in it would leave the others waiting.

    Raises:
        UserError: all problems, on the main process.
        SystemExit: code 2, on the others.
    """
    if world_size() == 1:
        return work()
    result: Any = None
    problems: tuple[str, ...] = ()
    try:
        result = work()
    except UserError as error:
        problems = error.problems
    gathered = gather(problems)
    if any(gathered):
        raise UserError(*dict.fromkeys(chain(*gathered))) if is_main() else SystemExit(EXIT_USER_ERROR)
    return cast(T, result)


def gather(value: T) -> list[T]:
    """Every process's ``value`` (it must pickle), by rank, on every process."""
    if world_size() == 1:
        return [value]
    import torch.distributed

    gathered: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(gathered, value, group=_control())
    return gathered


def any_process(flag: bool) -> bool:
    """Whether ``flag`` holds on any process: one small message a call, outside the device's own traffic."""
    if world_size() == 1:
        return flag
    import torch
    import torch.distributed

    raised = torch.tensor(int(flag))
    torch.distributed.all_reduce(raised, torch.distributed.ReduceOp.MAX, group=_control())
    return bool(raised)


def barrier() -> None:
    """Return once every process has called it."""
    any_process(False)


def shut_down() -> None:
    """Call last, so that this process ends with its own exit code.

    Once one process has failed, torchrun sends SIGTERM to those that are still exiting. The group is
    closed first: a process that ends with it open may be aborted by what the others leave behind.
    """
    if world_size() == 1:
        return
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if _control.cache_info().currsize:
        import torch.distributed

        torch.distributed.destroy_process_group()


@cache
def _control() -> "ProcessGroup":
    """The group for these functions' own messages: gloo, which can wait and needs no device."""
    absent = [name for name in LAUNCHER_VARIABLES if name not in os.environ]
    if absent:
        raise UserError(
            f"WORLD_SIZE: is {world_size()}, but {absent[0]} is not set; start several processes by torchrun"
        )
    import torch
    import torch.distributed

    if not torch.distributed.is_initialized():
        if torch.cuda.is_available():
            number, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
            if number == gpus:
                count = os.environ.get("LOCAL_WORLD_SIZE", "several")
                raise UserError(f"torchrun: {count} processes on a node that shows {gpus} GPUs; start one for each GPU")
            if number > gpus:
                raise SystemExit(EXIT_USER_ERROR)
            torch.cuda.set_device(number)
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return cast("ProcessGroup", torch.distributed.new_group(backend="gloo", timeout=PATIENCE))
