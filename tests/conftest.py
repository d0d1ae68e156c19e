"""A world and a base so small that a whole run takes seconds; the base is trained once per session."""

import os
from collections.abc import Callable
from functools import cache

import pytest

from ogpsa.app.compose import compose_config
from ogpsa.config import Config
from ogpsa.utils.libraries import common_kernels

# Before a library reads it, and inherited by every process that a test starts.
os.environ["HF_HUB_OFFLINE"] = "1"
common_kernels()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A long test and a smoke test are slow ones, before pytest selects by marks."""
    for item in items:
        if item.get_closest_marker("long") or item.get_closest_marker("smoke"):
            item.add_marker("slow")


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for a small run with any method and stage; its base is already in ``cache_dir``."""
    from ogpsa.testbed.cache import ensure_base

    overrides = [
        "data.safety_rows=64",
        "data.reference_rows=200",
        "data.evaluation_rows=8",
        "model.base.steps=24",
        "model.base.accuracy=0",
        "model.base.hidden_size=32",
        "model.base.layers=2",
        # Rates at which a few steps move the weights.
        "model.recipe.sft.learning_rate=0.0004",
        "model.recipe.sft.adapter_learning_rate=0.002",
        "model.recipe.dpo.learning_rate=5e-05",
        "model.recipe.dpo.adapter_learning_rate=0.0005",
        "tracker=none",
        "eval.limit=4",
        f"cache_dir={tmp_path_factory.mktemp('cache')}",
    ]
    ensure_base(compose_config(overrides))
    return overrides


@pytest.fixture(scope="session")
def small_config(small: list[str]) -> Callable[..., Config]:
    """``small_config(*overrides)``: the validated configuration of a small run, which no test can change."""

    @cache
    def composed(*overrides: str) -> Config:
        return compose_config([*small, *overrides])

    return composed
