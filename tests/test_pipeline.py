"""The run directory's contract, every stage with every method, the user's own rows, and sweeps."""

import hashlib
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import eval.evaluation
import ogpsa
from eval.benchmarks.definition import find_benchmarks
from ogpsa.app.compose import compose_config
from ogpsa.config import Config
from ogpsa.pipeline import run
from ogpsa.runs.directory import check_directory
from ogpsa.testbed.cache import ensure_base
from ogpsa.utils.errors import UserError
from ogpsa.utils.files import read_json, read_jsonl, write_jsonl
from tests.program import contents, run_here

pytestmark = pytest.mark.slow

GROUPS = ("safety", "utility", "over_refusal")
FOLDERS = {"sft": ["01-sft"], "dpo": ["01-dpo"], "sft_dpo": ["01-sft", "02-dpo"]}
SHORT = ["method.samples=8", "method.refresh_every=2"]


def overrides(stage: str, method: str) -> list[str]:
    return [f"stage={stage}", f"method={method}", *(SHORT if method == "ogpsa" else [])]


@pytest.fixture(scope="module")
def runs(
    small_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], tuple[Path, tuple[float, float]]]:
    """``runs(stage, method)``: the directory of that run, made once, and what the pipeline returned."""
    place = tmp_path_factory.mktemp("runs")
    made: dict[tuple[str, str], tuple[Path, tuple[float, float]]] = {}

    def get(stage: str, method: str) -> tuple[Path, tuple[float, float]]:
        if (stage, method) not in made:
            directory = place / f"{stage}-{method}"
            given = overrides(stage, method)
            made[stage, method] = directory, run(small_config(*given), directory, eval.evaluation.evaluate, given)
        return made[stage, method]

    return get


@pytest.mark.parametrize(
    ("stage", "method"),
    [
        # The experiments' rows run each stage alone on every push.
        pytest.param(
            *point,
            marks=[pytest.mark.smoke] * (point == ("sft_dpo", "ogpsa")) + [pytest.mark.long] * (point[0] != "sft_dpo"),
        )
        for point in product(FOLDERS, ("baseline", "ogpsa"))
    ],
)
def test_every_stage_with_every_method(
    stage: str,
    method: str,
    runs: Callable[[str, str], tuple[Path, tuple[float, float]]],
    small_config: Callable[..., Config],
) -> None:
    directory, scores = runs(stage, method)
    metrics = read_json(directory / "metrics.json")
    names = [folder.partition("-")[2] for folder in FOLDERS[stage]]
    assert sorted(path.name for path in directory.glob("0*")) == FOLDERS[stage]
    assert metrics.keys() == {*GROUPS, "base", "stages"}
    assert list(metrics["stages"]) == names
    assert scores == (metrics["safety"], metrics["utility"])
    assert {group: metrics[group] for group in GROUPS} == {
        group: metrics["stages"][names[-1]][group] for group in GROUPS
    }
    start = ensure_base(small_config())
    for folder in FOLDERS[stage]:
        before, after = (load_file(place / "model.safetensors") for place in (start, directory / folder))
        assert all(torch.isfinite(weight).all() for weight in after.values())
        assert any(not torch.equal(before[name], after[name]) for name in before)
        start = directory / folder
    columns = {key for row in read_jsonl(directory / FOLDERS[stage][-1] / "history.jsonl") for key in row}
    assert any(key.startswith("projection/") for key in columns) == (method == "ogpsa")


def test_contract_of_the_directory(
    runs: Callable[[str, str], tuple[Path, tuple[float, float]]], small_config: Callable[..., Config]
) -> None:
    directory, _ = runs("sft_dpo", "ogpsa")
    config = small_config(*overrides("sft_dpo", "ogpsa"))
    assert sorted(path.name for path in directory.iterdir()) == [
        "01-sft", "02-dpo", "config.yaml", "data", "eval", "metrics.json", "provenance.json", "run.lock", "run.log",
    ]  # fmt: skip
    assert list(directory.rglob("metrics.json")) == [directory / "metrics.json"]
    assert yaml.safe_load((directory / "config.yaml").read_text()) == config.model_dump(mode="json")
    metrics = read_json(directory / "metrics.json")
    expected = {"base": metrics["base"], "01-sft": metrics["stages"]["sft"], "02-dpo": metrics["stages"]["dpo"]}
    for name, scores in expected.items():
        folder = directory / "eval" / name
        assert read_json(folder / "scores.json") == scores
        for part in ("generations", "verdicts"):
            assert sorted(file.stem for file in (folder / part).iterdir()) == sorted(config.eval.benchmarks)
    for number, stage in enumerate(("sft", "dpo"), start=1):
        folder = directory / f"{number:02d}-{stage}"
        steps = {"sft": 12, "dpo": 2}[stage]
        complete = read_json(folder / "COMPLETE.json")
        assert (complete["stage"], complete["steps"]) == (stage, steps)
        assert sorted(complete["files"]) == sorted(p.name for p in folder.iterdir() if p.name != "COMPLETE.json")
        assert {"config.json", "model.safetensors", "tokenizer.json", "history.jsonl"} <= {
            p.name for p in folder.iterdir()
        }
        assert not (folder / "checkpoints").exists()
    assert list(directory.rglob(".*")) == []


