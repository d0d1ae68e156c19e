"""Tokenizer, template, model and rows that disagree: one line before anything is trained or evaluated."""

import shlex
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import huggingface_hub
import pytest

from eval.__main__ import main as evaluate
from eval.benchmarks.definition import find_benchmarks
from ogpsa.data.__main__ import main as data
from ogpsa.utils.errors import EXIT_DONE, EXIT_USER_ERROR, UserError
from ogpsa.utils.files import read_json, read_jsonl, write_json, write_jsonl
from slurm.submit import check_rows
from slurm.sweep import Sweep, compose_rows, read_lines
from tests.program import run_here
from tests.tiny import byte_tokenizer, save_tiny

PUBLISHED_TEMPLATE = Path(str(files("trl"))) / "chat_templates" / "qwen3.jinja"
THINKS = PUBLISHED_TEMPLATE.read_text(encoding="utf-8").replace("<|im_end|>", "<end>")
CHATML = str(byte_tokenizer().chat_template)
TRAIN = [
    "data=files", "data.safety=rows.jsonl", "model.path=model", "method=baseline", "tracker=none", "hydra.run.dir=run",
]  # fmt: skip
BENCHMARKS = [
    "eval.data_dir=benchmarks", "eval.safety=[harmful_seen]", "eval.utility=[facts]", "eval.over_refusal=[look_alike]",
]  # fmt: skip
EVALUATE = ["checkpoint=model", "output=scores", *BENCHMARKS]
BUILD = [
    "build", "safe_rlhf", "source.path=published.jsonl", "parts={train: 1}", "harmful_answers=0", "output=built",
    "refusals.way=model", "refusals.model.path=model", "refusals.max_tokens=4", "refusals.template_share=1",
]  # fmt: skip
ROW = {"prompt": "Hi?", "chosen": "No.", "rejected": "Yes."}
PUBLISHED = {
    "prompt": "Hi?", "response_0": "Yes.", "response_1": "No.", "is_response_0_safe": False, "is_response_1_safe": True,
    "response_0_severity_level": 3, "response_1_severity_level": 0, "safer_response_id": 1,
}  # fmt: skip


def save(template: str = CHATML, context: int = 1024) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    save_tiny(Path("model"), tokenizer, max_position_embeddings=context)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("rows.jsonl"), [ROW, ROW])
    write_jsonl(Path("published.jsonl"), [PUBLISHED])
    for benchmark in find_benchmarks(["harmful_seen", "facts", "look_alike"]):
        write_jsonl(Path("benchmarks", f"{benchmark.rows}.jsonl"), [{"id": "1", "prompt": "a", "target": "b"}])
    save()


def train(stage: str, *overrides: str) -> tuple[int, list[str]]:
    """The exit code, and the errors."""
    sections = ["stage.sft", "stage.dpo"] if stage == "sft_dpo" else ["stage"]
    given = [*TRAIN, *BENCHMARKS, f"stage={stage}", *small(*sections)]
    if "-m" in overrides:
        given.remove("hydra.run.dir=run")
    result = run_here(*given, *overrides, cwd=Path.cwd())
    return result.code, errors(result.stderr)


def small(*sections: str) -> list[str]:
    return [f"{section}.{key}=1" for section in sections for key in ("batch_size", "micro_batch_size", "max_steps")]


def errors(printed: str) -> list[str]:
    return [line.removeprefix("error: ") for line in printed.splitlines() if line.startswith("error: ")]


def no_end() -> None:
    settings = read_json(Path("model/tokenizer_config.json"))
    del settings["pad_token"], settings["eos_token"]
    write_json(Path("model/tokenizer_config.json"), settings)


def one_token_more() -> None:
    settings = read_json(Path("model/tokenizer_config.json"))
    write_json(Path("model/tokenizer_config.json"), settings | {"extra_special_tokens": ["<extra>"]})


WAYS: dict[str, Callable[[], tuple[int, list[str]]]] = {
    "sft": lambda: train("sft"),
    "dpo": lambda: train("dpo"),
    "preflight": lambda: train("sft", "preflight=true"),
}


