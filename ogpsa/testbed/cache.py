"""Testbed bases, trained once and kept under a key of everything that determines them."""

import hashlib
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from ogpsa.config import Config
from ogpsa.utils.files import build_folder, exclusive, find_damage, is_complete, mark_complete

# What of this package decides a base's weights.
DETERMINING = ("base.py", "rows.py", "tokenizer.py", "world.py")


def base_key(config: Config, threads: int | None = None) -> str:
    """Hash of the world, the base's recipe, the code above, the libraries and the threads that compute it.

    ``threads`` None: as many as this process uses.
    """
    import torch

    data, base = config.testbed_base()
    code = hashlib.sha256()
    for name in DETERMINING:
        code.update(Path(__file__).with_name(name).read_bytes())
    facts = {
        "data": data.model_dump(exclude={"safety_rows"}),
        "base": base.model_dump(),
        "code": code.hexdigest(),
        # Sums over more threads round differently.
        "threads": threads or torch.get_num_threads(),
        "versions": {name: version(name).partition("+")[0] for name in ("torch", "transformers", "tokenizers")},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def ensure_base(config: Config, safe_point: Callable[[], None] = lambda: None) -> Path:
    """The base's folder, training it first if the cache lacks it, or waiting for another process that does.

    ``safe_point`` is called while it trains or waits, and may stop it by raising; the next call resumes.

    Raises:
        UserError: the configuration names no testbed base.
    """
    folder = Path(config.cache_dir) / "bases" / base_key(config)
    if _is_whole(folder):
        return folder
    with exclusive(folder.with_suffix(".lock"), "another process trains the base", wait=safe_point):
        if not _is_whole(folder):
            _train(config, folder, safe_point)
    return folder


def _is_whole(folder: Path) -> bool:
    return is_complete(folder) and find_damage(folder, contents=True) is None


def _train(config: Config, folder: Path, safe_point: Callable[[], None]) -> None:
    from ogpsa.testbed.base import train_base
    from ogpsa.testbed.rows import build_rows
    from ogpsa.testbed.world import World

    data, base = config.testbed_base()
    world = World(data.seed)
    rows = build_rows(world, data.seed, data.safety_rows, data.reference_rows, data.evaluation_rows)
    progress = folder.with_suffix(".progress")
    with build_folder(folder) as temporary:
        train_base(world, data.seed, rows, base, temporary, progress, safe_point)
        mark_complete(temporary, {"data_seed": data.seed, "base": base.model_dump()})
    progress.unlink(missing_ok=True)
