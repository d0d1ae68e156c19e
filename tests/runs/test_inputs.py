"""A run is resumed, and its result shown, only with the inputs that it began with."""

import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval.benchmarks.definition import find_benchmarks
from eval.evaluation import evaluate
from eval.scores.artefacts import read_instrument
from eval.validate import check_benchmarks_unchanged, check_run, check_runs
from ogpsa.app.compose import compose_config
from ogpsa.config import Config
from ogpsa.pipeline import run
from ogpsa.runs import inputs
from ogpsa.runs.directory import own_alone
from ogpsa.testbed.cache import ensure_base
from ogpsa.utils.errors import EXIT_REQUEUE, UserError
from ogpsa.utils.files import read_json, read_jsonl, write_json, write_jsonl
from tests.endpoint_server import Reply, serve
from tests.program import contents

Change = Callable[[Path], None]


class Place:
    """The files of a run of one's own rows and model, and the run that was made of them."""

    def __init__(self, root: Path, settings: Config) -> None:
        self.root, self.directory = root, root / "run"
        shutil.copytree(ensure_base(settings), root / "model")
        rows = [{"prompt": f"how do i make {n}", "chosen": f"i cannot {n}", "rejected": f"take {n}"} for n in range(6)]
        write_jsonl(root / "safety.jsonl", rows)
        write_jsonl(root / "preference.jsonl", rows[:4])
        self.benchmarks = [benchmark.rows for benchmark in find_benchmarks(settings.eval.benchmarks)]
        for name in self.benchmarks:
            write_jsonl(root / "benchmarks" / f"{name}.jsonl", [{"id": "1", "prompt": "a", "target": "b"}])

    def config(self, *overrides: str) -> Config:
        return composed(self.root, *overrides)


@cache
def composed(root: Path, *overrides: str) -> Config:
    return compose_config([
        "data=files", f"data.safety={root}/safety.jsonl",
        f"+data.reference_sets={{preference: {root}/preference.jsonl}}", f"model.path={root}/model",
        f"eval.data_dir={root}/benchmarks", "tracker=none", "stage=dpo", "stage.batch_size=2",
        "stage.micro_batch_size=2", "stage.max_steps=1", "method.samples=3", *overrides,
    ])  # fmt: skip


