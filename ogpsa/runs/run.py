"""A running run: its directory, log, signals and mirror, and what its processes do together.

Every process holds a ``Run``. All of them train; the rest is the main process's work, while the others wait for its
result.
"""

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ogpsa.config import Config, Evaluation, GRPOSettings, Judges, OneStage, Precision, RewardServices, Scorer
from ogpsa.data.rows import Data
from ogpsa.distributed import processes
from ogpsa.models.files import local_folder
from ogpsa.models.tokenizer import rendered_hash
from ogpsa.runs import provenance
from ogpsa.runs.directory import METRICS_FILE, PROVENANCE_FILE, REWARDS, SCORES_FILE, stage_folder
from ogpsa.runs.inputs import check_unchanged, code_digests, model_digests, record_inputs
from ogpsa.runs.score_table import table
from ogpsa.runs.stage_cache import evaluation_key, shared, stage_key
from ogpsa.runs.tracking import NoTracker, Tracker, tracker
from ogpsa.testbed.cache import ensure_base
from ogpsa.utils.errors import UserError
from ogpsa.utils.files import COMPLETE_FILE, is_complete, write_json
from ogpsa.utils.libraries import one_thread, quiet_libraries
from ogpsa.utils.signals import Interruption
from ogpsa.utils.system_errors import naming, refusal
from ogpsa.utils.temporary import own_temporary_folder

T = TypeVar("T")
Scores = dict[str, Any]
# evaluate(checkpoint, rows, output, settings, safe_point, precision) -> scores; ``safe_point`` may stop it.
Evaluate = Callable[[Path, Path, Path, Evaluation, Callable[[], None], Precision], Scores]
log = logging.getLogger(__name__)
file_log = logging.getLogger("ogpsa.file")


