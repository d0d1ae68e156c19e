"""The W&B mirror of a run. The run directory is the truth: nothing is read back from here."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ogpsa.config import Config, identity_key
from ogpsa.config import Tracker as TrackerSettings
from ogpsa.utils.errors import EXIT_DONE, EXIT_FAILURE, UserError

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)
BENCHMARK_COLUMNS = ("group", "value", "stderr", "n", "missing", "low", "high", "metric", "judge")


class Tracker(Protocol):
    def log(self, values: Mapping[str, Any]) -> None: ...

    def summarize(self, metrics: Mapping[str, Any]) -> None: ...


def check_tracker(settings: TrackerSettings) -> None:
    """Refuse a mirror that could not be opened.

    Raises:
        UserError: W&B is to be online without a key.
    """
    if settings.name == "wandb" and settings.mode == "online" and not os.environ.get("WANDB_API_KEY"):
        raise UserError("tracker.mode: online needs WANDB_API_KEY in the environment; set it, or use offline or auto")


class NoTracker:
    """Keeps nothing."""

    def log(self, values: Mapping[str, Any]) -> None:
        pass

    def summarize(self, metrics: Mapping[str, Any]) -> None:
        pass


class WandbTracker:
    """One W&B run. Without ``WANDB_API_KEY`` it is kept offline in the run directory, to be synced later.

    What W&B cannot take is said once, and costs the run nothing: a cluster that ends a run may end W&B's own process
    before it.
    """

    def __init__(self, config: Config, directory: Path, provenance: Mapping[str, Any]) -> None:
        self._run = open_run(config.tracker, config.identity(), directory, provenance, directory)
        self._lost = False

    def log(self, values: Mapping[str, Any]) -> None:
        self._tell(lambda: self._run.log(dict(values)))

    def summarize(self, metrics: Mapping[str, Any]) -> None:
        """Headline scores to the summary, every benchmark to a table."""
        self._tell(lambda: summarize(self._run, metrics))

    def finish(self, exit_code: int) -> None:
        """Close the run; any code but 0 marks it failed."""
        self._tell(lambda: self._run.finish(exit_code=exit_code))
        if self._lost:
            import wandb

            # Its connection to a dead process would fail the next run of this one, and its exit.
            with suppress(Exception):
                wandb.teardown(exit_code)

    def _tell(self, tell: Callable[[], object]) -> None:
        if self._lost:
            return
        try:
            tell()
        except Exception as error:  # noqa: BLE001  # W&B has no one class for it
            self._lost = True
            log.warning("W&B is lost (%s: %s); the run goes on without it", type(error).__name__, error)


def run_id(key: str, directory: Path) -> str:
    """The W&B id of what is mirrored from ``directory``, the same each time."""
    return f"{key}-{hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:8]}"


def run_title(identity: Mapping[str, Any]) -> str:
    """What a run is called in W&B: model, pipeline, method, of a projection rank r and K, and the seed."""
    parts = [identity[section]["name"] for section in ("model", "stage", "method")]
    for symbol, key in (("r", "rank"), ("K", "refresh_every")):
        if key in identity["method"] and "reference_sets" in identity["method"]:
            value = identity["method"][key]
            shown = value.values() if isinstance(value, Mapping) else [value]
            parts.append(symbol + "+".join("paper" if one is None else str(one) for one in shown))
    return "-".join([*parts, f"seed{identity['seed']}"])


def start(settings: TrackerSettings, name: str, identity: str, folder: Path, config: Mapping[str, Any]) -> "wandb.Run":
    """Start a W&B run called ``name`` with the id ``identity``; what it keeps on disk lies below ``folder``."""
    import wandb

    mode: Any = settings.mode
    if mode == "auto":
        mode = "online" if os.environ.get("WANDB_API_KEY") else "offline"
        mode = os.environ.get("WANDB_MODE") or mode
    return wandb.init(
        project=settings.project,
        entity=settings.entity,
        group=settings.group,
        tags=settings.tags,
        name=name,
        id=identity,
        resume="allow" if mode == "online" else None,
        mode=mode,
        dir=str(folder),
        config=dict(config),
        settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
    )


def open_run(
    settings: TrackerSettings,
    identity: Mapping[str, Any],
    directory: Path,
    provenance: Mapping[str, Any],
    folder: Path,
) -> "wandb.Run":
    """The W&B run of the run in ``directory``; ``identity`` is its configuration without what changes no result."""
    key = run_id(identity_key(identity), directory)
    return start(settings, run_title(identity), key, folder, {**identity, "provenance": dict(provenance)})


def summarize(run: "wandb.Run", metrics: Mapping[str, Any]) -> None:
    """A run's headline scores to the summary, every benchmark to a table."""
    log_scores(run, metrics, {"base": metrics["base"], **metrics["stages"]})


def log_scores(run: "wandb.Run", headline: Mapping[str, Any], checkpoints: Mapping[str, Mapping[str, Any]]) -> None:
    """The averages of ``headline`` to the summary, every benchmark of every checkpoint's scores to a table."""
    import wandb

    columns: list[str | int] = ["checkpoint", "benchmark", *BENCHMARK_COLUMNS]
    rows = [
        # Older runs lack some.
        [name, benchmark, *(entry.get(column) for column in BENCHMARK_COLUMNS)]
        for name, scores in checkpoints.items()
        for benchmark, entry in scores["benchmarks"].items()
    ]
    run.log({"benchmarks": wandb.Table(columns=columns, data=rows)})
    run.summary.update({name: headline[name] for name in ("safety", "utility", "over_refusal")})


@contextmanager
def tracker(config: Config, directory: Path, provenance: Mapping[str, Any]) -> Iterator[Tracker]:
    """The configured tracker, closed however the run ends, so that the next one starts its own."""
    if config.tracker.name == "none":
        yield NoTracker()
        return
    mirror = WandbTracker(config, directory, provenance)
    exit_code = EXIT_FAILURE
    try:
        yield mirror
        exit_code = EXIT_DONE
    finally:
        mirror.finish(exit_code)
