"""``python -m eval mirror``: what W&B reads back is what the run directories hold."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from eval.pareto.collect import collect
from eval.report.mirror import FOLDER, main, mirror
from eval.scores.artefacts import read_artefacts
from ogpsa.app.validate import load_config
from ogpsa.runs.directory import read_stored_config
from ogpsa.runs.tracking import run_id, tracker
from ogpsa.utils.command_line import run_program
from ogpsa.utils.errors import UserError
from ogpsa.utils.files import read_json
from tests.eval.handmade import Benchmark, write_evaluation, write_run

pytestmark = pytest.mark.slow

SAFE = Benchmark([1.0] * 6 + [0.0] * 4, "safety", "refusal_rate", "harmful", judge="refusal_match")
FACTS = Benchmark([1.0] * 8 + [0.0] * 2)
SOME = Benchmark([1.0] * 6 + [0.0] * 2 + [None] * 2)
FEWER = Benchmark([1.0] * 5 + [0.0] * 5)


@pytest.fixture(autouse=True)
def _without_key(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither a key in the environment nor one from an earlier ``wandb login``."""
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / ".netrc"))
    yield
    assert wandb.run is None


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name, overrides in (("a", "method=baseline"), ("b", "method=ogpsa")):
        write_run(tmp_path / "runs" / name, {"safe": SAFE, "facts": FACTS}, {"safe": SAFE, "facts": FEWER}, overrides)
    return tmp_path / "runs"


def offline(folder: Path, identity: str) -> Path:
    [found] = (folder / "wandb").glob(f"offline-run-*-{identity}")
    return found


def read_back(run: Path) -> dict[str, Any]:
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--summary", "--json", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    read: dict[str, Any] = json.loads(done.stdout)
    return read


def table(run: Path, name: str) -> dict[str, Any]:
    [file] = (run / "files" / "media" / "table").glob(f"{name}_*.table.json")
    read: dict[str, Any] = read_json(file)
    return read


def test_runs_are_mirrored_as_they_mirror_themselves(runs: Path, tmp_path: Path) -> None:
    """A run mirrored live by the trainer's own tracker, and the same from its files."""
    stored = read_stored_config(runs / "a" / "config.yaml")
    metrics = read_json(runs / "a" / "metrics.json")
    assert stored is not None
    config = load_config(stored | {"tracker": stored["tracker"] | {"name": "wandb"}})
    with tracker(config, runs / "a", {"revision": "0"}) as live:
        live.log({"train/global_step": 1, "train/stage": "sft", "sft/loss": 2.0, "sft/epoch": 0.5})
        live.log({"train/global_step": 2, "train/stage": "sft", "sft/loss": 1.0, "sft/epoch": 1.0})
        live.log({"train/global_step": 2, "train/stage": "sft", "sft/held_out/safety": 0.5})
        live.summarize(metrics)
    with (runs / "a" / "01-sft" / "history.jsonl").open("a") as history:
        history.write(json.dumps({"eval_held_out_safety_loss": 0.5, "eval_runtime": 1.0, "step": 2}) + "\n")
    ids, left_out = mirror(runs)
    assert left_out == []
    [first] = (runs / "a" / "wandb").glob("offline-run-*")
    again = offline(runs / FOLDER, ids[0])
    assert first.name.endswith(ids[0])
    then, now = read_back(first), read_back(again)
    for key in ("config", "name", "run_id", "project", "state", "exit_code", "step"):
        assert now[key] == then[key]
    own = {key for key in then["summary"] if key[0] != "_" and key != "benchmarks"}
    assert {key: now["summary"][key] for key in own} == {key: then["summary"][key] for key in own}
    assert own >= {"safety", "utility", "sft/loss", "sft/held_out/safety", "train/global_step"}
    assert table(again, "benchmarks") == table(first, "benchmarks")


def test_the_front_is_a_table_and_a_picture(runs: Path) -> None:
    ids, _ = mirror(runs)
    front = offline(runs / FOLDER, ids[-1])
    read = read_back(front)
    assert (read["name"], read["state"]) == ("pareto-runs", "finished")
    found = table(front, "pareto")
    rows = [dict(zip(found["columns"], row, strict=True)) for row in found["data"]]
    (world,) = collect([runs]).worlds
    assert [(row["variant"], row["safety"], row["utility"], row["hypervolume"]) for row in rows] == [
        (group.label, group.scores.safety.mean, group.scores.utility.mean, group.hypervolume) for group in world.groups
    ]
    [picture] = (front / "files" / "media" / "images").glob("front_*.png")
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_second_call_replaces_the_first(runs: Path) -> None:
    first, second = mirror(runs)[0], mirror(runs)[0]
    assert first == second
    assert len(set(first)) == 3
    assert len(list((runs / FOLDER / "wandb").glob("offline-run-*"))) == 3
    # Its files count as neither runs nor evaluations.
    assert len(collect([runs]).worlds[0].groups) == 2
    assert collect([runs]).left_out == []


