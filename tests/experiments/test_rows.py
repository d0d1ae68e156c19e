"""Experiments as their users name them: rows, seeds and strengths, what is refused, and what a run leaves."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import yaml

from experiments import bases
from experiments.__main__ import main, parse
from experiments.execute import check_tasks, execute, tasks_of
from experiments.plan import stand_in
from experiments.rows import DEFINITIONS, experiment_names, experiments_of, load_experiment, points, row_model
from ogpsa.app.compose import CONF, compose_config, compose_run
from ogpsa.data.rows import check_sizes
from ogpsa.runs.directory import METRICS_FILE
from ogpsa.utils.command_line import run_program
from ogpsa.utils.errors import EXIT_REQUEUE, EXIT_USER_ERROR, UserError
from ogpsa.utils.files import write_json
from tests.program import ROOT, contents

NAMES = experiment_names()
# Of rows that differ in a number alone, or in the model, which the suite replaces, one is enough but in make test-all.
FEWER = {"table1": "qwen*", "nspo": "qwen*", "rank": "8", "refresh": "never", "samples": "500", "cost": "int8"}
# Rows that suite=check runs as rows of other experiments but for a number, or with a reward that other rows have.
RUN = {
    "rivals": ["merge_0.5", "replay_0.1"],
    "rl": ["grpo", "kl", "replay", "ogpsa", "conflict", "nspo_*", "random*", "two_sided_grpo"],
    "small_sft": ["*_baseline", "*_conflict"],
    "small_dpo": ["*_baseline", "*_conflict"],
}


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_names_rows_that_are_there(name: str) -> None:
    experiment = load_experiment(name)
    assert experiment.rows
    assert all((CONF / "experiment" / f"{row}.yaml").is_file() for row in experiment.rows)
    own = {path.stem for path in (CONF / "experiment" / name).glob("*.yaml")}
    assert {f"{name}/{row}" for row in own} <= set(experiment.rows)
    full = {"small"} if name.startswith("small_") else {"paper", "testbed"}
    full |= {"small_full"} if name == "small_sft" else set()
    assert set(experiment.settings.suites) == {*full, "check"}
    for suite, grids in experiment.settings.suites.items():
        compared = experiment.settings.compared_at.get(suite, 1.0)
        assert any(compared in grid.strengths for grid in grids), f"{suite}: no row runs at {compared}"


@pytest.mark.slow
def test_small_full_has_all_rows_of_small_sft_without_a_cap() -> None:
    found = points(load_experiment("small_sft"), "small_full", seeds=[0])
    assert {point.row for point in found} == set(load_experiment("small_sft").rows)
    assert {(point.config.stages[0].max_steps, point.config.stages[0].epochs) for point in found} == {(None, 3)}
    limits = {point.config.eval.rows_of(name) for point in found for name in point.config.eval.benchmarks}
    assert limits == {None}


@pytest.mark.slow
def test_no_run_of_the_testbed_is_refused(tmp_path: Path) -> None:
    """Each has the rows that it draws and mixes in, at its full size: ``suite=check`` has fewer."""
    found = [
        point
        for name in experiments_of("testbed")
        for point in points(load_experiment(name), "testbed", [FEWER.get(name, "*")], seeds=[0])
    ]
    # Strengths scale learning rates alone.
    check_tasks(tasks_of(list({point.row: point for point in found}.values()), tmp_path))


@pytest.mark.slow
def test_no_run_of_full_size_wants_more_rows_than_are_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in experiments_of("paper"):
        for point in points(load_experiment(name), "paper", [FEWER.get(name, "*")], seeds=[0]):
            assert point.config.model.name == row_model(point.row)
            data = stand_in(point.config, row_tokens=1)
            assert data is not None
            check_sizes(point.config, data.safety, data.reference_sets)


@pytest.mark.slow
def test_what_many_runs_would_say_of_a_benchmark_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Here there are no rows, and nothing can be fetched."""
    given = points(load_experiment("rank"), "check", overrides=["eval=small", f"eval.data_dir={tmp_path}"])
    for _ in range(2):
        caplog.clear()
        with suppress(UserError):
            check_tasks(tasks_of(given, tmp_path))
        found = [line.partition(":")[0] for line in caplog.messages]
        assert "xstest_safe" in found and len(found) == len(set(found))


