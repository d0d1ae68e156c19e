"""The mirror of a run, W&B's or TensorBoard's. The run directory is the truth: nothing is read back from here."""

import hashlib
import logging
import math
import os
import signal
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, Self
from urllib.request import Request, urlopen

from ogpsa.config import HELD_OUT, Config, identity_key
from ogpsa.config import Tracker as TrackerSettings
from ogpsa.runs.event_files import EventFiles
from ogpsa.utils.errors import EXIT_DONE, EXIT_FAILURE, UserError
from ogpsa.utils.network import PROBE_SECONDS, UNREACHABLE, within
from ogpsa.utils.signals import deaf_children

log = logging.getLogger(__name__)
# Seconds that W&B may keep a run waiting at its end for the rest of an upload.
END_SECONDS = 5.0
# As arguments: the seconds, then the command. The watcher ends the whole session.
UPLOAD = 'exec 3<&0; { cat <&3 >/dev/null; sleep "$0"; kill -KILL 0; } & "$@" </dev/null; code=$?; kill $!; exit $code'
LATER = "slurm/sync_wandb.sh uploads it later"
BENCHMARK_COLUMNS = ("group", "value", "stderr", "n", "missing", "low", "high", "metric", "judge")


class Tracker(Protocol):
    """A receiver of a run's numbers while it runs."""

    def log(self, values: Mapping[str, Any]) -> None: ...

    def summarize(self, metrics: Mapping[str, Any]) -> None: ...


def check_tracker(settings: TrackerSettings) -> None:
    """Refuse a mirror that could not be opened.

    Raises:
        UserError: W&B is to be online without a key, or TensorBoard is not installed.
    """
    if settings.name == "tensorboard" and find_spec("tensorboard") is None:
        raise UserError("tracker: tensorboard is not installed; type: make install-tensorboard")
    if settings.name == "wandb" and settings.mode == "online" and not os.environ.get("WANDB_API_KEY"):
        raise UserError("tracker.mode: online needs WANDB_API_KEY in the environment; set it, or use offline or auto")


def tracker(config: Config, directory: Path, provenance: Mapping[str, Any]) -> AbstractContextManager[Tracker]:
    """The configured tracker, closed however the run ends, so that the next one starts its own.

    Where it is unavailable, the run logs one line and continues.
    """
    if config.tracker.name == "none":
        return nullcontext(NoTracker())
    if config.tracker.name == "tensorboard":
        return EventFiles(directory, config.identity())
    try:
        return WandbRun.of_run(config.tracker, config.identity(), directory, provenance, directory, live=True)
    except Exception as error:  # noqa: BLE001  W&B has no one class for it
        log.warning("W&B cannot be used (%s); the run continues without it", reason(error))
        return nullcontext(NoTracker())


class NoTracker:
    """Keeps nothing."""

    def log(self, values: Mapping[str, Any]) -> None:
        pass

    def summarize(self, metrics: Mapping[str, Any]) -> None:
        pass


class WandbRun:
    """One W&B run, written by a run as it trains or from its files later; leaving ``with`` closes it.

    W&B's own client only ever writes to disk here; ``_Upload`` sends that to the server. Without ``WANDB_API_KEY``, or
    where the server does not answer, it is kept offline, to be synced later.

    Args:
        title: what W&B calls it.
        key: its W&B id; a run of the same id is continued.
        folder: what W&B keeps on disk lies below it.
        config: shown as the run's configuration.
        live: a failure of W&B is logged once and raises nothing: a cluster that ends a run may end W&B's own process
            first.
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

        mode: str = settings.mode
        if mode == "auto":
            mode = _chosen_mode()
        self.id = key
        self._live = live
        self._lost = False
        online = mode == "online"
        earlier = any((folder / "wandb").glob(f"*run-*-{key}"))
        self._run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            group=settings.group,
            tags=settings.tags,
            name=title,
            id=key,
            # The upload of a resumed run begins where the server's history ends.
            resume="allow" if live and online and earlier else None,
            # "disabled" is W&B's own way of keeping nothing.
            mode="disabled" if mode == "disabled" else "offline",
            # W&B's own process may have another working directory.
            dir=str(folder.absolute()),
            config=dict(config),
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                save_code=False,
                init_timeout=20,
                # Seconds until a row is on disk: what a kill takes from the file, no later session logs again.
                x_transaction_log_flush_interval=1.0,
            ),
        )
        self._upload = _start_upload(Path(self._run.settings.sync_file).parent) if online else None

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

            # A connection to a dead process would break this process's next run, and its exit.
            with suppress(Exception):
                wandb.teardown(exit_code)
        if self._upload is not None and not self._upload.ended(END_SECONDS if self._live else None):
            log.warning("W&B has not taken everything; %s", LATER)

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
        except Exception as error:  # W&B raises no common class
            if not self._live:
                raise
            self._lost = True
            log.warning("W&B is lost (%s); the run continues without it", reason(error))


def _chosen_mode() -> str:
    """W&B's mode by the environment."""
    word = os.environ.get("WANDB_MODE")
    if word in ("online", "offline", "disabled"):
        return word
    return "online" if os.environ.get("WANDB_API_KEY") and not word else "offline"


