"""Testbed bases, trained once and kept under a key of everything that determines them."""

import hashlib
import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ogpsa.config import Config
from ogpsa.utils.files import build_folder, exclusive, hash_files, is_undamaged, mark_complete, read_json

# What of this package decides a base's weights.
DETERMINING = ("base.py", "rows.py", "tokenizer.py", "world.py")
# The base of world 0 by the recipe of conf/model/tiny.yaml, as python -m experiments.bases --ship makes it.
SHIPPED = Path(__file__).with_name("shipped")
RECIPE, WEIGHTS = SHIPPED / "recipe.json", SHIPPED / "base"


def base_key(config: Config) -> str:
    """Hash of what a base rests on: the files that are shipped, or world, recipe, code and libraries."""
    facts: dict[str, Any] = recipe(config)
    if is_shipped(config):
        facts["files"] = {path.name: digest for path, digest in hash_files(sorted(WEIGHTS.iterdir())).items()}
    else:
        code = hashlib.sha256()
        for name in DETERMINING:
            code.update(Path(__file__).with_name(name).read_bytes())
        facts["code"] = code.hexdigest()
        facts["versions"] = {name: version(name).partition("+")[0] for name in ("torch", "transformers", "tokenizers")}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def recipe(config: Config) -> dict[str, Any]:
    """The recipe of a configuration's base: the world's settings and the training's.

    Raises:
        UserError: the configuration names no testbed base.
    """
    data, base = config.testbed_base()
    return {"data": data.model_dump(exclude={"safety_rows"}), "base": base.model_dump()}


def is_shipped(config: Config) -> bool:
    """Whether the base comes with this package, so that every machine starts from the same weights."""
    return bool(recipe(config) == read_json(RECIPE))


def ensure_base(config: Config, safe_point: Callable[[], None] = lambda: None) -> Path:
    """The base's folder, filling the cache first if it lacks it, or waiting for another process that does.

    ``safe_point`` is called while it trains or waits, and may stop it by raising; the next call resumes.

    Raises:
        UserError: the configuration names no testbed base, or its training does not reach the accuracy.
    """
    folder = Path(config.cache_dir) / "bases" / base_key(config)
    if is_undamaged(folder):
        return folder
    with exclusive(folder.with_suffix(".lock"), "another process trains the base", wait=safe_point):
        if not is_undamaged(folder) and is_shipped(config):
            with build_folder(folder) as temporary:
                shutil.copytree(WEIGHTS, temporary, dirs_exist_ok=True)
                mark_complete(temporary, recipe(config))
        elif not is_undamaged(folder):
            train(config, folder, safe_point)
    return folder


def train(config: Config, folder: Path, safe_point: Callable[[], None] = lambda: None) -> None:
    """Train the configuration's base into ``folder``, whether or not one is shipped.

    Raises:
        UserError: as ``ensure_base``.
    """
    from ogpsa.testbed.base import train_base
    from ogpsa.testbed.rows import build_rows
    from ogpsa.testbed.world import World
    from ogpsa.utils.libraries import one_thread

    data, base = config.testbed_base()
    world = World(data.seed)
    rows = build_rows(world, data.seed, data.safety_rows, data.reference_rows, data.evaluation_rows)
    progress = folder.with_suffix(".progress")
    with build_folder(folder) as temporary, one_thread():
        found = train_base(world, rows, base, temporary, progress, safe_point)
        mark_complete(temporary, recipe(config) | {"accuracy": found})
    progress.unlink(missing_ok=True)
