"""A killed run, started again by the same command, ends as if nothing had happened."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ogpsa.utils.errors import EXIT_REQUEUE
from ogpsa.utils.files import is_complete
from tests.program import Result, run, start

pytestmark = pytest.mark.slow

# No K divides its save_every, so that a resumed stage needs the subspace that its checkpoint holds.
OVERRIDES = [
    "stage=sft_dpo", "method=ogpsa", "method.samples=8", "method.refresh_every={sft: 3, dpo: 2}",
    "stage.sft.epochs=9", "stage.sft.save_every=7", "stage.sft.log_every=1",
    "stage.dpo.epochs=3", "stage.dpo.batch_size=8", "stage.dpo.micro_batch_size=8", "stage.dpo.save_every=5",
    "hydra.run.dir=run",
]  # fmt: skip
RESULTS = ("01-sft/model.safetensors", "02-dpo/model.safetensors", "metrics.json")
Reached = Callable[[], bool]


@pytest.fixture(scope="module")
def unbroken(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that nothing disturbed."""
    place = tmp_path_factory.mktemp("unbroken")
    result = run(*small, *OVERRIDES, cwd=place)
    assert result.code == 0, result.stderr
    return place / "run"


def send(number: signal.Signals, reached: Reached, *arguments: str, cwd: Path, delay: float = 0.0) -> Result:
    """Start the program, send it a signal ``delay`` seconds after the point is reached, and wait for its end."""
    process = start(*arguments, cwd=cwd)
    try:
        while not reached():
            if process.poll() is not None:
                pytest.fail(f"ended before the point was reached:\n{process.communicate()[1]}")
            time.sleep(0.001)
        time.sleep(delay)
        process.send_signal(number)
        stdout, stderr = process.communicate()
    finally:
        process.kill()
    return Result(process.returncode, stdout, stderr)


def exists(folder: Path, pattern: str, count: int = 1) -> Reached:
    return lambda: len(list(folder.glob(pattern))) >= count


def results(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in RESULTS}


# Nine runs take minutes: those in the middle of a stage run in make test-all alone.
@pytest.mark.parametrize(
    "phases",
    [
        ("saving a checkpoint", "DPO", "final write"),
        pytest.param(
            ("start", "base training", "base evaluation", "SFT", "saving a checkpoint", "SFT evaluation",
             "DPO's reference log-probabilities", "DPO"),
            marks=pytest.mark.long,
        ),
    ],
    ids=["some", "others"],
)  # fmt: skip
def test_killed_in_every_phase(phases: tuple[str, ...], small: list[str], unbroken: Path, tmp_path: Path) -> None:
    directory, cache = tmp_path / "run", tmp_path / "cache"
    command = [*small, f"cache_dir={cache}", *OVERRIDES]
    sft, dpo = directory / "01-sft" / "checkpoints", directory / "02-dpo" / "checkpoints"
    draw = random.Random(0)
    # Where to kill, and seconds at random after it.
    points: dict[str, tuple[Reached, float]] = {
        "start": ((directory / "config.yaml").exists, 3.0),
        "base training": (exists(cache, "bases/.*"), 0.05),
        "base evaluation": (exists(directory, "eval/base/generations/*.jsonl", draw.randint(1, 5)), 0.1),
        "SFT": (exists(sft, "checkpoint-7/COMPLETE.json"), 0.2),
        "saving a checkpoint": (exists(sft, "checkpoint-21"), 0.0),
        "SFT evaluation": (exists(directory, "eval/01-sft/generations/*.jsonl", draw.randint(1, 5)), 0.1),
        "DPO's reference log-probabilities": (dpo.exists, 0.2),
        "DPO": (exists(dpo, "checkpoint-5/COMPLETE.json"), 0.2),
        "final write": (exists(directory, "eval/02-dpo/scores.json"), 0.0),
    }
    for phase in phases:
        reached, most = points[phase]
        delay = draw.uniform(0, most)
        print(f"{phase}: killed {delay:.3f} s after its mark")
        result = send(signal.SIGKILL, reached, *command, cwd=tmp_path, delay=delay)
        assert result.code == -signal.SIGKILL, result.stderr
        if phase == "saving a checkpoint":
            _tear(sft / "checkpoint-21")
    final = run(*command, cwd=tmp_path)
    assert final.code == 0, final.stderr
    log = (directory / "run.log").read_text()
    assert "sft: resumes from checkpoint-14\n" in log
    assert "resumes from checkpoint-21" not in log
    assert "dpo: resumes from checkpoint-" in log
    assert results(directory) == results(unbroken)


# A reward that ends its process where the environment says.
DEADLY = """
import itertools
import os
import signal

from ogpsa.config import Reward
from trl import GRPOTrainer


class Deadly(Reward):
    def scorer(self, services):
        from ogpsa.training.grpo import RolloutTrainer
        from ogpsa.training.resume import CompletionCallback

        phase, _, call = os.environ.get("DIE", "").partition(" ")

        def deadly(function):
            calls = itertools.count(1)

            def called(*arguments, **keywords):
                if next(calls) == int(call):
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **keywords)

            return called

        def score(rollouts):
            return [float(len(rollout.response.split()) % 5) for rollout in rollouts]

        places = {"generating": (GRPOTrainer, "_generate_single_turn"), "updating": (RolloutTrainer, "training_step"),
                  "saving": (CompletionCallback, "on_save")}
        if phase in places:
            place, name = places[phase]
            setattr(place, name, deadly(getattr(place, name)))
        return deadly(score) if phase == "rewarding" else score


REWARD = Deadly
"""


