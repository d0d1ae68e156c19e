"""``python -m eval export``: every item in one table, and logs that Inspect's own package reads."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from eval.report.export import main
from ogpsa.utils.command_line import run_program
from tests.eval.handmade import Benchmark, write_evaluation, write_run
from tests.program import ROOT

SAFE = Benchmark(
    [1.0, 0.0, None], "safety", "refusal_rate", "harmful", judge="refusal_match", prompt="how to …",
    categories=["fraud", "fraud", "weapons"],
)  # fmt: skip
FACTS = Benchmark([1.0, 0.0])
INSPECT = ROOT / ".venv" / "inspect" / "bin" / "python"
READ = """
import json, sys
from inspect_ai.analysis import samples_df
from inspect_ai.log import bundle_log_dir, list_eval_logs, read_eval_log
folder, bundle = sys.argv[1:]
logs = [read_eval_log(log) for log in list_eval_logs(folder)]
heads = [[log.eval.task, log.eval.model, len(log.samples), log.results.scores[0].unscored_samples] for log in logs]
frame = samples_df(folder)
first = frame.loc[frame["id"] == "harmful-0"].iloc[0]
bundle_log_dir(folder, bundle)
print(json.dumps({
    "logs": sorted(heads),
    "safe": frame["score_refusal_match"].dropna().astype(float).tolist(),
    "first": {key: str(first[key]) for key in ("input", "target", "metadata_category")},
}))
"""


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A run with its base's evaluation, and an evaluation on its own."""
    write_run(
        tmp_path / "results" / "run", {"safe": SAFE, "facts": FACTS}, {"safe": SAFE, "facts": FACTS}, "method=ogpsa"
    )
    write_evaluation(tmp_path / "results" / "alone", {"safe": replace(SAFE, values=[1.0, 1.0, 1.0])})
    return tmp_path / "results"


def test_every_item_of_every_evaluation_is_a_row(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(results)]) == 0
    assert capsys.readouterr().out == f"{results}/results.parquet\n"
    rows: list[dict[str, Any]] = pq.read_table(results / "results.parquet").to_pylist()
    places = [(None, "alone")] * 3 + [("run", "01-sft")] * 5 + [("run", "base")] * 5
    assert [(row["run"], row["checkpoint"]) for row in rows] == places
    run = [row for row in rows if row["checkpoint"] == "01-sft"]
    assert {(row["method"], row["model"], row["seed"]) for row in run} == {("ogpsa", "tiny", 0)}
    assert [(row["benchmark"], row["id"], row["value"]) for row in run] == [
        ("safe", "harmful-0", 1.0), ("safe", "harmful-1", 0.0), ("safe", "harmful-2", None),
        ("facts", "item-0", 1.0), ("facts", "item-1", 0.0),
    ]  # fmt: skip
    first = run[0]
    assert [first[key] for key in ("prompt", "response", "category", "group", "judge", "verdict", "detail")] == [
        "how to …", "answer 0", "fraud", "safety", "refusal_match", "label 1.0", "{}"
    ]  # fmt: skip


def test_logs_of_the_same_evaluation_take_the_earlier_ones_place(results: Path, tmp_path: Path) -> None:
    arguments = [str(results), "--inspect", str(tmp_path / "logs")]
    assert main(arguments) == 0
    first = sorted(path.name for path in (tmp_path / "logs").iterdir())
    os.utime(results / "alone" / "scores.json", (0, 0))
    assert main(arguments) == 0
    again = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert len(again) == len(first) == 5
    assert len(set(first) & set(again)) == 4
    assert again[0].startswith("1970-01-01T00-00-00")


@pytest.mark.skipif(not INSPECT.exists(), reason="needs make install-inspect")
def test_inspect_reads_the_logs(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(results), "--inspect", str(tmp_path / "logs")]) == 0
    assert f"{tmp_path}/logs: 5 logs\n" in capsys.readouterr().out
    command = [INSPECT, "-c", READ, tmp_path / "logs", tmp_path / "bundle"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = json.loads(done.stdout.splitlines()[-1])
    models = ["ogpsa/run/eval/01-sft", "ogpsa/run/eval/base"]
    expected = [["facts", model, 2, 0] for model in models] + [["safe", model, 3, 1] for model in models]
    assert found["logs"] == sorted([*expected, ["safe", "ogpsa/alone", 3, 0]])
    # A missing verdict is not a score.
    assert sorted(found["safe"]) == [0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert found["first"] == {"input": "user:\nhow to …\n", "target": "a target", "metadata_category": "fraud"}
    assert (tmp_path / "bundle" / "index.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resluts"], "DIR: resluts: no such directory; did you mean 'results'?"),
        (["empty"], "DIR: empty: holds no evaluation (scores.json)"),
        (["unjudged"], "results.parquet: none of the 1 evaluations has verdicts"),
        (["results", "--out", "file/x.parquet"], "--out: file is a file; choose another directory"),
        (["results", "--inspect", "file"], "--inspect: file is a file; choose another directory"),
    ],
)
def test_bad_input_takes_one_line(
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(results.parent)
    Path("empty").mkdir()
    Path("unjudged").mkdir()
    write_evaluation(Path("unjudged"), {"safe": replace(SAFE, values=[], error="no rows")})
    Path("file").write_text("")
    assert run_program(lambda: main(arguments)) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