@dataclass(eq=False)
class Run:
    """The services of a run to its pipeline; every process calls every method.

    Attributes:
        interruption: whether a signal asked the run to save and stop.
        tracker: the mirror; on other processes than the main one it keeps nothing.
    """

    config: Config
    directory: Path
    data: Data
    _evaluate: Evaluate
    _judges: Judges
    interruption: Interruption
    tracker: Tracker

    @classmethod
    @contextmanager
    def start(
        cls, config: Config, directory: Path, data: Data, evaluate: Evaluate, judges: Judges, overrides: Sequence[str]
    ) -> Iterator["Run"]:
        """Begin, or resume, a run in ``directory``, which this process owns: log, signals, provenance, mirror.

        Raises:
            UserError: the system refuses space or a file.
            SystemExit: code 85, with everything saved, when SIGTERM or SIGUSR1 asked for it.
        """
        own_temporary_folder()
        log_file = directory / "run.log" if processes.is_main() else None
        with Interruption() as interruption, _logging(log_file), ExitStack() as held:
            quiet_libraries()
            if config.model.path is None:
                held.enter_context(one_thread())
            log.info("run directory: %s", directory)
            try:
                facts = processes.on_main_process(
                    lambda: provenance.record(
                        directory / PROVENANCE_FILE, config, data.write(directory / "data"), overrides
                    )
                )
                with tracker(config, directory, facts) if processes.is_main() else nullcontext(NoTracker()) as mirror:
                    yield cls(config, directory, data, evaluate, judges, interruption, mirror)
            except Exception as error:
                refused = None if isinstance(error, UserError) else refusal(error, directory)
                with suppress(OSError):  # its disk may be the full one
                    file_log.exception("failed")
                if refused is not None:
                    raise refused from error
                raise

    def safe_point(self) -> None:
        """As ``Interruption.safe_point``."""
        self.interruption.safe_point()

    def on_main_process(self, work: Callable[[], T]) -> T:
        """Do work on the main process alone; all processes get its result, or its failure."""
        return processes.on_main_process(work)

    def starting_model(self) -> Path:
        """The untuned model's folder: the testbed's base, trained once, or the model that was named.

        Raises:
            UserError: it is another model than the run began with, or cannot be had.
        """
        return self.on_main_process(self._starting_model)

    def _starting_model(self) -> Path:
        if self.config.model.path is None:
            folder = ensure_base(self.config, self.safe_point)
        else:
            folder = local_folder(self.config.model)
        rendered = rendered_hash(folder, self.config.model.template_kwargs)
        digests = model_digests(folder) | {"prompts/rendered": rendered} | self._reward_digests()
        check_unchanged(self.directory, lambda: digests)
        record_inputs(self.directory, digests | code_digests(*self.config.plugins))
        return folder

    def stage_result(self, stage: OneStage, start: Path, train: Callable[[Path], None]) -> Path:
        """The folder of a stage's result: linked from ``stage_store``, or made by ``train(folder)`` on all processes.

        ``train`` leaves a finished folder as it is.
        """
        folder = stage_folder(self.directory, self.config, stage.name)
        with ExitStack() as held:
            if self.config.stage_store is not None:
                key = self.on_main_process(
                    lambda: stage_key(self.config, stage, self.data, start, self._reward_digests())
                )
                made = shared(Path(self.config.stage_store), key, folder, COMPLETE_FILE, self.safe_point)
                self.on_main_process(partial(held.enter_context, made))
            train(folder)
        return folder

    def _reward_digests(self) -> dict[str, str]:
        """What the judges of the reward rest on, by name; empty without the RL stage."""
        if self.config.reward is None or not self.config.rolls_out:
            return {}
        settings = self.config.eval.judge
        return {f"reward/{name}": self._judges.digest(name, settings) for name in sorted(self.config.reward.judges())}

    def check_reward(self) -> None:
        """Refuse a reward that cannot score now, before anything is evaluated for a stage that needs it.

        Raises:
            UserError: a judge's server does not answer, or does not accept the key.
        """
        for stage in self.config.stages:
            folder = stage_folder(self.directory, self.config, stage.name)
            if not is_complete(folder):
                self.scorer(stage, folder / REWARDS, reach=True)

    def scorer(self, stage: OneStage, folder: Path, reach: bool = False) -> Scorer | None:
        """The reward of the stage's completions, with its journals in ``folder``, for the main process to call.

        Args:
            reach: whether the servers of its judges must answer now.
        """
        if not isinstance(stage, GRPOSettings) or self.config.reward is None:
            return None
        services = RewardServices(
            rows=self.data.training(stage.name),
            folder=folder,
            judge=self._judges.scorer,
            judges=self.config.eval.judge,
            reach=reach,
        )
        return self.config.reward.scorer(services)

    def evaluate(self, checkpoint: Path, name: str) -> Scores:
        """A checkpoint's scores, as ``scores.json`` holds them; ``name`` is the folder's in ``eval``."""
        return self.on_main_process(partial(self._evaluate_once, checkpoint, name))

    def _evaluate_once(self, checkpoint: Path, name: str) -> Scores:
        output = self.directory / "eval" / name
        with ExitStack() as held:
            place = self._kept_evaluations(checkpoint)
            if place is not None:
                key = evaluation_key(self.config, self.data, checkpoint)
                held.enter_context(shared(place, key, output, SCORES_FILE, self.safe_point))
            self.safe_point()
            log.info("evaluating %s", name)
            rows = self.directory / "data" / "evaluation"
            return self._evaluate(
                checkpoint, rows, output, self.config.eval, self.safe_point, self.config.model.precision
            )

    def _kept_evaluations(self, checkpoint: Path) -> Path | None:
        if self.config.stage_store is not None:
            return Path(self.config.stage_store)
        # Every run of a world starts from this base.
        cache = Path(self.config.cache_dir)
        return cache / "evaluations" if checkpoint.is_relative_to(cache) else None

    def finish(self, scores: Mapping[str, Scores]) -> dict[str, Any]:
        """Write ``metrics.json`` from the scores by checkpoint, the base's first, and return what it holds."""
        base, *stages = scores
        last = scores[stages[-1]]
        headline = {name: last[name] for name in ("safety", "utility", "over_refusal")}
        # 02-dpo-merged: the number is the folder's.
        by_stage = {name.partition("-")[2]: scores[name] for name in stages}
        metrics = headline | {"stages": by_stage, "base": scores[base]}
        self.tracker.summarize(metrics)
        if processes.is_main():
            write_json(self.directory / METRICS_FILE, metrics)
        file_log.info("\n%s", table(metrics["base"], metrics["stages"]))
        return metrics


class _LogFile(logging.FileHandler):
    """A log handler that ends the run when its disk is full, as any other file does."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            with naming(Path(self.baseFilename)):
                raise error
        super().handleError(record)


@contextmanager
def _logging(file: Path | None) -> Iterator[None]:
    """Send this package's log to stderr and to ``file``, or nowhere; libraries stay at their warnings."""
    package = logging.getLogger("ogpsa")
    handlers: list[logging.Handler] = [logging.NullHandler()]
    if file is not None:
        handlers = [logging.StreamHandler(sys.stderr), _LogFile(file, encoding="utf-8")]
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
        package.addHandler(handler)
    # Shown elsewhere on the screen: the table and the traceback are printed, a bar shows the steps.
    elsewhere = {file_log.name, "ogpsa.steps"} if sys.stderr.isatty() else {file_log.name}
    handlers[0].addFilter(lambda record: record.name not in elsewhere)
    package.setLevel(logging.INFO)
    package.propagate = False
    try:
        yield
    finally:
        for handler in handlers:
            package.removeHandler(handler)
            handler.close()
