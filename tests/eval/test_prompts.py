"""Prompts as the chat template renders them: alike on every day, told in every artefact, never two kinds in a file."""

import json
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from eval import __main__ as command
from eval.benchmarks.definition import find_benchmarks
from eval.evaluation import evaluate
from eval.generation.generate import local_model, prepare
from eval.scores.artefacts import read_artefacts
from eval.scores.compare import Drawing, compare
from ogpsa.app.compose import compose_config
from ogpsa.config import Evaluation
from ogpsa.utils.errors import EXIT_DONE, UserError
from ogpsa.utils.files import read_jsonl, write_jsonl
from tests.endpoint_server import Reply, serve
from tests.program import KilledError, contents, killed_after
from tests.tiny import byte_tokenizer, save_tiny

DATED = "{{ strftime_now('%d %b %Y') }}{{ style }}"
GROUPS = {"safety": ["harmful_seen"], "utility": ["facts"], "over_refusal": ["look_alike"]}


@cache
def default_settings() -> Evaluation:
    return compose_config([]).eval


def settings(**changes: Any) -> Evaluation:
    return Evaluation.model_validate(default_settings().model_dump() | GROUPS | {"batch_size": 2} | changes)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = DATED + str(tokenizer.chat_template)
    return save_tiny(tmp_path_factory.mktemp("dated") / "model", tokenizer)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    for [name] in GROUPS.values():
        made = [{"id": f"{name}-{number}", "prompt": f"question {number}", "target": "a"} for number in range(4)]
        write_jsonl(tmp_path / "rows" / f"{name}.jsonl", made)
    return tmp_path / "rows"


def set_day(monkeypatch: pytest.MonkeyPatch, day: int) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, *_: Any) -> Any:
            return datetime(2026, 11, day)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)


def test_an_evaluation_resumed_on_the_next_day_asks_what_it_asked(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_day(monkeypatch, 27)
    evaluate(model, rows, tmp_path / "unbroken", settings())
    with pytest.raises(KilledError):
        evaluate(model, rows, tmp_path / "resumed", settings(), safe_point=killed_after(3))
    set_day(monkeypatch, 28)
    evaluate(model, rows, tmp_path / "resumed", settings())
    assert contents(tmp_path / "resumed") == contents(tmp_path / "unbroken")


def test_every_artefact_tells_the_prompts_hash(model: Path, rows: Path, tmp_path: Path) -> None:
    scores = evaluate(model, rows, tmp_path, settings(template_kwargs={"style": "plain"}))
    for [name] in GROUPS.values():
        generations = read_jsonl(tmp_path / "generations" / f"{name}.jsonl")
        verdicts = read_jsonl(tmp_path / "verdicts" / f"{name}.jsonl")
        [told] = {row["rendered_hash"] for row in (*generations, *verdicts)}
        assert told == scores["benchmarks"][name]["rendered_hash"]
        assert all(row["template_kwargs"] == {"style": "plain"} for row in generations)


@pytest.mark.parametrize("calls", [3, 100], ids=["killed", "finished"])
def test_other_prompts_in_the_same_folder_are_refused_by_name(
    model: Path, rows: Path, tmp_path: Path, calls: int
) -> None:
    output = tmp_path / "output"
    try:
        evaluate(model, rows, output, settings(), safe_point=killed_after(calls))
    except KilledError:
        assert calls == 3
    before = contents(output)
    with pytest.raises(UserError) as caught:
        evaluate(model, rows, output, settings(template_kwargs={"style": "plain"}))
    assert contents(output) == before
    [problem] = caught.value.problems
    assert problem.startswith(f"{output / 'generations'}/")
    assert "model.template_kwargs {} there, {'style': 'plain'} here" in problem
    # Other rows are other prompts, and no mixture.
    assert evaluate(model, rows, output, settings(limit=2))["benchmarks"]["facts"]["n"] == 2


def test_compare_says_that_the_prompts_differ(model: Path, rows: Path, tmp_path: Path) -> None:
    sides: dict[str, dict[str, str]] = {"a": {}, "b": {"style": "plain"}, "c": {"strftime_now": "2024-07-26"}}
    for name, values in sides.items():
        evaluate(model, rows, tmp_path / name, settings(template_kwargs=values))
    a, b, c = (read_artefacts(tmp_path / name) for name in sides)
    [note] = compare(a, b, Drawing(resamples=10)).notes
    assert note.startswith("the prompts differ as the chat templates render them, in harmful_seen, facts, look_alike (")
    assert note.endswith("other templates, or other model.template_kwargs")
    assert compare(a, c, Drawing(resamples=10)).notes == []


def test_a_task_description_is_kept_where_the_template_has_no_system_turn(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    tokenizer.chat_template = refuses + str(tokenizer.chat_template)
    backend = local_model(save_tiny(tmp_path / "model", tokenizer, max_position_embeddings=512), settings())
    [mmlu] = find_benchmarks(["mmlu"])
    row = {"id": "1", "subject": "abstract_algebra", "question": "1 + 1?", "choices": list("1234"), "answer": 1}
    [question] = prepare(backend, mmlu, [row])
    asked = question.requests[0].args[0]
    assert asked.startswith("<user>The following are multiple choice questions (with answers) about abstract algebra.")
    assert "1 + 1?" in asked and "<system>" not in asked


def test_a_server_is_told_what_its_template_is_given(rows: Path, tmp_path: Path) -> None:
    with serve(lambda *_: Reply()) as server:
        words = [
            "eval.backend.name=server", f"eval.backend.base_url={server.url}", "eval.backend.model=m",
            f"eval.data_dir={rows}", f"output={tmp_path / 'output'}", "until=generations",
            *(f"eval.{group}={names}".replace("'", "") for group, names in GROUPS.items()),
        ]  # fmt: skip
        assert command.main([*words, "model.template_kwargs.enable_thinking=false"]) == EXIT_DONE
        assert {json.dumps(request.body["chat_template_kwargs"]) for request in server.requests} == {
            '{"enable_thinking": false}'
        }
