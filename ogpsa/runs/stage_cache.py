"""Stages that several runs have in common are trained and evaluated once: SFT→DPO goes on from the SFT run's result.

With ``stage_store=DIR`` a run looks a stage up by what decides its weights, and leaves what it made itself. Files are
hard links where the file system allows it; nothing is ever changed in place.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ogpsa.config import Config, StageName
from ogpsa.data.rows import COLUMNS, Data, Row
from ogpsa.distributed import processes
from ogpsa.utils.files import build_folder, exclusive, write_atomically

log = logging.getLogger(__name__)
PACKAGE = Path(__file__).resolve().parents[1]
# In a folder: what it was begun under.
KEY_FILE = "stage.key"


class StageStore:
    """Finished folders by key; ``root`` None keeps and finds nothing."""

    def __init__(self, root: Path | None) -> None:
        self._root = root

    @contextmanager
    def shared(self, key: str, folder: Path, marker: str, wait: Callable[[], None]) -> Iterator[None]:
        """Around the making of ``folder``: what another run made under ``key`` is put there, or what is made is kept.

        The key is noted in the folder before it is made. One that was begun under another key, by other code or on
        other rows, is finished as it was begun, and kept for no one. One run at a time makes a key; ``wait`` is called
        again and again while another does, and may leave by raising.

        Args:
            marker: name of the file that says that a folder is whole.
        """
        if self._root is None:
            yield
            return
        kept = self._root / key
        with exclusive(kept.with_name(f"{key}.lock"), "another run makes the same stage", wait=wait):
            if (kept / marker).is_file() and not (folder / marker).is_file():
                log.info("%s: as another run made it (%s)", folder.name, kept)
                _link(kept, folder)
            elif not folder.exists():
                write_atomically(folder / KEY_FILE, key)
            yield
            if not (kept / marker).is_file() and begun_under(key, folder):
                try:
                    _link(folder, kept)
                except OSError as error:  # the run itself has what it needs
                    log.warning("%s: could not be kept in %s for other runs: %s", folder.name, self._root, error)


def begun_under(key: str, folder: Path) -> bool:
    """Whether ``key`` is what the folder was begun under."""
    noted = folder / KEY_FILE
    return noted.is_file() and noted.read_text(encoding="utf-8") == key


def stage_key(config: Config, data: Data, start: Path, count: int) -> str:
    """Sixteen hexadecimal digits over all that decides the weights after the first ``count`` stages.

    What a method does counts, not its name: the untuned end of ``merge`` is the baseline's, ``rank: null`` the rank
    that it stands for. So do the code of this package, the libraries, the kind of device and the processes.

    Args:
        start: folder of the untuned weights.
        count: stages; 0 for the untuned model, which has no seed.
    """
    facts: dict[str, Any] = {
        "start": _weights(start),
        "model": config.model.model_dump(mode="json", exclude={"name", "path", "revision", "base", "recipe"}),
        "made_by": _made_by(),
    }
    if count:
        stages = [_stage_facts(config, data, stage.name) for stage in config.stages[:count]]
        facts |= {"seed": config.seed, "distributed": config.distributed.model_dump(), "stages": stages}
        # An average after a stage is where the next one starts.
        facts["averages"] = [config.method.merge_weight(last=False)] * (count - 1)
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _weights(folder: Path) -> list[tuple[str, int, int]]:
    """A checkpoint's files with their sizes and times, which change when they do; weights are too large to read."""
    files = sorted(path for path in folder.resolve().iterdir() if path.is_file())
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def _made_by() -> dict[str, Any]:
    import torch

    code = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        code.update(f"{path.relative_to(PACKAGE)}\n".encode() + path.read_bytes())
    return {
        "code": code.hexdigest(),
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft", "accelerate")},
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "processes": processes.world_size(),
    }


def _stage_facts(config: Config, data: Data, name: StageName) -> dict[str, Any]:
    [settings] = [stage for stage in config.stages if stage.name == name]
    projection, adapter = config.method.projection(name), config.method.adapter(name)
    sets = projection.reference_sets if projection else ()
    return {
        "settings": settings.model_dump(mode="json", exclude={"save_every"}),
        "projection": projection and asdict(projection),
        "adapter": adapter and asdict(adapter),
        "anchor": config.method.anchor_strength(name),
        "rows": _fingerprint(data.training(name), name),
        "reference_sets": {kind: _fingerprint(data.reference_sets[kind], name) for kind in sets},
    }


def _fingerprint(rows: Sequence[Row], stage: StageName) -> str:
    texts = [[row[column] for column in COLUMNS[stage]] for row in rows]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


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