def test_table1_is_every_model_pipeline_and_method() -> None:
    models, stages = ("qwen2_5_7b", "llama3_1_8b"), ("sft", "dpo", "sft_dpo")
    methods = ("baseline", "lora", "replay", "merge", "ogpsa")
    expected = {f"table1/{model}_{stage}_{method}" for model in models for stage in stages for method in methods}
    assert set(load_experiment("table1").rows) == expected


def test_a_row_inherits_what_the_rows_share_and_shows_what_differs() -> None:
    shared = picks("_paper")
    rows = {name for table in NAMES for name in load_experiment(table).rows}
    assert all(name.partition("/")[2] and not picks(name).items() & shared.items() for name in rows)


def picks(name: str) -> dict[str, str]:
    """The options that a row's own file picks."""
    raw = yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8"))
    return {key: value for entry in raw["defaults"] if isinstance(entry, dict) for key, value in entry.items()}


def test_rows_come_in_the_order_of_their_numbers() -> None:
    rows = [row for row in load_experiment("rank").rows if row.startswith("rank/")]
    assert rows == [f"rank/{rank}" for rank in (1, 2, 4, 8, 16, 32)]


def test_seeds_and_strengths_are_the_suites_or_the_users() -> None:
    table = load_experiment("table1")
    found = points(table, "testbed", ["qwen2_5_7b_sft_dpo_ogpsa"])
    assert {(point.strength, point.seed) for point in found} == set(product((0.25, 0.5, 1.0), range(5)))
    full, half = (next(point for point in found if point.strength == strength) for strength in (1, 0.5))
    for stage, less in zip(full.config.stages, half.config.stages, strict=True):
        assert less.learning_rate == pytest.approx(stage.learning_rate / 2)
    [one] = points(table, "testbed", ["llama3_1_8b_sft_lora"], seeds=[7])
    assert (one.seed, one.config.seed, one.config.data.seed) == (7, 7, 1)
    # Each seed has a base of its own, which the arguments for train.py name as well.
    assert one.config.testbed_base()[1].seed == 7
    assert compose_config(list(one.overrides)) == one.config
    [full_size] = points(table, "paper", ["llama3_1_8b_sft_lora"])
    assert (full_size.config.model.name, full_size.config.data.name) == ("llama3_1_8b", "paper")


def test_rows_that_the_suite_leaves_out_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "refresh", "rows=1,10"]) == EXIT_USER_ERROR
    said = capsys.readouterr().err
    assert said.startswith("error: rows: suite=testbed of refresh leaves out refresh/1, refresh/10; it runs table1/")
    assert said.endswith(", refresh/5, refresh/30, refresh/never\n")
    found = points(load_experiment("refresh"), "testbed", ["1", "5"])
    assert {point.row for point in found} == {"refresh/5"}


def test_a_base_is_named_by_its_world_and_its_seed(capsys: pytest.CaptureFixture[str]) -> None:
    for given, found in (("foo", "foo"), ("0", "0"), ("0.0,", ""), ("0.0,1.x", "1.x")):
        assert run_program(partial(bases.main, ["--bases", given])) == EXIT_USER_ERROR
        said = f"error: argument --bases: found '{found}'; expected WORLD.SEED, as 0.1; "
        assert capsys.readouterr().err.startswith(said)