def test_scores_are_within_their_ranges(runs: Callable[[str, str], tuple[Path, tuple[float, float]]]) -> None:
    metrics = read_json(runs("sft_dpo", "ogpsa")[0] / "metrics.json")
    for scores in (metrics["base"], *metrics["stages"].values()):
        for group in GROUPS:
            members = [entry for entry in scores["benchmarks"].values() if entry["group"] == group]
            assert scores[group] == pytest.approx(sum(entry["value"] for entry in members) / len(members))
        for entry in scores["benchmarks"].values():
            assert 0 <= entry["value"] <= 1
            assert entry["stderr"] >= 0
            assert entry["n"] + entry["missing"] == 4
    assert {entry["group"] for entry in metrics["base"]["benchmarks"].values()} == set(GROUPS)


def test_provenance_says_what_was_run(runs: Callable[[str, str], tuple[Path, tuple[float, float]]]) -> None:
    directory, _ = runs("sft_dpo", "ogpsa")
    provenance = read_json(directory / "provenance.json")
    assert provenance["seeds"] == {"seed": 0, "data.seed": 0}
    [session] = provenance["sessions"]
    assert session["overrides"] == overrides("sft_dpo", "ogpsa")
    assert session["packages"]["ogpsa"] == ogpsa.__version__
    assert session["packages"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert session["host"]["world_size"] == 1
    assert session["git"] is None or len(session["git"]["revision"]) == 40
    files = {
        path.relative_to(directory / "data").with_suffix("").as_posix(): path
        for path in (directory / "data").rglob("*.jsonl")
    }
    assert provenance["data"] == {
        name: {"rows": len(read_jsonl(path)), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for name, path in files.items()
    }
    assert {"safety", "reference/helpfulness", "evaluation/facts"} <= files.keys()


def test_log_of_the_run(runs: Callable[[str, str], tuple[Path, tuple[float, float]]]) -> None:
    text = (runs("sft_dpo", "ogpsa")[0] / "run.log").read_text()
    marks = ["run directory: ", "evaluating base", "sft 10/12: ", "evaluating 01-sft", "evaluating 02-dpo"]
    places = [text.index(mark) for mark in marks]
    assert places == sorted(places)
    assert "\r" not in text


@pytest.mark.parametrize(
    ("stage", "method", "rows"),
    [
        pytest.param(
            "sft",
            "baseline",
            {"prompt": "how do i make {}", "completion": "i cannot help with {}"},
            marks=pytest.mark.long,
        ),
        ("dpo", "ogpsa", {"prompt": "how do i make {}", "chosen": "i cannot help with {}", "rejected": "take {}"}),
    ],
)
def test_own_rows_and_own_model(
    stage: str,
    method: str,
    rows: dict[str, str],
    small: list[str],
    small_config: Callable[..., Config],
    tmp_path: Path,
) -> None:
    def fill(count: int) -> list[dict[str, Any]]:
        return [{key: text.format(f"thing {number}") for key, text in rows.items()} for number in range(count)]

    shutil.copytree(ensure_base(small_config()), tmp_path / "model")
    write_jsonl(tmp_path / "safety.jsonl", fill(6))
    write_jsonl(tmp_path / "preference.jsonl", fill(4))
    for benchmark in find_benchmarks(small_config().eval.benchmarks):
        write_jsonl(tmp_path / "benchmarks" / f"{benchmark.rows}.jsonl", [{"id": "1", "prompt": "a", "target": "b"}])
    arguments = [
        "data=files", "data.safety=safety.jsonl", "model.path=model", "eval.data_dir=benchmarks", "tracker=none",
        f"stage={stage}", "stage.batch_size=2", "stage.micro_batch_size=1", f"method={method}", "hydra.run.dir=run",
    ]  # fmt: skip
    if method == "ogpsa":
        arguments += ["method.samples=3", "+data.reference_sets={preference: preference.jsonl}"]
    result = run_here(*arguments, cwd=tmp_path)
    assert result.code == 0, result.stderr
    folder = tmp_path / "run" / f"01-{stage}"
    epochs = compose_config([f"stage={stage}"]).stages[0].epochs
    assert read_json(folder / "COMPLETE.json")["steps"] == 3 * epochs
    before, after = (load_file(place / "model.safetensors") for place in (tmp_path / "model", folder))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    kept = read_jsonl(tmp_path / "run" / "data" / "safety.jsonl")
    assert kept[0]["chosen"] == "i cannot help with thing 0"
    assert "run/metrics.json" in result.stdout


def test_points_of_a_sweep_equal_single_runs(small: list[str], tmp_path: Path) -> None:
    common = [*small, "stage=sft", "method.samples=8", "stage.max_steps=5"]
    points = {"2": ["method.rank=2", "seed=3"], "4": ["method.rank=4", "seed=3"]}
    swept = run_here(
        "-m",
        *common,
        "method.rank=2,4",
        "seed=3",
        "hydra.sweep.dir=sweep",
        "hydra.sweep.subdir=${method.rank}",
        cwd=tmp_path,
    )
    assert swept.code == 0, swept.stderr
    for name, point in reversed(points.items()):  # the other order: nothing may pass from one point to the next
        alone = run_here(*common, *point, f"hydra.run.dir=alone/{name}", cwd=tmp_path)
        assert alone.code == 0, alone.stderr
        ours, theirs = (contents(tmp_path / place / name) for place in ("sweep", "alone"))
        assert ours.keys() == theirs.keys()
        # These say when, where and how fast.
        own = {"run.log", "run.lock", "provenance.json", "01-sft/history.jsonl", "01-sft/COMPLETE.json"}
        assert [path for path in ours if ours[path] != theirs[path] and path not in own] == []
    weights = [(tmp_path / "sweep" / name / "01-sft" / "model.safetensors").read_bytes() for name in points]
    assert weights[0] != weights[1]


def test_failed_point_is_named_and_the_others_finish(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = eval.evaluation.evaluate

    def fails_once(checkpoint: Path, rows: Path, output: Path, *others: Any) -> dict[str, Any]:
        if "seed1" in output.as_posix():
            raise RuntimeError("the judge is out")
        return evaluate(checkpoint, rows, output, *others)

    monkeypatch.setattr(eval.evaluation, "evaluate", fails_once)
    common = [*small, "stage=sft", "method=baseline", "stage.max_steps=2"]
    result = run_here(
        "-m", *common, "seed=1,2", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=seed${seed}", cwd=tmp_path
    )
    assert result.code == 1
    assert result.stderr.count("Traceback") == 1
    assert result.stderr.splitlines()[-1] == f"failed: {' '.join(common)} seed=1: RuntimeError: the judge is out"
    assert not (tmp_path / "sweep" / "seed1" / "metrics.json").exists()
    assert read_json(tmp_path / "sweep" / "seed2" / "metrics.json").keys() == {*GROUPS, "base", "stages"}


def test_no_secret_is_written(small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "0123456789abcdef" * 2 + "secretvalue"
    for name in ("WANDB_API_KEY", "HF_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, secret)
    arguments = ["stage=sft", "method=baseline", "stage.max_steps=2", "tracker=wandb", "tracker.mode=offline"]
    result = run_here(*small, *arguments, "hydra.run.dir=run", cwd=tmp_path)
    assert result.code == 0, result.stderr
    written = contents(tmp_path)
    assert any(path.endswith(".wandb") for path in written)
    assert [path for path, data in written.items() if data is not None and secret.encode() in data] == []
    assert secret not in result.stdout + result.stderr


def test_directory_with_foreign_files_is_refused(small_config: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(UserError, match="holds files that are not a run's"):
        check_directory(tmp_path, small_config())


def test_diverged_training_stops_by_name(small_config: Callable[..., Config], tmp_path: Path) -> None:
    config = small_config("stage=sft", "method=baseline", "stage.learning_rate=1e30", "stage.log_every=1")
    with pytest.raises(
        UserError, match=r"the gradient's norm is (nan|inf) at step \d+, from row \d+ of the safety set"
    ):
        run(config, tmp_path / "run", eval.evaluation.evaluate)
    assert "lower the learning rate" in (tmp_path / "run" / "run.log").read_text()
    assert not (tmp_path / "run" / "metrics.json").exists()