class _Upload:
    """A process of its own that uploads an offline W&B run while it is written, so that no network delays the run.

    It outlives this process by ``END_SECONDS`` at most, however that ends: its standard input is then closed.
    """

    def __init__(self, run: Path) -> None:
        # Not to W&B's own process of this run, which would fail with the upload.
        environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
        upload = [sys.executable, "-m", "wandb", "beta", "sync", "--live", "--yes", str(run)]
        with (run / "logs" / "upload.log").open("ab") as said, deaf_children():
            self._process = subprocess.Popen(
                ["sh", "-c", UPLOAD, str(END_SECONDS), *upload],
                stdin=subprocess.PIPE, stdout=said, stderr=said, env=environment, start_new_session=True,
            )  # fmt: skip

    def ended(self, seconds: float | None) -> bool:
        """Whether everything is uploaded within ``seconds``; the rest is abandoned."""
        if seconds is not None and self._process.stdin is not None:
            self._process.stdin.close()
        try:
            return self._process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            return False


def _start_upload(run: Path) -> _Upload | None:
    """The upload of a W&B run to a server that answers; None, with a line that says why, where it does not."""
    try:
        ask_server()
        return _Upload(run)
    except UNREACHABLE as error:
        log.warning("W&B cannot be reached (%s); the run is kept offline, %s", reason(error), LATER)
        return None


def ask_server() -> None:
    """Ask W&B's server who we are, for at most ``PROBE_SECONDS``.

    Raises:
        Exception: one of ``UNREACHABLE``: it does not answer, or does not know the key.
    """
    import wandb

    within(PROBE_SECONDS, lambda: _ask(wandb.setup().settings.base_url))


def _ask(server: str) -> None:
    key = os.environ.get("WANDB_API_KEY")
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = "Basic " + b64encode(f"api:{key}".encode()).decode()
    asked = Request(f"{server}/graphql", data=b'{"query": "query { viewer { id } }"}', headers=headers)
    with urlopen(asked, timeout=PROBE_SECONDS):
        pass


def reason(error: Exception) -> str:
    """The error's class and what it says, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200] or 'no reason given'}"


def held_out_losses(metrics: Mapping[str, float]) -> dict[str, float]:
    """The held-out losses among an evaluation's metrics, by set."""
    start, end = f"eval_{HELD_OUT}", "_loss"
    return {
        name.removeprefix(start).removesuffix(end): value
        for name, value in metrics.items()
        if name.startswith(start) and name.endswith(end)
    }


def training_values(stage: str, step: int, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """A training step as a tracker takes it: its finite numbers under the stage's name."""
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
    """A run's name in W&B: model, pipeline, method, rank r and refresh interval K where it has them, seed."""
    parts = [identity[section]["name"] for section in ("model", "stage", "method")]
    for symbol, key in (("r", "rank"), ("K", "refresh_every")):
        value = identity["method"].get(key)
        if isinstance(value, Mapping):
            # sft_dpo: a pipeline's name is its stages'.
            value = "+".join(str(value[stage]) for stage in identity["stage"]["name"].split("_") if stage in value)
        if value is not None:
            parts.append(f"{symbol}{value}")
    return "-".join([*parts, f"seed{identity['seed']}"])


def _shown(value: object) -> object:
    """A value as W&B takes it."""
    import wandb

    if isinstance(value, Path):
        return wandb.Image(str(value))
    if isinstance(value, list):
        return wandb.Table(columns=list(value[0]) if value else [], data=[list(row.values()) for row in value])
    return value