# Where it is killed, and the step that is left. The save of step 8 is torn; what comes after it is of the second epoch.
@pytest.mark.parametrize(
    "places",
    [
        [("saving 2", 4), ("updating 11", 8)],
        pytest.param(
            [("saving 2", 4), ("generating 4", 8), ("rewarding 2", 8), ("updating 7", 8)], marks=pytest.mark.long
        ),
    ],
    ids=["some", "all"],
)
def test_grpo_killed_in_every_phase_and_stopped_equals_the_unbroken_run(
    places: list[tuple[str, int]], small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine" / "reward").mkdir(parents=True)
    (tmp_path / "mine" / "reward" / "deadly.yaml").write_text("name: deadly\n")
    (tmp_path / "mine" / "reward" / "deadly.py").write_text(DEADLY)
    # 64 prompts: an epoch has 4 generations, 8 steps of two micro-batches.
    command = [
        "--config-dir=mine", *small, "stage=grpo", "reward=deadly", "method=ogpsa", "method.samples=8",
        "method.refresh_every=3", "stage.batch_size=32", "stage.micro_batch_size=16", "stage.num_generations=4",
        "stage.epochs=3", "stage.save_every=4", "stage.log_every=1", "hydra.run.dir=run",
    ]  # fmt: skip
    unbroken = run(*command, cwd=tmp_path)
    assert unbroken.code == 0, unbroken.stderr
    whole = tmp_path / "whole"
    (tmp_path / "run").rename(whole)
    checkpoints = tmp_path / "run" / "01-grpo" / "checkpoints"
    for place, left in places:
        monkeypatch.setenv("DIE", place)
        killed = run(*command, cwd=tmp_path)
        assert killed.code == -signal.SIGKILL, killed.stderr
        whole_ones = [path for path in checkpoints.glob("checkpoint-*") if is_complete(path)]
        assert max(int(path.name.rpartition("-")[2]) for path in whole_ones) == left
    monkeypatch.delenv("DIE")
    stopped = send(signal.SIGTERM, exists(checkpoints, "checkpoint-12/COMPLETE.json"), *command, cwd=tmp_path)
    assert stopped.code == EXIT_REQUEUE, stopped.stderr
    newest = max(int(path.name.rpartition("-")[2]) for path in checkpoints.glob("checkpoint-*") if is_complete(path))
    # Completions are in no checkpoint: it is left between two generations.
    assert newest >= 12 and newest % 2 == 0
    final = run(*command, cwd=tmp_path)
    assert final.code == 0, final.stderr
    for name in ("01-grpo/model.safetensors", "metrics.json"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()


def _tear(checkpoint: Path) -> None:
    """Make sure that the kill came before the end of the save."""
    (checkpoint / "COMPLETE.json").unlink(missing_ok=True)
    for file in checkpoint.glob("*.safetensors"):
        os.truncate(file, 100)


@pytest.mark.long
def test_signals_save_and_leave(small: list[str], unbroken: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    command = [*small, *OVERRIDES]
    checkpoints = directory / "01-sft" / "checkpoints"
    steps = []
    for number, mark in ((signal.SIGTERM, "checkpoint-7"), (signal.SIGUSR1, "checkpoint-21")):
        result = send(number, exists(checkpoints, f"{mark}/COMPLETE.json"), *command, cwd=tmp_path)
        assert result.code == EXIT_REQUEUE, result.stderr
        assert "Traceback" not in result.stderr
        steps.append(max(int(path.name.rpartition("-")[2]) for path in checkpoints.iterdir() if is_complete(path)))
        assert f"sft: saved at step {steps[-1]} and stopped" in (directory / "run.log").read_text()
        assert not is_complete(directory / "01-sft")
    assert 7 <= steps[0] < 21 <= steps[1] < 36

    evaluated = exists(directory, "eval/01-sft/generations/*.jsonl")
    assert send(signal.SIGTERM, evaluated, *command, cwd=tmp_path).code == EXIT_REQUEUE
    assert not (directory / "eval" / "01-sft" / "scores.json").exists()

    final = run(*command, cwd=tmp_path)
    assert final.code == 0, final.stderr
    log = (directory / "run.log").read_text()
    assert all(f"sft: resumes from checkpoint-{step}\n" in log for step in steps)
    assert results(directory) == results(unbroken)


def test_finished_run_prints_its_table_and_imports_nothing_heavy(
    small: list[str], unbroken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: (unbroken / name).stat().st_mtime_ns for name in RESULTS}
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    result = run(*small, *OVERRIDES, cwd=unbroken.parent)
    assert result.code == 0
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "ogpsa.pipeline" in imported
    assert not {"torch", "transformers", "lm_eval", "wandb"} & imported
    assert "| after SFT | after DPO |" in " ".join(result.stdout.split())
    assert result.stdout.splitlines()[-1] == str(unbroken / "metrics.json")
    assert {name: (unbroken / name).stat().st_mtime_ns for name in RESULTS} == before
