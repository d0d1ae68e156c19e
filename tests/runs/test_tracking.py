"""The W&B mirror: an offline run that W&B itself reads back, closed however the run ends."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from eval.evaluation import evaluate
from ogpsa.utils.files import read_json
from tests.program import run_here

pytestmark = pytest.mark.slow

OVERRIDES = ["tracker=wandb", "stage=sft", "stage.max_steps=4", "stage.log_every=2", "hydra.run.dir=run"]


@pytest.fixture(scope="module", autouse=True)
def _without_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Neither a key in the environment nor one from an earlier ``wandb login``."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_API_KEY", "WANDB_MODE"):
            patch.delenv(name, raising=False)
        home = tmp_path_factory.mktemp("home")
        patch.setenv("HOME", str(home))
        patch.setenv("NETRC", str(home / ".netrc"))
        yield


@pytest.fixture(scope="module")
def mirrored(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run whose mirror is offline, as it is without a key."""
    place = tmp_path_factory.mktemp("mirrored")
    result = run_here(*small, *OVERRIDES, cwd=place)
    assert result.code == 0, result.stderr
    return place / "run"


def offline_run(directory: Path) -> Path:
    [found] = (directory / "wandb").glob("offline-run-*")
    return found


def read_back(directory: Path) -> dict[str, Any]:
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--summary", "--json"]
    done = subprocess.run([*command, str(offline_run(directory))], capture_output=True, text=True, check=True)
    read: dict[str, Any] = json.loads(done.stdout)
    return read


def test_scores_and_configuration(mirrored: Path) -> None:
    read, metrics = read_back(mirrored), read_json(mirrored / "metrics.json")
    headline = {name: metrics[name] for name in ("safety", "utility", "over_refusal")}
    assert {name: read["summary"][name] for name in headline} == headline
    assert (read["state"], read["exit_code"]) == ("finished", 0)
    assert read["config"]["stage"]["max_steps"] == 4
    assert "tracker" not in read["config"]


def test_training_by_step(mirrored: Path) -> None:
    summary = read_back(mirrored)["summary"]
    history = [json.loads(line) for line in (mirrored / "01-sft" / "history.jsonl").read_text().splitlines()]
    last = [entry for entry in history if "loss" in entry][-1]
    assert summary["train/global_step"] == last["step"] == 4
    assert summary["sft/loss"] == pytest.approx(last["loss"])


def test_table_of_benchmarks(mirrored: Path) -> None:
    metrics = read_json(mirrored / "metrics.json")
    [file] = (offline_run(mirrored) / "files" / "media" / "table").glob("benchmarks_*.table.json")
    table = read_json(file)
    keys = ["group", "value", "stderr", "n", "missing", "low", "high", "metric", "judge"]
    assert table["columns"] == ["checkpoint", "benchmark", *keys]
    assert table["data"] == [
        [name, benchmark, *(entry[key] for key in keys)]
        for name, scores in [("base", metrics["base"]), ("sft", metrics["stages"]["sft"])]
        for benchmark, entry in scores["benchmarks"].items()
    ]


def test_is_closed_after_a_failure(small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no space left")

    monkeypatch.setattr("eval.evaluation.evaluate", fail)
    result = run_here(*small, *OVERRIDES, cwd=tmp_path)
    assert result.code == 1
    assert result.stderr.endswith("RuntimeError: no space left\n")
    assert wandb.run is None
    read = read_back(tmp_path / "run")
    assert (read["state"], read["exit_code"]) == ("failed", 1)


def test_the_end_of_wandbs_process_costs_the_run_nothing(
    small: list[str], tmp_path: Path, mirrored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end_it_and_evaluate(*arguments: Any) -> Any:
        subprocess.run(["pkill", "-TERM", "-P", str(os.getpid()), "wandb-core"], check=True)
        monkeypatch.undo()
        return evaluate(*arguments)

    # As a cluster does that sends SIGTERM to every process of a run.
    monkeypatch.setattr("eval.evaluation.evaluate", end_it_and_evaluate)
    result = run_here(*small, *OVERRIDES, cwd=tmp_path)
    assert result.code == 0, result.stderr
    assert result.stderr.count("W&B is lost (ConnectionResetError: ") == 1
    assert read_json(tmp_path / "run" / "metrics.json") == read_json(mirrored / "metrics.json")
    # The next run of this process has its mirror again.
    result = run_here(*small, *OVERRIDES, "stage.max_steps=2", "hydra.run.dir=next", cwd=tmp_path)
    assert result.code == 0 and "lost" not in result.stderr
    assert read_back(tmp_path / "next")["exit_code"] == 0


def test_is_off_when_asked(small: list[str], tmp_path: Path) -> None:
    result = run_here(*small, *OVERRIDES, "tracker=none", cwd=tmp_path)
    assert result.code == 0, result.stderr
    assert [path for path in tmp_path.rglob("*") if "wandb" in path.name] == []


def test_online_without_a_key_is_the_users_mistake(small: list[str], tmp_path: Path) -> None:
    result = run_here(*small, *OVERRIDES, "tracker=wandb", "tracker.mode=online", cwd=tmp_path)
    assert result.stderr == (
        "error: tracker.mode: online needs WANDB_API_KEY in the environment; set it, or use offline or auto\n"
    )
    assert (result.code, list(tmp_path.iterdir())) == (2, [])