def test_run_directories_stay_as_they_are(runs: Path) -> None:
    before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    mirror(runs)
    after = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file() and FOLDER not in path.parts}
    assert after == before
    assert read_artefacts(runs / "a" / "eval" / "base").scores["utility"] == 0.8


def test_a_run_of_another_schema_is_mirrored(runs: Path) -> None:
    path = runs / "a" / "config.yaml"
    path.write_text(path.read_text() + "since_removed: 1\n")
    ids, left_out = mirror(runs)
    assert (len(ids), left_out) == (3, [])
    assert read_back(offline(runs / FOLDER, ids[0]))["config"]["since_removed"] == 1


def test_unfinished_runs_are_named(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "b" / "metrics.json").unlink()
    assert main([str(runs)]) == 0
    printed = capsys.readouterr()
    assert printed.err == f"left out: {runs}/b: no metrics.json: the run is not finished\n"
    assert printed.out.startswith("2 W&B runs: ")


def test_evaluations_outside_runs_are_mirrored_too(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_evaluation(runs / "eval" / "02-dpo-quick-12345678", {"safe": SAFE, "facts": SOME})
    ids, left_out = mirror(runs)
    assert (len(ids), left_out) == (4, [])
    copy = offline(runs / FOLDER, ids[-1])
    read, scores = read_back(copy), read_artefacts(folder).scores
    assert ids[-1] == run_id("eval", folder)
    assert (read["name"], read["state"]) == ("eval/02-dpo-quick-12345678", "finished")
    assert {name: read["summary"][name] for name in ("safety", "utility")} == {"safety": 0.6, "utility": 0.75}
    found = table(copy, "benchmarks")
    rows = [dict(zip(found["columns"], row, strict=True)) for row in found["data"]]
    assert [row["benchmark"] for row in rows] == ["safe", "facts"]
    for row in rows:
        assert row["checkpoint"] == "eval/02-dpo-quick-12345678"
        entry = scores["benchmarks"][row["benchmark"]]
        for key in ("group", "value", "stderr", "n", "missing", "low", "high", "metric", "judge"):
            assert row[key] == entry[key]
    # Alone, it is mirrored without a front, under the same id.
    assert mirror(folder) == ([ids[-1]], [])
    assert read_back(offline(folder / FOLDER, ids[-1]))["name"] == "02-dpo-quick-12345678"
    assert run_program(lambda: main([str(runs / "eval"), "--mode", "online"])) == 2
    assert capsys.readouterr().err.startswith("error: tracker.mode: online needs WANDB_API_KEY")


def test_evaluations_are_mirrored_where_no_run_is_finished(runs: Path) -> None:
    for name in "ab":
        (runs / name / "metrics.json").unlink()
    folder = write_evaluation(runs / "alone", {"safe": SAFE})
    ids, left_out = mirror(runs)
    assert ids == [run_id("eval", folder)]
    assert left_out[:2] == [f"{runs / name}: no metrics.json: the run is not finished" for name in "ab"]


def test_the_line_to_sync_them_is_a_shells_whatever_the_folder_is_called(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "it's $HOME; two  words"
    write_evaluation(place / "alone", {"safe": SAFE})
    assert main([str(place)]) == 0
    loop = capsys.readouterr().out.partition("kept offline: ")[2].replace("wandb sync", r"printf '%s\n'")
    done = subprocess.run(["sh", "-c", loop], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(run) for run in (place / FOLDER / "wandb").glob("offline-run-*")]


def test_online_without_a_key_is_refused(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(lambda: main([str(runs), "--mode", "online"])) == 2
    assert capsys.readouterr().err.startswith("error: tracker.mode: online needs WANDB_API_KEY")
    assert not (runs / FOLDER).exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("01-sft/history.jsonl", "x", r"a/01-sft/history\.jsonl:1: not a JSON object"),
        ("provenance.json", "{", r"a/provenance\.json: not readable as JSON"),
        ("config.yaml", "tracker", r"config\.yaml: tracker: found 'mine'; expected the settings of a tracker"),
    ],
)
def test_damaged_files_are_named_before_anything_is_mirrored(runs: Path, file: str, content: str, message: str) -> None:
    path = runs / "a" / file
    if content == "tracker":
        head, _, tail = path.read_text().partition("tracker:\n")
        content = f"{head}tracker: mine\n{tail[tail.index('cache_dir') :]}"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        mirror(runs)
    assert not (runs / FOLDER).exists()


def test_no_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        mirror(tmp_path)