@pytest.mark.slow
def test_a_run_that_two_rows_ask_for_is_one_task(tmp_path: Path) -> None:
    rank, refresh = (points(load_experiment(name), "testbed", seeds=[0]) for name in ("rank", "refresh"))
    tasks = tasks_of([*rank, *refresh], tmp_path)
    # Naive tuning, at all strengths, is the reference of both.
    shared = [point for point in rank if point.row == "table1/qwen2_5_7b_sft_dpo_baseline"]
    assert len(tasks) == len(rank) + len(refresh) - len(shared)
    assert len({task.directory for task in tasks}) == len(tasks)
    assert len(tasks[0].point.config.stages) <= len(tasks[-1].point.config.stages)


@pytest.mark.parametrize(
    ("given", "expected"),
    [("3", [0, 1, 2]), ("5-9", [5, 6, 7, 8, 9]), ("0,2,4", [0, 2, 4]), ("1", [0]), ("7-7", [7])],
)
def test_seeds_are_a_number_a_range_or_a_list(given: str, expected: list[int]) -> None:
    assert parse(["rank", f"seeds={given}"]).seeds == expected


@pytest.mark.slow
def test_all_are_those_of_the_suite() -> None:
    small = {"small_sft", "small_dpo", "small_ideas", "small_rl"}
    assert {suite: set(parse(["all", f"suite={suite}"]).names) for suite in ("small", "testbed", "check")} == {
        "small": small,
        "testbed": set(NAMES) - small,
        "check": set(NAMES),
    }


def test_a_folder_may_be_called_anything(tmp_path: Path) -> None:
    folder = tmp_path / "a,b (it's)"
    [task] = tasks_of(points(load_experiment("rank"), "check", ["1"]), folder)
    config, run_directory = compose_run(list(task.arguments))
    assert config.stage_store == str(folder / "stages")
    assert run_directory == task.directory


def test_runs_of_another_method_file_are_named_once_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = {"safety": 1.0, "utility": 0.5, "over_refusal": 0.0, "benchmarks": {}}
    wanted = ["rank", "suite=check", "rows=1,2", "seeds=2", f"output={tmp_path}"]
    for task in tasks_of(points(load_experiment("rank"), "check", ["1", "2"], seeds=[0, 1]), tmp_path / "check"):
        task.directory.mkdir(parents=True)
        (task.directory / "config.yaml").write_text(yaml.safe_dump(task.point.config.model_dump(mode="json")))
        write_json(task.directory / METRICS_FILE, scores | {"base": scores, "stages": {"sft": scores, "dpo": scores}})
        noted = {"code/ogpsa/methods/ogpsa.py": "0"} if task.point.row == "rank/1" else {}
        session = {"started": "2026-01-01T00:00:00+00:00", "git": None}
        write_json(task.directory / "provenance.json", {"rests_on": noted, "sessions": [session]})
    for command in ("run", "report"):
        assert main([command, *wanted]) == 0
        printed = capsys.readouterr()
        assert command == "report" or printed.out == "4 of 4 runs done\n"
        said = [line for line in printed.err.splitlines() if "other code" in line]
        assert said == [
            "rank/1: these numbers were made with other code: ogpsa/methods/ogpsa.py has changed since; "
            "choose another output= to run again"
        ]


