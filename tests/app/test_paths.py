"""Paths as people type them, on every command line of KEY=VALUE words."""

import json
import shlex
from pathlib import Path

import pytest

from eval.__main__ import main as evaluate_main
from experiments.__main__ import parse
from ogpsa.app.compose import compose_config, compose_run
from ogpsa.utils.errors import UserError
from ogpsa.utils.files import mark_complete


@pytest.mark.parametrize(
    "path", ["/a=b", "/a(b)", "/a#b", "/a[1]", "/модель", "/模型", "/é", "/it's", '/a"b', "/a{b}", "/a&b", "/a~b#\\"]
)
@pytest.mark.parametrize("key", ["model.path", pytest.param("cache_dir", marks=pytest.mark.long)])
def test_what_hydra_would_parse_is_shown_with_quotes(key: str, path: str) -> None:
    with pytest.raises(UserError) as raised:
        compose_config([f"{key}={path}"])
    [problem] = raised.value.problems
    assert problem.startswith(
        f"invalid override '{key}={path}' (Hydra reads some of its characters as its own); write "
    )
    # What it says is right, as a shell reads it.
    [word] = shlex.split(problem.rpartition("; write ")[2])
    config = compose_config([word])
    assert {"model.path": config.model.path, "cache_dir": config.cache_dir}[key] == path


def test_a_comma_in_a_path_is_said_with_its_quotes() -> None:
    with pytest.raises(UserError, match=r"""or 'model\.path="/a,b"' for the text$"""):
        compose_config(["model.path=/a,b"])
    assert compose_config(['model.path="/a,b"']).model.path == "/a,b"


@pytest.mark.parametrize(("word", "quoted"), [("[x]", "…"), ("12", "12"), ("1.5", "1.5"), ("{a: 1}", "…")])
def test_a_text_that_reads_as_something_else_takes_quotes(word: str, quoted: str) -> None:
    with pytest.raises(UserError, match=rf"""takes quotes: 'model\.path="{quoted}"'$"""):
        compose_config([f"model.path={word}"])


def test_the_home_folder_in_every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    words = [
        "data=files", "data.safety=~/rows.jsonl", "+data.reference_sets.a=~/a.jsonl", "method=baseline",
        "model.path='~/a b'", "cache_dir=~", "stage_store=~/store", "eval.data_dir=~/rows", "hydra.run.dir=~/run",
        "+eval.judge.prompt_file.x=~/x.txt",
    ]  # fmt: skip
    config, directory = compose_run(words)
    assert config.data.name == "files"
    assert (config.data.safety, config.data.reference_sets) == ("/home/me/rows.jsonl", {"a": "/home/me/a.jsonl"})
    assert (config.model.path, config.cache_dir, config.stage_store) == ("/home/me/a b", "/home/me", "/home/me/store")
    assert (config.eval.data_dir, directory) == ("/home/me/rows", Path("/home/me/run"))
    assert config.eval.judge.prompt_file == {"x": "/home/me/x.txt"}
    assert parse(["table1", 'output="~/out"']).output == Path("/home/me/out")


def _evaluated(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert evaluate_main(words) == 2
    return capsys.readouterr().err


def test_a_runs_directory_stands_for_its_last_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "a=b"
    run.mkdir()
    (run / "config.yaml").write_text("eval: null\n", encoding="utf-8")
    word = f'checkpoint="{run}"'
    none = f"error: checkpoint: {run} is a run's directory without a finished checkpoint; let the run end\n"
    assert _evaluated(capsys, word) == none
    (run / "config.yaml").unlink()
    (run / "config.yaml").write_text(json.dumps({"eval": compose_config(["tracker=none"]).eval.model_dump()}))
    for name in ("01-sft", "02-dpo"):
        (run / name).mkdir()
        mark_complete(run / name, {})
    said = _evaluated(capsys, word, f"output={tmp_path / 'out'}", "eval.data_dir=" + str(tmp_path))
    assert said.startswith(f"error: checkpoint: {run / '02-dpo'} is not a checkpoint: config.json, ")


def test_an_adapters_folder_is_named_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/x"}', encoding="utf-8")
    said = f"{adapter} holds an adapter of Qwen/x, not a model; add it to the weights first (peft: merge_and_unload"
    words = (f"checkpoint={adapter}", f"eval.data_dir={tmp_path}", f"output={tmp_path / 'out'}")
    assert said in _evaluated(capsys, *words)
    from ogpsa.models.files import check_weights

    with pytest.raises(UserError) as raised:
        check_weights(adapter, "model.path", "")
    assert said in str(raised.value)
