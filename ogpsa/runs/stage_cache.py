"""Stages and evaluations that several runs share are made once: SFT→DPO starts from the SFT run's result.

With ``stage_store=DIR`` a run looks each stage up by a key of all that determines its weights, and adds the stages that
it trains. Files are hard links where the file system allows it; of these nothing is ever changed in place: a
``Journal`` that is added to later is copied first.
"""

import inspect
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ogpsa.config import Config, Method, OneStage, StageName, without_inert
from ogpsa.data.rows import COLUMNS, TRAINING_COLUMNS, Data, Row, set_uses
from ogpsa.distributed import processes
from ogpsa.models.files import fingerprint
from ogpsa.runs.inputs import code_outside, digest_of, package_digests
from ogpsa.utils.files import build_folder, exclusive, find_damage, hash_file, is_complete, write_atomically

log = logging.getLogger(__name__)
# In a folder: the key that it was begun under.
KEY_FILE = "stage.key"
# A method's hooks that do not decide what a stage trains, or whose part in it is counted by rows and weights.
NOT_TRAINING = frozenset(
    ("after_stage", "memory", "preflight", "prepared_from", "problems", "projection", "results", "set_uses")
)


@contextmanager
def shared(root: Path, key: str, folder: Path, marker: str, safe_point: Callable[[], None]) -> Iterator[None]:
    """Make ``folder`` by linking what another run made under ``key``, or keep what the block makes.

    The key is noted in the folder before it is made. A folder begun under another key, by other code or on other
    rows, is finished but not kept for other runs. One run at a time makes a key; ``safe_point`` is called while
    another does.

    Args:
        marker: name of the file that says that a folder is whole.
    """
    kept = root / key
    with exclusive(kept.with_name(f"{key}.lock"), "another run makes the same stage", wait=safe_point):
        if kept.is_dir() and (damage := find_damage(kept, contents=True) if is_complete(kept) else None):
            log.warning("%s: %s; removed", kept, damage)
            shutil.rmtree(kept)
        if (kept / marker).is_file() and not (folder / marker).is_file():
            log.info("%s: as another run made it (%s)", folder.name, kept)
            _link(kept, folder)
        elif not folder.exists():
            write_atomically(folder / KEY_FILE, key)
        yield
        if not (kept / marker).is_file() and _begun_under(key, folder):
            try:
                _link(folder, kept)
            except OSError as error:  # the run itself has what it needs
                log.warning("%s: could not be kept in %s for other runs: %s", folder.name, root, error)


def _begun_under(key: str, folder: Path) -> bool:
    noted = folder / KEY_FILE
    return noted.is_file() and noted.read_text(encoding="utf-8") == key


def stage_key(
    config: Config, stage: OneStage, data: Data, start: Path, judges_digests: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Sixteen hexadecimal digits over all that decides the weights of a stage that starts from ``start``.

    Weights and rows count by their content, and a method by what it does in training, not by its name
    (``Method.training_key``): the untuned end of ``merge`` is the baseline's. So do the code of this package and of a
    method outside it, the libraries, the kind of device and the processes.

    Args:
        judges_digests: of the judges that a reward asks, prompts and weights included.
    """
    uses = set_uses(config, stage, len(data.safety))
    sets = [use.name for use in uses if not use.trained_on]
    reward: Any = None
    left_out: tuple[str, ...] = ("code/eval/",)
    if config.reward is not None and stage.name == "grpo":
        # A judge's reward is decided by the evaluation's code and settings as well.
        judges = without_inert(config.eval.judge.model_dump(mode="json"), "eval.judge.")
        reward = [without_inert(config.reward.model_dump(mode="json"), "reward."), judges, dict(judges_digests)]
        left_out = ()
    return digest_of(
        {
            "start": fingerprint(start),
            "model": without_inert(
                config.model.model_dump(mode="json", exclude={"name", "path", "revision", "base", "recipe"}), "model."
            ),
            "seed": config.seed,
            "distributed": config.distributed.model_dump(),
            "stage": without_inert(stage.model_dump(mode="json", exclude={"save_every"}), "stage."),
            "method": without_inert(_method_key(config.method, stage.name), "method."),
            "reward": reward,
            "method_code": [hash_file(file) for file in code_outside(*config.plugins)],
            "rows": _rows_digest(data.training(stage.name), TRAINING_COLUMNS[stage.name]),
            "held_out": {name: _rows_digest(rows, COLUMNS[stage.name]) for name, rows in data.held_out.items()}
            if stage.eval_every is not None
            else {},
            "reference_sets": {name: _rows_digest(data.reference_sets[name], COLUMNS[stage.name]) for name in sets},
            "made_by": _made_by(left_out),
        }
    )


def _method_key(method: Method, stage: StageName) -> dict[str, Any]:
    """``Method.training_key``, with all keys where a class adds to the training of the one that it inherits it from."""
    kinds = type(method).__mro__
    [owner, *_] = [kind for kind in kinds if issubclass(kind, Method) and "training_key" in vars(kind)]
    for kind in kinds[: kinds.index(owner)]:
        own = {name for name, value in vars(kind).items() if inspect.isfunction(value) and not name.startswith("__")}
        if own - NOT_TRAINING or inspect.get_annotations(kind).keys() - owner.model_fields.keys():
            return method.model_dump(mode="json") | method.training_key(stage)
    return method.training_key(stage)


def evaluation_key(config: Config, data: Data, checkpoint: Path) -> str:
    """The same over all that determines a checkpoint's evaluation, except the benchmarks' files, which it checks."""
    return digest_of(
        {
            "checkpoint": fingerprint(checkpoint),
            "eval": config.eval.key(),
            "precision": config.model.precision,
            "rows": digest_of(data.evaluation),
            "made_by": _made_by(),
        }
    )


def _rows_digest(rows: Sequence[Row], columns: Sequence[str]) -> str:
    return digest_of([[row[column] for column in columns] for row in rows])


def _made_by(left_out: tuple[str, ...] = ()) -> dict[str, Any]:
    import torch

    return {
        "code": {name: digest for name, digest in package_digests().items() if not name.startswith(left_out)},
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "processes": processes.world_size(),
    }


def _link(source: Path, target: Path) -> None:
    with build_folder(target) as temporary:
        shutil.copytree(
            source, temporary, ignore=shutil.ignore_patterns(".*", "checkpoints"), copy_function=_link_file,
            dirs_exist_ok=True,
        )  # fmt: skip


def _link_file(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