EXPERIMENTS = ", ".join([*NAMES, "all"])
MISTAKES = {
    "fun": "unknown command 'fun'; allowed: list, plan, run, report, keep; did you mean 'run'?",
    "run": f"name an experiment: {EXPERIMENTS}",
    "plan rnak": f"'rnak' is not an experiment; allowed: {EXPERIMENTS}; did you mean 'rank'?",
    "run rank suite=tesbed": (
        "suite: found 'tesbed'; allowed: check, paper, small, small_full, testbed; did you mean 'testbed'?"
    ),
    "plan rank suite=small": "suite: rank does not run on 'small'; allowed: paper, testbed, check",
    "plan small_sft": "suite: small_sft does not run on 'testbed'; allowed: small, small_full, check",
    "run rank seeds=a": "seeds: found 'a'; expected a number of seeds (5), a range (5-9) or two or more (0,2,4)",
    "run rank seeds=0": "seeds: found '0'; expected a number of seeds (5), a range (5-9) or two or more (0,2,4)",
    "run rank seeds=9-5": "seeds: found '9-5'; expected a number of seeds (5), a range (5-9) or two or more (0,2,4)",
    "run rank workers=0": "workers: found '0'; expected a whole number from 1",
    "run rank slurm=yes": "slurm: found 'yes'; allowed: true, false",
    "plan rank rows=64":
        "rows: '64' matches no row of rank; rows: table1/qwen2_5_7b_sft_dpo_baseline, 1, 2, 4, 8, 16, 32; "
        "did you mean '4'?",
    "report rank sedes=1":
        "sedes: unknown key; allowed: suite, rows, seeds, output, out, workers, slurm, kept, model, stage, "
        "method, reward, data, eval, distributed, tracker, cache_dir, lock_wait, accept_changed, preflight; "
        "did you mean 'seeds'?",
    "run rank sead=1":
        "sead: unknown key; allowed: suite, rows, seeds, output, out, workers, slurm, kept, model, stage, "
        "method, reward, data, eval, distributed, tracker, cache_dir, lock_wait, accept_changed, preflight; "
        "did you mean 'seeds'?",
    "plan rank methid=ogpsa":
        "methid: unknown key; allowed: suite, rows, seeds, output, out, workers, slurm, kept, model, stage, "
        "method, reward, data, eval, distributed, tracker, cache_dir, lock_wait, accept_changed, preflight; "
        "did you mean 'method'?",
    "run rank seed=3": "seed: set by this command for every run; name the seeds with seeds=",
    "list rank": "list: found 'rank'; it takes no arguments",
}  # fmt: skip