@pytest.mark.parametrize("way", ["sft", pytest.param("dpo", marks=pytest.mark.long), "preflight"])
@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (no_end, "model: the tokenizer has neither pad_token nor eos_token"),
        (one_token_more, "model: token '<extra>' has id 261, but the model's embedding holds 261 rows"),
        (lambda: save(CHATML.replace("<end>", "<user>")), "but generation stops at '<end>' alone"),
        (lambda: save(CHATML + "{{ ['a', 'b'] | random }}"), "model: the chat template draws at random"),
        (lambda: save(THINKS), "model: safety set, row 1: in training the chat template puts "
         "'<think>\\n\\n</think>\\n\\n' in front of the answer, in evaluation it does not; "
         "+model.template_kwargs.enable_thinking=false makes them equal"),
        (lambda: save(context=32), "max_length: 64 tokens, but the context of model is 32; lower it"),
    ],
    ids=["no end", "token", "other end", "random", "thoughts", "context"],
)  # fmt: skip
def test_a_run_is_refused_before_it_evaluates(spoil: Callable[[], None], line: str, way: str) -> None:
    spoil()
    code, problems = WAYS[way]()
    assert code == EXIT_USER_ERROR
    [problem] = problems
    assert line in problem
    assert not Path("run").exists()


def test_an_answer_needs_room_in_the_context() -> None:
    save(context=24)
    code, problems = train("sft", "stage.max_length=16")
    assert code == EXIT_USER_ERROR
    assert problems == [
        f"eval: '{name}' takes answers of up to 24 tokens, but the context of model is 24"
        for name in ("harmful_seen", "facts", "look_alike")
    ]


def test_no_point_of_a_sweep_begins_where_one_is_refused() -> None:
    Path("model").rename("good")
    save(THINKS)
    code, problems = train("sft", "model.path=good,model", "hydra.sweep.dir=runs", "-m")
    assert code == EXIT_USER_ERROR
    [problem] = problems
    assert " model.path=model " in problem and "model: safety set, row 1: in training" in problem
    assert not Path("runs").exists()


def test_a_row_is_refused_before_it_is_queued(tmp_path: Path) -> None:
    no_end()
    sweep = Sweep(tmp_path / "study.txt", tmp_path / "outputs")
    words = [word for word in (*TRAIN, *BENCHMARKS, "stage=sft", *small("stage")) if "run.dir" not in word]
    sweep.file.write_text(f"seed=1 {shlex.join(words)}\nseed=2 {shlex.join(words)}\n")
    with pytest.raises(UserError) as caught:
        check_rows(sweep, compose_rows(sweep, read_lines(sweep.file)), 1)
    [problem] = caught.value.problems
    assert problem.startswith(f"{sweep.file}:1: model: the tokenizer has neither pad_token nor eos_token")


def test_a_key_mends_what_differs() -> None:
    save(THINKS)
    room = ["stage.sft.max_length=128", "stage.dpo.max_length=128"]
    mended = train("sft_dpo", "preflight=true", "+model.template_kwargs.enable_thinking=false", *room)
    assert mended == (EXIT_DONE, [])


@pytest.mark.parametrize("method", ["ogpsa", "nspo"])
def test_reference_sets_are_compared_too(method: str) -> None:
    save(CHATML.replace("message.content +", "(message.content | replace('?!', '?')) +"))
    write_jsonl(Path("other.jsonl"), [ROW, ROW | {"chosen": "Why?!"}])
    sets = "+data.reference_sets={helpfulness: rows.jsonl, truthfulness: other.jsonl}"
    code, [problem] = train("sft", f"method={method}", "method.samples=1", sets)
    assert code == EXIT_USER_ERROR
    assert problem == (
        "model: reference set 'truthfulness', row 2: the chat template does not write the answer as it stands in the "
        "row, but 'Why?<end>'; use a template that renders both alike"
    )