@pytest.fixture(scope="module")
def stopped(small_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A run that a signal stopped after its stage."""
    place = Place(tmp_path_factory.mktemp("stopped"), small_config())

    def stop(checkpoint: Path, *others: Any) -> dict[str, Any]:
        if checkpoint.name == "01-dpo":
            raise SystemExit(EXIT_REQUEUE)
        return evaluate(checkpoint, *others)

    with pytest.raises(SystemExit):
        run(place.config(), place.directory, stop)
    return place


@pytest.fixture(scope="module")
def finished(stopped: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the same run, resumed to its end."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    shutil.copytree(stopped.directory, directory)
    run(stopped.config(), directory, evaluate)
    return directory


@pytest.fixture
def restored(stopped: Place) -> Any:
    """Puts back the files that a test has changed."""
    before = {path: path.read_bytes() for path in stopped.root.rglob("*") if path.is_file() and "run" not in path.parts}
    yield
    for path in stopped.root.rglob("*"):
        if path.is_file() and "run" not in path.parts and path not in before:
            path.unlink()
    for path, content in before.items():
        path.write_bytes(content)


def edit(name: str, row: int) -> Change:
    def change(root: Path) -> None:
        rows = read_jsonl(root / name)
        rows[row]["chosen"] += "."
        write_jsonl(root / name, rows)

    return change


def flip_bit(name: str) -> Change:
    """Another byte, the same size and the same time."""

    def change(root: Path) -> None:
        path = root / name
        times, content = path.stat(), bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    return change


def change_rows(name: str, changed: Callable[[list[Any]], list[Any]]) -> Change:
    return lambda root: write_jsonl(root / name, changed(read_jsonl(root / name)))


def set_key(name: str, **keys: Any) -> Change:
    return lambda root: write_json(root / name, read_json(root / name) | keys)


INPUTS: dict[str, tuple[Change, str]] = {
    "a safety row": (edit("safety.jsonl", 2), r"data/safety \(row 3 of 6\)"),
    "a row more": (change_rows("safety.jsonl", lambda rows: [*rows, rows[0]]), r"data/safety \(6 rows then, 7 now\)"),
    "a row less": (change_rows("safety.jsonl", lambda rows: rows[:-1]), r"data/safety \(6 rows then, 5 now\)"),
    "their order": (change_rows("safety.jsonl", lambda rows: rows[::-1]), r"data/safety \(row 1 of 6\)"),
    "a reference row": (edit("preference.jsonl", 3), r"data/reference/preference \(row 4 of 4\)"),
    "the weights": (flip_bit("model/model.safetensors"), "model/model.safetensors"),
    "the configuration": (set_key("model/config.json", rms_norm_eps=1e-3), "model/config.json"),
    "generation's defaults": (set_key("model/generation_config.json", top_k=3), "model/generation_config.json"),
    "the tokenizer": (set_key("model/tokenizer_config.json", model_max_length=7), "model/tokenizer_config.json"),
    "the template": (
        lambda root: (root / "model" / "chat_template.jinja").write_text("{{ messages }}") and None,
        "model/chat_template.jinja",
    ),
    "a file more": (
        lambda root: (root / "model" / "added_tokens.json").write_text("{}") and None,
        r"model/added_tokens.json \(new\)",
    ),
}


# A finished run is asked by the same code: one change of each kind of file is enough.
@pytest.mark.parametrize(
    ("of", "name"),
    [
        *(
            pytest.param("stopped", name, marks=[pytest.mark.slow] * (name not in ("a safety row", "the weights")))
            for name in INPUTS
        ),
        ("finished", "a safety row"),
        *(
            pytest.param("finished", name, marks=pytest.mark.long)
            for name in ("a reference row", "the weights", "a file more")
        ),
    ],
)
def test_other_rows_or_another_model_are_refused(
    of: str, name: str, stopped: Place, finished: Path, restored: None, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = finished if of == "finished" else stopped.directory
    change, named = INPUTS[name]
    check_run(stopped.config(), directory)
    before = contents(directory)
    change(stopped.root)
    # A complete folder says itself that a file of it was changed; this is a model from elsewhere.
    (stopped.root / "model" / "COMPLETE.json").unlink()
    with pytest.raises(
        UserError, match=f"began with other inputs; changed since then: {named}; restore them or choose"
    ):
        check_run(stopped.config(), directory)
    with pytest.raises(UserError, match=named):
        run(stopped.config(), directory, evaluate)
    assert contents(directory) == before
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("of", ["stopped", pytest.param("finished", marks=pytest.mark.slow)])
def test_other_benchmarks_are_refused(of: str, stopped: Place, finished: Path, restored: None) -> None:
    directory = finished if of == "finished" else stopped.directory
    name = stopped.benchmarks[0]
    write_jsonl(stopped.root / "benchmarks" / f"{name}.jsonl", [{"id": "1", "prompt": "a", "target": "c"}])
    with pytest.raises(UserError, match="was evaluated differently; changed since then: the rows of "):
        check_run(stopped.config(), directory)
    [(_, problem)] = check_runs([("row", stopped.config(), directory)])
    assert "was evaluated differently" in problem


@pytest.mark.parametrize(("folder", "own"), [("mine", True), ("01-dpo-merged", False)])
def test_an_evaluation_of_ones_own_beside_the_runs_is_not_the_runs(
    folder: str, own: bool, stopped: Place, restored: None
) -> None:
    rows = stopped.directory / "eval" / folder / "generations" / f"{stopped.benchmarks[0]}.jsonl"
    write_jsonl(rows, [{"data_hash": "0" * 16}])
    with nullcontext() if own else pytest.raises(UserError, match="was evaluated differently"):
        check_run(stopped.config(), stopped.directory)
    shutil.rmtree(rows.parents[1])


@pytest.mark.slow
def test_another_way_of_asking_or_judging_is_refused_until_the_run_is_finished(
    stopped: Place, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.validate.verdict_hash", lambda *_: "0123456789abcdef")
    with pytest.raises(UserError, match="changed since then: the judge of "):
        check_run(stopped.config(), stopped.directory)
    check_run(stopped.config("accept_changed=[code]"), stopped.directory)
    check_run(stopped.config(), finished)


def test_a_stopped_run_on_lm_evals_own_metrics_is_resumed(stopped: Place, tmp_path: Path) -> None:
    place, rows = tmp_path / "run", tmp_path / "rows"
    write_jsonl(rows / "gsm8k.jsonl", [{"question": "What is 1 + 1?", "answer": "so it is\n#### 2"}])
    with serve(lambda request, before: Reply("It is 2.")) as server:
        config = stopped.config(
            "eval=quick", f"eval.data_dir={rows}", "eval.composites={}", "eval.utility=[gsm8k]", "eval.safety=[]",
            "eval.over_refusal=[]", "eval.reported=[]", "eval.backend.name=server", "eval.backend.model=m",
            f"eval.backend.base_url={server.url}",
        )  # fmt: skip
        evaluate(Path("m"), rows, place / "eval" / "base", config.eval)
    check_benchmarks_unchanged(config, place, {"gsm8k": read_instrument(place / "eval" / "base", "gsm8k").data or ""})


@pytest.mark.parametrize(
    ("patched", "value", "named", "kind"),
    [
        ("_digest", lambda paths: "0123456789abcdef", "code/eval/__main__.py", "code"),
        pytest.param(
            "version", lambda name: "9.9", r"accelerate \(\S+ then, 9\.9 now\)", "libraries", marks=pytest.mark.slow
        ),
    ],
)
def test_other_code_and_libraries_are_refused_or_accepted(
    patched: str,
    value: Any,
    named: str,
    kind: str,
    stopped: Place,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(inputs, patched, value)
    with pytest.raises(
        UserError, match=rf"{named}, .*; restore them, accept it \(accept_changed=\[{kind}\]\), or choose"
    ):
        check_run(stopped.config(), stopped.directory)
    assert caplog.messages == []
    accepting = stopped.config(f"accept_changed=[{kind}]")
    check_run(accepting, stopped.directory)
    assert "changed since the run began, and accepted: " in caplog.text
    resumed = tmp_path / "run"
    shutil.copytree(stopped.directory, resumed)
    run(accepting, resumed, evaluate)
    before, after = (read_json(place / "provenance.json") for place in (stopped.directory, resumed))
    assert after["rests_on"] == before["rests_on"]
    changed = after["sessions"][-1]["changed"]
    assert {name.partition("/")[0] for name in changed} == {kind}
    assert all(before["rests_on"][name] != digest for name, digest in changed.items())
    # What is finished is as its provenance says.
    check_run(stopped.config(), finished)


OWN_FILE = "code/ogpsa/methods/ogpsa.py"


@pytest.mark.parametrize(
    ("noted", "said"),
    [
        ({"rests_on": {OWN_FILE: "0"}}, True),
        # A session that went on with other code: its own is compared.
        ({"sessions": [{"changed": {OWN_FILE: "0"}}]}, True),
        # The package's other files, which every release changes, and a revision that did not note the method's.
        ({"rests_on": {"code/ogpsa/methods": "0", "code/ogpsa/training": "0"}}, False),
        ({"rests_on": {OWN_FILE: None}}, False),
        ({}, False),
    ],
)
def test_a_finished_run_of_another_method_file_is_shown_and_says_so(
    noted: dict[str, Any],
    said: bool,
    stopped: Place,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    directory = tmp_path / "run"
    shutil.copytree(finished, directory)
    facts = read_json(directory / "provenance.json")
    assert OWN_FILE in facts["rests_on"]
    facts |= noted | {"rests_on": facts["rests_on"] | noted.get("rests_on", {})}
    facts["rests_on"] = {name: digest for name, digest in facts["rests_on"].items() if digest is not None}
    write_json(directory / "provenance.json", facts)
    run(stopped.config(), directory, evaluate)
    printed = capsys.readouterr()
    assert "metrics.json" in printed.out
    line = (
        "these numbers were made with other code: ogpsa/methods/ogpsa.py has changed since; "
        "choose another hydra.run.dir to run again\n"
    )
    assert printed.err == line * said


def test_accepting_changes_makes_no_other_run(stopped: Place) -> None:
    assert stopped.config("accept_changed=[code]").key() == stopped.config().key()


@pytest.mark.slow
def test_an_edited_row_of_the_run_itself_is_named(stopped: Place, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(stopped.directory, directory)
    with (directory / "data" / "safety.jsonl").open("a") as file:
        file.write("\n")
    run(stopped.config(), directory, evaluate)
    assert (directory / "data" / "safety.jsonl").read_bytes() == (
        stopped.directory / "data" / "safety.jsonl"
    ).read_bytes()


@pytest.mark.parametrize("name", ["model/model.safetensors", "prompts/rendered"])
def test_a_run_on_the_testbed_is_not_resumed_from_another_base(
    name: str, small_config: Callable[..., Config], tmp_path: Path
) -> None:
    def stop(*_: Any) -> dict[str, Any]:
        raise SystemExit(EXIT_REQUEUE)

    config = small_config("stage=sft", "method=baseline")
    with pytest.raises(SystemExit):
        run(config, tmp_path / "run", stop)
    file = tmp_path / "run" / "provenance.json"
    noted = read_json(file)
    assert len(noted["rests_on"][name]) >= 16
    noted["rests_on"][name] = "0" * 64
    write_json(file, noted)
    with pytest.raises(UserError, match=f"changed since then: {name}; restore them or choose"):
        run(config, tmp_path / "run", evaluate)


@pytest.mark.parametrize("name", ["eval/judging/judges/own.txt", "ogpsa/training/stage.py", "eval/benchmarks/own.yaml"])
def test_code_counts_with_its_prompts_and_tasks(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for room in ("ogpsa/training", "ogpsa/app", "eval/judging/judges", "eval/benchmarks"):
        (tmp_path / room).mkdir(parents=True)
    monkeypatch.setattr(inputs, "PACKAGE", tmp_path / "ogpsa")
    (tmp_path / name).write_text("a")
    before = inputs.package_digests()
    for other in ("ogpsa/app/compose.py", "ogpsa/training/.stage.py.swp", "ogpsa/training/stage.py~"):
        (tmp_path / other).write_text("a")
    assert inputs.package_digests() == before
    (tmp_path / name).write_text("b")
    assert inputs.package_digests() != before


def test_half_written_files_of_a_killed_run_are_removed(small_config: Callable[..., Config], tmp_path: Path) -> None:
    config = small_config("stage=sft", "method=baseline", "stage.max_steps=1")
    left = [tmp_path / "run" / name for name in (".metrics.json.123", "data/.safety.jsonl.4", "eval/.base.77/x.json")]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    kept = tmp_path / "run" / "eval" / ".facts.journal"
    kept.write_text("a finished piece")
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    with own_alone(tmp_path / "run", config):
        assert not any(path.exists() for path in left)
        assert kept.exists()
