"""The W&B mirror of a run. The run directory is the truth: nothing is read back from here."""

import hashlib
import logging
import math
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, Protocol, Self

from ogpsa.config import Config, identity_key
from ogpsa.config import Tracker as TrackerSettings
from ogpsa.utils.errors import EXIT_DONE, EXIT_FAILURE, UserError

log = logging.getLogger(__name__)
BENCHMARK_COLUMNS = ("group", "value", "stderr", "n", "missing", "low", "high", "metric", "judge")


class Tracker(Protocol):
    """Where a run's numbers go while it runs."""

    def log(self, values: Mapping[str, Any]) -> None: ...

    def summarize(self, metrics: Mapping[str, Any]) -> None: ...


def check_tracker(settings: TrackerSettings) -> None:
    """Refuse a mirror that could not be opened.

    Raises:
        UserError: W&B is to be online without a key.
    """
    if settings.name == "wandb" and settings.mode == "online" and not os.environ.get("WANDB_API_KEY"):
        raise UserError("tracker.mode: online needs WANDB_API_KEY in the environment; set it, or use offline or auto")


def tracker(config: Config, directory: Path, provenance: Mapping[str, Any]) -> AbstractContextManager[Tracker]:
    """The configured tracker, closed however the run ends, so that the next one starts its own."""
    if config.tracker.name == "none":
        return nullcontext(NoTracker())
    return WandbRun.of_run(config.tracker, config.identity(), directory, provenance, directory, live=True)


class NoTracker:
    """Keeps nothing."""

    def log(self, values: Mapping[str, Any]) -> None:
        pass

    def summarize(self, metrics: Mapping[str, Any]) -> None:
        pass


class WandbRun:
    """One W&B run, written by a run as it trains or from its files later; leaving ``with`` closes it.

    Without ``WANDB_API_KEY`` it is kept offline, to be synced later.

    Args:
        title: what W&B calls it.
        key: its W&B id; a run of the same id is written further.
        folder: what W&B keeps on disk lies below it.
        config: shown as the run's configuration.
        live: what W&B cannot take is said once, and raises nothing: a cluster that ends a run may end W&B's own
            process before it.
    """

    def __init__(
        self,
        settings: TrackerSettings,
        title: str,
        key: str,
        folder: Path,
        config: Mapping[str, Any],
        live: bool = False,
    ) -> None:
        import wandb

        mode: Any = settings.mode
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        self.id = key
        self._live = live
        self._lost = False
        self._run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            group=settings.group,
            tags=settings.tags,
            name=title,
            id=key,
            resume="allow" if mode == "online" else None,
            mode=mode,
            dir=str(folder),
            config=dict(config),
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )

    @classmethod
    def of_run(
        cls,
        settings: TrackerSettings,
        identity: Mapping[str, Any],
        directory: Path,
        provenance: Mapping[str, Any],
        folder: Path,
        live: bool = False,
    ) -> Self:
        """The W&B run of the run in ``directory``; ``identity`` is its configuration without what changes no result."""
        key = run_id(identity_key(identity), directory)
        return cls(settings, run_title(identity), key, folder, {**identity, "provenance": dict(provenance)}, live)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        exit_code = EXIT_FAILURE if error else EXIT_DONE
        self._tell(lambda: self._run.finish(exit_code=exit_code))
        if self._lost:
            import wandb

            # Its connection to a dead process would fail the next run of this one, and its exit.
            with suppress(Exception):
                wandb.teardown(exit_code)

    def log(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Numbers and texts; a list of rows becomes a table, a path a picture.

        Args:
            step: W&B's own; one that the W&B run already has is ignored. None: the next.
        """
        self._tell(lambda: self._run.log({name: _shown(one) for name, one in values.items()}, step=step, commit=True))

    def summarize(self, metrics: Mapping[str, Any]) -> None:
        """A run's headline scores to the summary, every benchmark to a table."""
        self.log_scores(metrics, {"base": metrics["base"], **metrics["stages"]})

    def log_scores(self, headline: Mapping[str, Any], checkpoints: Mapping[str, Mapping[str, Any]]) -> None:
        """The averages of ``headline`` to the summary, every benchmark of every checkpoint's scores to a table."""
        rows = [
            # Older runs lack some columns.
            {"checkpoint": name, "benchmark": benchmark} | {column: entry.get(column) for column in BENCHMARK_COLUMNS}
            for name, scores in checkpoints.items()
            for benchmark, entry in scores["benchmarks"].items()
        ]
        self.log({"benchmarks": rows})
        averages = {name: headline[name] for name in ("safety", "utility", "over_refusal")}
        self._tell(lambda: self._run.summary.update(averages))

    def _tell(self, tell: Callable[[], object]) -> None:
        if self._lost:
            return
        try:
            tell()
        except Exception as error:  # W&B has no one class for it
            if not self._live:
                raise
            self._lost = True
            log.warning("W&B is lost (%s: %s); the run continues without it", type(error).__name__, error)


def training_values(stage: str, step: int, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """What a tracker is told of a training step: its finite numbers under the stage's name."""
    finite = {
        f"{stage}/{name}": value
        for name, value in numbers.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }
    return {"train/global_step": step, "train/stage": stage, **finite}


def run_id(key: str, directory: Path) -> str:
    """The W&B id of what is mirrored from ``directory``, the same each time."""
    return f"{key}-{hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:8]}"


def run_title(identity: Mapping[str, Any]) -> str:
    """What a run is called in W&B: model, pipeline, method, rank r and refresh interval K where it has them, seed."""
    parts = [identity[section]["name"] for section in ("model", "stage", "method")]
    for symbol, key in (("r", "rank"), ("K", "refresh_every")):
        value = identity["method"].get(key)
        if value is not None:
            parts.append(symbol + "+".join(map(str, value.values() if isinstance(value, Mapping) else [value])))
    return "-".join([*parts, f"seed{identity['seed']}"])


def _shown(value: object) -> object:
    """A value as W&B takes it."""
    import wandb

    if isinstance(value, Path):
        return wandb.Image(str(value))
    if isinstance(value, list):
        return wandb.Table(columns=list(value[0]) if value else [], data=[list(row.values()) for row in value])
    return value