def test_evaluation_differs_from_training_in_no_variable() -> None:
    code, problems = train("sft", "preflight=true", "++eval.template_kwargs={style: plain}")
    assert code == EXIT_USER_ERROR
    assert problems == ["eval.template_kwargs: not as in training; set model.template_kwargs, which both read"]


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (no_end, "model: the tokenizer has neither pad_token nor eos_token"),
        (one_token_more, "model: token '<extra>' has id 261"),
        (lambda: save(CHATML.replace("<end>", "<user>")), "but generation stops at '<end>' alone"),
        (lambda: save(context=12), "context of 12"),
    ],
    ids=["no end", "token", "other end", "context"],
)
@pytest.mark.parametrize("command", [evaluate, data], ids=["evaluation alone", "builder"])
def test_other_commands_are_refused_too(
    command: Callable[[list[str]], int], spoil: Callable[[], None], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil()
    capsys.readouterr()
    assert command(EVALUATE if command is evaluate else BUILD) == EXIT_USER_ERROR
    [problem] = errors(capsys.readouterr().err)
    assert line in problem
    assert not list(Path("scores").glob("generations/*.jsonl")) and not Path("built/card.json").exists()


def test_a_builder_keeps_its_system_prompt_where_the_template_has_no_place_for_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    save("{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML)
    assert data(BUILD) == EXIT_DONE
    assert caplog.messages == [
        "model: the chat template has no system's turn; system prompts and task descriptions are put in front of the "
        "user's turn"
    ]


@pytest.mark.slow
def test_pins_hold_from_the_base_to_the_last_checkpoint() -> None:
    save("{{ strftime_now('%d %b %Y') }}{{ style }}" + CHATML)
    assert train("sft_dpo", "+model.template_kwargs.style=plain") == (EXIT_DONE, [])
    files_of = {kind: [*Path("run/eval").glob(f"*/{kind}/facts.jsonl")] for kind in ("generations", "verdicts")}
    hashes = {row["rendered_hash"] for found in files_of.values() for file in found for row in read_jsonl(file)}
    scores = [read_json(path) for path in Path("run/eval").glob("*/scores.json")]
    hashes |= {score["benchmarks"]["facts"]["rendered_hash"] for score in scores}
    assert len(scores) == 3 and len(hashes) == 1 and None not in hashes
    # Alone, a checkpoint of the run is asked as in the run, also where its configuration is not at hand.
    asked_alone = [["checkpoint=run/02-dpo"], ["checkpoint=moved/02-dpo", *BENCHMARKS]]
    for number, words in enumerate(asked_alone):
        if number:
            Path("moved").mkdir()
            Path("run/02-dpo").rename("moved/02-dpo")
        assert evaluate([*words, f"output=again{number}"]) == EXIT_DONE
        assert {row["rendered_hash"] for row in read_jsonl(Path(f"again{number}/generations/facts.jsonl"))} == hashes
    # The base is asked so only with the same values.
    for name, values in {"other": [], "same": ["model.template_kwargs.style=plain"]}.items():
        assert evaluate(["checkpoint=model", *BENCHMARKS, f"output={name}", *values]) == EXIT_DONE
        asked = {row["rendered_hash"] for row in read_jsonl(Path(name, "generations", "facts.jsonl"))}
        assert (asked == hashes) == (name == "same")


def test_a_hub_models_tokenizer_is_checked_where_the_cache_has_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = tmp_path / "hub" / "models--somebody--model"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0123")
    save(THINKS)
    (place / "snapshots").mkdir()
    Path("model").rename(place / "snapshots" / "0123")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    code, [problem] = train("sft", "preflight=true", "model.path=somebody/model")
    assert code == EXIT_USER_ERROR
    assert "safety set, row 1: in training the chat template puts" in problem
    (place / "snapshots" / "0123" / "tokenizer_config.json").unlink()
    words = [*TRAIN, *BENCHMARKS, "stage=sft", *small("stage"), "preflight=true", "model.path=somebody/model"]
    result = run_here(*words, cwd=tmp_path)
    assert result.stdout.endswith("somebody/model is not in the hub's cache: tokenizer and template not checked\n")