@pytest.mark.parametrize(("words", "line"), MISTAKES.items())
def test_a_users_mistake_takes_one_line(words: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == EXIT_USER_ERROR
    assert capsys.readouterr().err == f"error: {line}\n"


@pytest.fixture
def definitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of our tables' definitions, which is read in their place."""
    monkeypatch.setattr("experiments.rows.DEFINITIONS", tmp_path / "definitions")
    return shutil.copytree(DEFINITIONS, tmp_path / "definitions")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"safety": "xstest_unsave"}, r"levels: safety: found 'xstest_unsave'; .*did you mean 'xstest_unsafe'\?"),
        ({"over_refusal": "xstest_unsafe"}, "levels: over_refusal: found 'xstest_unsafe'; small/sft_baseline averages"),
        ({"at": [100]}, "levels.*100"),
        ({"suites": {"small": [{"seeds": 3, "strengths": [1.0]}]}}, "levels: no suite runs at two strengths"),
    ],
)
def test_a_level_names_benchmarks_of_the_rows_evaluation(
    change: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    definition = yaml.safe_load((DEFINITIONS / "small_sft.yaml").read_text(encoding="utf-8"))
    for key, value in change.items():
        (definition if key in definition else definition["levels"][0])[key] = value
    (tmp_path / "small_sft.yaml").write_text(yaml.safe_dump(definition), encoding="utf-8")
    monkeypatch.setattr("experiments.rows.DEFINITIONS", tmp_path)
    with pytest.raises(UserError, match=message):
        load_experiment("small_sft")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"panels": {"two-sided reward": "two_sided_*"}}, "panels: rl/grpo fits none of two_sided_*"),
        ({"panels": {"two-sided": "twosided_*", "others": "*"}}, "panels: no row is in 'two-sided' (twosided_*)"),
        ({"figure": "overlap"}, "panels: figure is 'overlap'; only a front has panels"),
    ],
)
def test_panels_share_the_rows_of_a_front(
    change: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    definition = yaml.safe_load((DEFINITIONS / "rl.yaml").read_text(encoding="utf-8"))
    (tmp_path / "rl.yaml").write_text(yaml.safe_dump(definition | change), encoding="utf-8")
    monkeypatch.setattr("experiments.rows.DEFINITIONS", tmp_path)
    with pytest.raises(UserError, match=rf"rl\.yaml: {re.escape(message)}$"):
        load_experiment("rl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": "rank/9"}, "reference: 'rank/9' matches none of the table's rows; did you mean 'rank/"),
        ({"usual": "4"}, "usual: '4' matches none of the table's rows"),
        ({"label": "r = {method.rnk} {row}"}, "label: no row has the key 'method.rnk'; did you mean 'method.rank'?"),
        ({"label": "{metod}"}, "label: no row has the key 'metod'; did you mean 'method'?"),
        ({"axis": "method.rnk"}, "axis: no row has the key 'method.rnk'; did you mean 'method.rank'?"),
        ({"axis": None}, "axis: found null; figure is 'curve', whose axis shows a key, as method.rank"),
    ],
)
def test_what_a_table_shows_is_its_rows(
    change: dict[str, object], message: str, definitions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = definitions / "rank.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text(encoding="utf-8")) | change), encoding="utf-8")
    # The row alone has no rank, but the table's others have.
    assert main(["plan", "rank", "suite=check", "rows=table1/*"]) == EXIT_USER_ERROR
    assert capsys.readouterr().err.startswith(f"error: {file}: {message}")


def test_list_names_a_wrong_file_after_the_others(definitions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (definitions / "published.yaml").unlink()
    (definitions / "mine.yaml").write_text("title: [", encoding="utf-8")
    assert main(["list"]) == EXIT_USER_ERROR
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.out.splitlines()] == NAMES
    [line] = printed.err.splitlines()
    assert line.startswith(f"error: {definitions}/mine.yaml: while parsing")


@pytest.mark.parametrize(
    ("name", "defaults", "message"),
    [
        (
            "none",
            "",
            "defaults: picks no model; begin with 'defaults: [/experiment/_paper]' or add '- override /model:",
        ),
        ("null", "defaults:", "Invalid defaults list in 'experiment/mine/null'"),
        ("self", "defaults: [_self_]", "defaults: picks no model; "),
        ("typo", "defaults: [/experiment/_papr]", "In 'experiment/mine/typo': Could not load 'experiment/_papr'"),
        ("broken", "defaults: [", "while parsing a flow sequence"),
    ],
)
def test_a_row_that_picks_no_model_is_named(
    name: str,
    defaults: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(CONF, tmp_path / "conf")
    monkeypatch.setattr("ogpsa.app.compose.CONF", tmp_path / "conf")
    monkeypatch.setattr("experiments.rows.ROWS", tmp_path / "conf" / "experiment")
    monkeypatch.setattr("experiments.rows.DEFINITIONS", tmp_path)
    shutil.copytree(DEFINITIONS / "suites", tmp_path / "suites")
    (tmp_path / "conf" / "experiment" / "mine").mkdir()
    row = tmp_path / "conf" / "experiment" / "mine" / f"{name}.yaml"
    row.write_text(f"# @package _global_\n{defaults}\nmethod: {{rank: 1}}\n", encoding="utf-8")
    table = {"title": "Mine", "rows": ["mine/*"], "label": "{row}", "reference": None, "figure": "none"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(table | {"suites": {"check": [{"seeds": 1}]}}))
    assert main(["plan", "mine", "suite=check"]) == EXIT_USER_ERROR
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith((f"error: {row}: {message}", f"error: {message}"))


def test_list_and_help_say_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == NAMES
    assert main(["--help"]) == 0
    assert "python -m experiments run NAME" in capsys.readouterr().out


def test_a_report_leaves_what_is_committed_alone(tmp_path: Path) -> None:
    assert main(["report", "scope", "suite=check", f"output={tmp_path}"]) == 0
    assert (tmp_path / "reports" / "check" / "scope" / "scope.md").read_text().startswith("# scope: ")
    assert not (ROOT / "experiments" / "results" / "check").exists()


@pytest.mark.slow
def test_a_sweep_file_holds_one_run_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "diversity", "suite=paper", "slurm=true"]) == 0
    lines = (tmp_path / "slurm/sweeps/diversity.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 5
    assert all("seed=0" in line and "stage_store=outputs/paper/stages" in line for line in lines)
    said = "slurm/sweeps/diversity.txt: {}; next: slurm/submit.sh slurm/sweeps/diversity.txt\n"
    assert capsys.readouterr().out == said.format("5 rows added, 0 were there")
    # More seeds are added to what is there; another suite has a file of its own.
    assert main(["run", "diversity", "suite=paper", "seeds=2", "slurm=true"]) == 0
    assert capsys.readouterr().out == said.format("5 rows added, 5 were there")
    assert main(["run", "diversity", "slurm=true"]) == 0
    assert (tmp_path / "slurm/sweeps/diversity-testbed.txt").is_file()


@pytest.mark.slow
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
    # The model's sizes are known without the hub.
    assert "hub" not in printed


@pytest.mark.slow
def test_the_plan_before_the_rows_are_built_rests_on_the_builders_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "table1", "suite=paper", "rows=qwen2_5_7b_dpo_ogpsa,qwen2_5_7b_sft_*y"]) == 0
    printed = capsys.readouterr().out
    rows = {line.split()[0].rpartition("/")[2]: line.split()[1:5] for line in printed.splitlines() if "0/1" in line}
    # 10,000 rows, with replay 13,000, in batches of 128 and of 256 pairs on eight GPUs.
    assert rows["qwen2_5_7b_sft_replay"][1] == "~306" and rows["qwen2_5_7b_dpo_ogpsa"][1] == "~40"
    assert all(float(hours.removeprefix("~")) > 0 for _, _, _, hours in rows.values())
    assert "~: rests on rows that are not built yet" in printed
    assert "outputs/data/safe_rlhf/train.jsonl: no such file; build it: python -m ogpsa.data build safe_rlhf" in printed
    # A share of the rows comes to about 11,000: 320 prompts a generation, which serves two steps of 800 completions.
    # The guard that rewards them is asked about each.
    assert main(["plan", "rl", "suite=paper", "rows=grpo", "eval=testbed"]) == 0
    printed = capsys.readouterr().out
    assert "outputs/data/safe_rlhf_prompts/train.jsonl: no such file" in printed
    assert "rl/grpo  0/1   ~68 " in printed and f"{68 * 800} judge calls" in printed
    wanted = "stage.answerable_ratio=1.0"
    assert main(["plan", "rl", "suite=paper", "rows=two_sided_grpo", wanted]) == 0
    assert "11000 rows wanted for grpo, but reference set 'helpfulness' holds 8000" in capsys.readouterr().out


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.long
def test_a_sweep_that_is_stopped_and_whose_worker_dies_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    """SIGTERM, then SIGKILL for the worker at its task: the other points run, and the same command does the rest."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def sweep(place: str, workers: int = 1) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "experiments", "run", "rank", "suite=check", "rows=1,2,4"]
        command += [f"workers={workers}", f"cache_dir={tmp_path / 'cache'}", f"output={tmp_path / place}"]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)

    undisturbed = sweep("undisturbed", workers=2)
    assert undisturbed.wait() == 0, undisturbed.stderr

    stopped = sweep("disturbed")
    while not list(tmp_path.glob("disturbed/check/*/run.log")):
        time.sleep(0.05)
        assert stopped.poll() is None
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait() == EXIT_REQUEUE

    robbed = sweep("disturbed")
    while not (workers := workers_of(robbed)):
        time.sleep(0.05)
        assert robbed.poll() is None
    os.kill(workers[0], signal.SIGKILL)
    _, printed = robbed.communicate()
    assert robbed.returncode == 1
    [line] = [line for line in printed.splitlines() if line.startswith("failed: rank/") and "signal 9" in line][:1]
    assert line.endswith("its process ended with signal 9; see " + str(tmp_path / "disturbed/check/worker-0.log"))

    last = sweep("disturbed")
    _, printed = last.communicate()
    assert last.returncode == 0, printed
    assert "3 runs in" in printed
    ours, theirs = (
        {path.parent.name: path.read_bytes() for path in (tmp_path / place / "check").glob(f"*/{METRICS_FILE}")}
        for place in ("disturbed", "undisturbed")
    )
    assert len(ours) == 3
    assert ours == theirs
    for name in ours:
        first, second = (
            contents(tmp_path / place / "check" / name / "02-dpo") for place in ("disturbed", "undisturbed")
        )
        assert first["model.safetensors"] == second["model.safetensors"]


@pytest.mark.long
def test_a_row_of_several_processes_is_stopped_and_resumes(tmp_path: Path, small: list[str]) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    own = [
        "distributed=ddp",
        "distributed.processes=2",
        "stage.sft.micro_batch_size=8",
        "stage.dpo.micro_batch_size=4",
    ]
    own += ["stage.sft.max_steps=40", "stage.sft.log_every=1", *small]

    def run(place: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "experiments", "run", "rank", "rows=1", "seeds=1", *own]
        command.append(f"output={tmp_path / place}")
        return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, text=True)

    def log(place: str) -> str:
        return "".join(path.read_text(encoding="utf-8") for path in tmp_path.glob(f"{place}/testbed/*/run.log"))

    stopped = run("disturbed")
    while "sft 10/40" not in log("disturbed"):
        time.sleep(0.05)
        assert stopped.poll() is None
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait() == EXIT_REQUEUE
    assert "sft: saved at step" in log("disturbed")
    assert (run("disturbed").wait(), run("undisturbed").wait()) == (0, 0)
    assert "sft: resumes from checkpoint-" in log("disturbed")
    [ours], [theirs] = ([*tmp_path.glob(f"{place}/testbed/tiny-*")] for place in ("disturbed", "undisturbed"))
    assert (ours / METRICS_FILE).read_bytes() == (theirs / METRICS_FILE).read_bytes()
    assert (ours / "02-dpo/model.safetensors").read_bytes() == (theirs / "02-dpo/model.safetensors").read_bytes()


@pytest.mark.slow
def test_every_kind_of_row_runs_and_every_report_is_written(tmp_path: Path) -> None:
    """Two steps per stage, four rows per benchmark, a model of random weights."""
    own = [f"cache_dir={tmp_path / 'cache'}"]
    found = [
        point
        for name in NAMES
        for point in points(load_experiment(name), "check", RUN.get(name, [FEWER.get(name, "*")]), overrides=own)
    ]
    tasks = tasks_of(found, tmp_path / "check")
    check_tasks(tasks)
    assert execute(tasks, workers=2) == []
    assert all(task.done for task in tasks)
    assert main(["report", "all", "suite=check", f"output={tmp_path}", f"out={tmp_path / 'reports'}", *own]) == 0
    for name in NAMES:
        for ending in ("md", "tex", "csv"):
            assert list((tmp_path / "reports").rglob(f"{name}.{ending}")), name


@pytest.mark.long
def test_every_row_of_every_experiment_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As above, by the commands; the plan then counts all of them as done."""
    given = ["all", "suite=check", f"output={tmp_path}"]
    assert main(["run", *given, "workers=2", f"cache_dir={tmp_path / 'cache'}"]) == 0
    assert main(["plan", *given, f"cache_dir={tmp_path / 'cache'}"]) == 0
    counts = [line for line in capsys.readouterr().out.splitlines() if " runs, " in line]
    assert len(counts) == len(NAMES)
    for line in counts:
        total, _, done, *_ = line.split()
        assert total == done, line
