"""Experiments as their users name them: rows, seeds and strengths, what is refused, and what a run leaves."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conf.compose import CONF
from experiments.__main__ import main, parse
from experiments.execute import execute, tasks_of
from experiments.rows import experiment_names, load_experiment, points, row_model
from ogpsa.errors import EXIT_REQUEUE, EXIT_USER_ERROR
from ogpsa.runs import METRICS_FILE
from tests.program import ROOT, contents

NAMES = experiment_names()


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_names_rows_that_are_there(name: str) -> None:
    experiment = load_experiment(name)
    assert experiment.rows
    assert all((CONF / "experiment" / f"{row}.yaml").is_file() for row in experiment.rows)
    own = {path.stem for path in (CONF / "experiment" / name).glob("*.yaml")}
    assert {f"{name}/{row}" for row in own} <= set(experiment.rows)
    assert set(experiment.settings.suites) == {"paper", "testbed", "check"}


def test_table1_is_every_model_pipeline_and_method() -> None:
    models, stages = ("qwen2_5_7b", "llama3_1_8b"), ("sft", "dpo", "sft_dpo")
    methods = ("baseline", "lora", "replay", "merge", "ogpsa")
    expected = {f"table1/{model}_{stage}_{method}" for model in models for stage in stages for method in methods}
    assert set(load_experiment("table1").rows) == expected
    assert {row: row_model(row) for row in expected} == {
        row: next(model for model in models if f"/{model}_" in row) for row in expected
    }


def test_rows_come_in_the_order_of_their_numbers() -> None:
    rows = [row for row in load_experiment("rank").rows if row.startswith("rank/")]
    assert rows == [f"rank/{rank}" for rank in (1, 2, 4, 8, 16, 32)]


def test_seeds_and_strengths_are_the_suites_or_the_users() -> None:
    table = load_experiment("table1")
    found = points(table, "testbed", ["qwen2_5_7b_sft_dpo_ogpsa"])
    seeds = {strength: [point.seed for point in found if point.strength == strength] for strength in (1, 0.5, 0.25)}
    assert seeds == {1: list(range(10)), 0.5: list(range(5)), 0.25: list(range(5))}
    full, half = (next(point for point in found if point.strength == strength) for strength in (1, 0.5))
    for stage, halved in zip(full.config.stages, half.config.stages, strict=True):
        assert halved.learning_rate == pytest.approx(stage.learning_rate / 2)
    [one] = points(table, "testbed", ["llama3_1_8b_sft_lora"], seeds=[7])
    assert (one.seed, one.config.seed, one.config.data.seed) == (7, 7, 1)
    [full_size] = points(table, "paper", ["llama3_1_8b_sft_lora"])
    assert (full_size.config.model.name, full_size.config.data.name) == ("llama3_1_8b", "paper")


def test_a_run_that_two_rows_ask_for_is_one_task(tmp_path: Path) -> None:
    rank, refresh = (points(load_experiment(name), "testbed", seeds=[0]) for name in ("rank", "refresh"))
    tasks = tasks_of([*rank, *refresh], tmp_path)
    # Naive tuning is the reference of both.
    assert len(tasks) == len(rank) + len(refresh) - 1
    assert len({task.directory for task in tasks}) == len(tasks)
    assert len(tasks[0].point.config.stages) <= len(tasks[-1].point.config.stages)


@pytest.mark.parametrize(
    ("given", "expected"),
    [("3", [0, 1, 2]), ("5-9", [5, 6, 7, 8, 9]), ("0,2,4", [0, 2, 4]), ("1", [0]), ("7-7", [7])],
)
def test_seeds_are_a_number_a_range_or_a_list(given: str, expected: list[int]) -> None:
    assert parse(["rank", f"seeds={given}"]).seeds == expected


EXPERIMENTS = ", ".join([*NAMES, "all"])
MISTAKES = {
    "fun": "'fun' is no command; allowed: list, plan, run, report; did you mean 'run'?",
    "run": f"name an experiment: {EXPERIMENTS}",
    "plan rnak": f"'rnak' is no experiment; allowed: {EXPERIMENTS}; did you mean 'rank'?",
    "run rank suite=tesbed": "suite: found 'tesbed'; allowed: check, paper, testbed; did you mean 'testbed'?",
    "run rank seeds=a": "seeds: found 'a'; expected a number of seeds (5), a range (5-9) or two or more (0,2,4)",
    "run rank seeds=0": "seeds: found '0'; expected a number of seeds (5), a range (5-9) or two or more (0,2,4)",
    "run rank seeds=9-5": "seeds: found '9-5'; expected a number of seeds (5), a range (5-9) or two or more (0,2,4)",
    "run rank workers=0": "workers: found '0'; expected a whole number from 1",
    "run rank slurm=yes": "slurm: found 'yes'; allowed: true, false",
    "plan rank rows=64":
        "rows: '64' matches no row of rank; rows: table1/qwen2_5_7b_sft_dpo_baseline, 1, 2, 4, 8, 16, 32; "
        "did you mean '4'?",
    "run rank sead=1":
        "sead: unknown key; allowed: seed, cache_dir, stage_store, preflight, model, stage, method, data, eval, "
        "distributed, tracker; did you mean 'seed'?",
    "list rank": "list: found 'rank'; it takes no arguments",
}  # fmt: skip


@pytest.mark.parametrize(("words", "line"), MISTAKES.items())
def test_a_users_mistake_takes_one_line(words: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == EXIT_USER_ERROR
    assert capsys.readouterr().err == f"error: {line}\n"


def test_list_and_help_say_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == NAMES
    assert main(["--help"]) == 0
    assert "python -m experiments run NAME" in capsys.readouterr().out


def test_a_sweep_file_holds_one_run_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "diversity", "suite=paper", "slurm=true"]) == 0
    lines = (tmp_path / "slurm/sweeps/diversity.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 5
    assert all("seed=0" in line and "stage_store=outputs/paper/stages" in line for line in lines)
    assert "slurm/submit.sh slurm/sweeps/diversity.txt" in capsys.readouterr().out


def test_the_plan_counts_what_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = [f"output={tmp_path}", "suite=check", "rows=rank/*"]
    assert main(["plan", "rank", *wanted]) == 0
    before = capsys.readouterr().out
    assert "6 runs, 0 done" in before
    [task] = tasks_of(points(load_experiment("rank"), "check", ["4"]), tmp_path / "check")
    task.directory.mkdir(parents=True)
    (task.directory / METRICS_FILE).write_text("{}")
    assert main(["plan", "rank", *wanted]) == 0
    after = capsys.readouterr().out
    assert "6 runs, 1 done" in after
    row = next(line.split() for line in after.splitlines() if line.startswith("rank/4"))
    # Two steps a stage; at each of K = 30 and 5 one refresh: 2 × 200 and 200 rows beside 2 × 16 and 2 × 32.
    assert row[:6] == ["rank/4", "1/1", "2", "+", "2", "86.2%"]


def test_the_plan_of_a_full_size_row_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "table1", "suite=paper", "rows=qwen2_5_7b_sft_ogpsa", f"data.safety={tmp_path}/a.jsonl"]) == 0
    printed = capsys.readouterr().out
    assert "1 runs, 0 done" in printed
    assert f"data.safety: {tmp_path}/a.jsonl: no such file" in printed
    assert "config.json of Qwen/Qwen2.5-7B-Instruct is not in the hub's cache" in printed


@pytest.mark.slow
def test_a_failing_row_stops_no_other_and_a_stopped_sweep_goes_on(tmp_path: Path) -> None:
    """One row cannot start; SIGTERM ends the rest in between; the same command finishes them."""
    cache = f"cache_dir={tmp_path / 'cache'}"
    command = [
        sys.executable,
        "-m",
        "experiments",
        "run",
        "rank",
        "suite=check",
        "workers=2",
        "rows=rank/1,rank/2,rank/4",
    ]
    elsewhere = [*command, cache, f"output={tmp_path / 'undisturbed'}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(elsewhere, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    here = [*command, cache, f"output={tmp_path / 'stopped'}"]
    process = subprocess.Popen(here, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("stopped/check/*/run.log")):
        time.sleep(0.1)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait() == EXIT_REQUEUE
    [blocked] = tasks_of(points(load_experiment("rank"), "check", ["4"], overrides=[cache]), tmp_path / "stopped/check")
    blocked.directory.mkdir(exist_ok=True)
    (blocked.directory / METRICS_FILE).unlink(missing_ok=True)
    (blocked.directory / "config.yaml").write_text("seed: 5\n")
    tasks = tasks_of(
        points(load_experiment("rank"), "check", ["rank/*"], overrides=[cache]), tmp_path / "stopped/check"
    )
    [failed] = execute([task for task in tasks if task.point.row in ("rank/1", "rank/2", "rank/4")], 2)
    assert failed.startswith("rank/4 seed 0: hydra.run.dir: ")
    (blocked.directory / "config.yaml").unlink()
    for path in blocked.directory.iterdir():
        assert path.name == "run.lock" or path.is_dir() or path.suffix in (".log", ".json")
    finished = {path.parent.name for path in (tmp_path / "stopped/check").glob(f"*/{METRICS_FILE}")}
    for name in finished:
        ours, theirs = (contents(tmp_path / place / "check" / name / "02-dpo") for place in ("stopped", "undisturbed"))
        assert ours["model.safetensors"] == theirs["model.safetensors"]
    assert len(finished) == 2


@pytest.mark.slow
def test_every_row_of_every_experiment_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one worker: two steps a stage, four rows a benchmark, a model of random weights; then every report."""
    given = ["all", "suite=check", f"output={tmp_path}"]
    assert main(["run", *given, "workers=1", f"cache_dir={tmp_path / 'cache'}"]) == 0
    assert main(["plan", *given, f"cache_dir={tmp_path / 'cache'}"]) == 0
    counts = [line for line in capsys.readouterr().out.splitlines() if " runs, " in line]
    assert len(counts) == len(NAMES)
    for line in counts:
        total, _, done, *_ = line.split()
        assert total == done, line
    assert main(["report", *given, f"out={tmp_path / 'reports'}", f"cache_dir={tmp_path / 'cache'}"]) == 0
    for name in NAMES:
        for ending in ("md", "tex", "csv"):
            assert list((tmp_path / "reports").rglob(f"{name}.{ending}")), name
