"""Values that are not numbers: named with their place before they become a weight or a score."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from eval.__main__ import main
from eval.benchmarks.definition import find_benchmarks
from eval.judging.judge import Item, RuleJudge, Verdict
from eval.judging.verdicts import judge_responses, open_journal
from ogpsa.app.compose import compose_config
from ogpsa.config import Config
from ogpsa.data.rows import load_data
from ogpsa.models.generate import Generator
from ogpsa.models.load import load_model
from ogpsa.training.trainer import build_trainer
from ogpsa.utils.errors import UserError
from ogpsa.utils.files import write_json, write_jsonl
from tests.program import run_here
from tests.tiny import byte_tokenizer, tiny_model

Row = dict[str, str]
TOKENIZER = byte_tokenizer()
STEPS = ["stage.batch_size=2", "stage.micro_batch_size=2", "stage.log_every=1", "tracker=none", "stage.max_length=64"]
BENCHMARKS = ["facts", "harmful_seen", "look_alike"]
EVALUATION = [
    "eval.utility=[facts]", "eval.safety=[harmful_seen]", "eval.over_refusal=[look_alike]", "eval.composites={}",
    "eval.data_dir=benchmarks",
]  # fmt: skip


def poisoned() -> Any:
    """A model whose weights are finite, and whose numbers are not where a text holds a z."""
    model = tiny_model(TOKENIZER)
    first, z, own = model.model.layers[0], TOKENIZER.convert_tokens_to_ids("z"), 7
    with torch.no_grad():
        # A direction that is z's alone when the first block's MLP reads it, and that overflows there.
        model.model.embed_tokens.weight[:, own] = 0
        first.self_attn.o_proj.weight[own] = 0
        model.model.embed_tokens.weight[z, own] = 1
        for projection in (first.mlp.gate_proj, first.mlp.up_proj):
            projection.weight[0] = 0
            projection.weight[0, own] = 1e30
    return model


def rows(*marked: int, count: int = 4) -> list[Row]:
    """Rows from 1, of which the marked ones hold a z."""
    return [
        {"prompt": f"Why {'z' if number in marked else 'a'}{number}?", "chosen": f"No {number}.", "rejected": "Yes"}
        for number in range(1, count + 1)
    ]


def configured(stage: str, safety: list[Row], reference: list[Row], *overrides: str) -> Config:
    write_jsonl(Path("rows.jsonl"), safety)
    write_jsonl(Path("general.jsonl"), reference)
    return compose_config(
        ["data=files", "data.safety=rows.jsonl", "+data.reference_sets={general: general.jsonl}", "model.path=model",
         f"stage={stage}", *STEPS, *overrides]
    )  # fmt: skip


def train(config: Config, model: Any) -> None:
    [stage] = config.stages
    build_trainer(config, stage, model, TOKENIZER, load_data(config), Path("out")).train()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


OGPSA = ["method=ogpsa", "method.reference_sets=[general]", "method.samples=4", "method.rank=1"]


@pytest.mark.parametrize("stage", ["sft", pytest.param("dpo", marks=pytest.mark.long)])
@pytest.mark.parametrize("method", [["method=baseline"], OGPSA])
def test_a_training_row_whose_gradient_is_not_a_number_is_named(stage: str, method: list[str]) -> None:
    model = poisoned()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(UserError) as refused:
        train(configured(stage, rows(2, count=2), rows(), *method), model)
    assert "the gradient's norm is nan at step 1: so it is of rows.jsonl:2 of the safety set alone; " in str(
        refused.value
    )
    # Nothing has been taken.
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("stage", ["sft", pytest.param("dpo", marks=pytest.mark.long)])
@pytest.mark.parametrize("chunks", [1, 2])
def test_a_reference_row_whose_gradient_is_not_a_number_is_named(stage: str, chunks: int) -> None:
    with pytest.raises(UserError) as refused:
        train(configured(stage, rows(), rows(3), *OGPSA, f"method.rank={chunks}"), poisoned())
    assert str(refused.value) == (
        "reference set 'general': the gradient of row 3 is infinite or NaN at step 0 "
        f"(1 of the {4 // chunks} rows drawn); take the row out"
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["method.streaming=true", "method.refresh_every=2"],
            "reference set 'general': the gradient of row 3 is infinite or NaN",
        ),
        (
            ["method.selection=conflict"],
            "method.selection: the gradient of reference set 'general': row 3 is infinite or NaN",
        ),
    ],
)
def test_such_a_reference_row_is_named_while_streaming_or_selecting(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        train(configured("sft", rows(), rows(3), *OGPSA, *overrides), poisoned())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_a_number_is_named_when_the_model_is_loaded(value: float) -> None:
    save("model", tiny_model(TOKENIZER))
    weights = load_file("model/model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(weights, "model/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError) as refused:
        load_model(Path("model"), torch.float32)
    assert str(refused.value) == (
        f"model: weight model.layers.1.mlp.up_proj.weight holds {value:g} at [3, 5]; write the checkpoint again"
    )


def save(folder: str, model: Any) -> None:
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)


def evaluated(*marked: str) -> None:
    for benchmark in find_benchmarks(BENCHMARKS):
        texts = ["z" if benchmark.name in marked and number == 2 else "a" for number in range(4)]
        write_jsonl(
            Path("benchmarks", f"{benchmark.rows}.jsonl"),
            [{"id": f"item-{number}", "prompt": f"Say {text}.", "target": "b"} for number, text in enumerate(texts)],
        )


@pytest.mark.parametrize("name", ["facts", *(pytest.param(name, marks=pytest.mark.long) for name in BENCHMARKS[1:])])
def test_logits_that_are_not_numbers_stop_an_evaluation_at_their_row(name: str, here: Path) -> None:
    save("model", poisoned())
    write_jsonl(Path("rows.jsonl"), rows())
    evaluated(name)
    result = run_here(
        "data=files", "data.safety=rows.jsonl", "model.path=model", "method=baseline", "stage=sft", *STEPS, *EVALUATION,
        "cache_dir=cache", "hydra.run.dir=run", cwd=here,
    )  # fmt: skip
    assert result.code == 2
    lines = result.stderr.splitlines()
    assert lines[-1] == (
        f"error: {name}: row 'item-2': the model's logits hold NaN or Inf, so the row has neither answer nor score"
    )
    assert "Traceback" not in result.stderr
    assert not list(here.glob("run/eval/*/scores.json"))


def test_log_likelihoods_that_are_not_numbers_stop_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    save("model", poisoned())
    options = {"targets": ["a"], "multiple_choice_targets": ["a", "b"]}
    write_jsonl(Path("benchmarks/hhh.jsonl"), [{"inputs": f"Say {text}.", **options} for text in "abzc"])
    groups = [f"eval.{group}=[]" for group in ("safety", "over_refusal", "reported")]
    given = ["checkpoint=model", "output=scores", "eval.utility=[hhh]", *groups, "eval.data_dir=benchmarks"]
    assert main(given) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: hhh: row 'hhh-002': the model's logits hold NaN or Inf, so the row has neither answer nor score"
    )


@pytest.mark.slow
def test_a_whole_run_ends_at_the_row_with_exit_code_2(here: Path) -> None:
    save("model", poisoned())
    write_jsonl(Path("rows.jsonl"), rows(3))
    evaluated()
    result = run_here(
        "data=files", "data.safety=rows.jsonl", "model.path=model", "method=baseline", "stage=sft", *STEPS, *EVALUATION,
        "cache_dir=cache", "hydra.run.dir=run", cwd=here,
    )  # fmt: skip
    assert result.code == 2 and "Traceback" not in result.stderr
    assert "so it is of rows.jsonl:3 of the safety set alone" in result.stderr.splitlines()[-1]


def test_a_reply_from_logits_that_are_not_numbers_is_refused() -> None:
    save("model", poisoned())
    generator = Generator.of_checkpoint(Path("model"), 4, {})
    ask = [[{"role": "user", "content": text}] for text in ("Say a.", "Say z.")]
    assert len(generator.next_turns(ask[:1])) == 1
    with pytest.raises(UserError, match=r"logits hold NaN or Inf for the prompt 'Say z\.'"):
        generator.next_turns(ask)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5, 7, "1"])
def test_a_verdict_that_is_not_a_number_is_named(
    value: Any, small_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = RuleJudge("accuracy", lambda item: Verdict("odd", value if item.id == "b" else 1.0))
    monkeypatch.setattr("eval.judging.verdicts.load_judge", lambda *_: judge)
    items = [Item(name, "prompt", "response", "target") for name in "abc"]
    with pytest.raises(UserError) as refused:
        judge_responses("own", items, small_config().eval.judge, open_journal(Path("journal")), "judging")
    assert str(refused.value) == (
        f"judge own: row 'b': the value is {value!r}; allowed: a number between 0 and 1, or None where none can be read"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_our_files_hold_finite_numbers_alone(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(Path("metrics.json"), {"safety": value})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_jsonl(Path("history.jsonl"), [{"loss": value}])
    assert not Path("metrics.json").exists() and not Path("history.jsonl").exists()


KEYS = [
    "method.rank", "method.samples", "method.refresh_every", "stage.learning_rate", "stage.epochs", "stage.beta",
    "stage.batch_size", "stage.max_length", "stage.max_grad_norm", "stage.weight_decay", "stage.warmup_ratio",
    "stage.max_steps", "seed", "eval.limit", "eval.judge.timeout", "lock_wait", "model.base.learning_rate",
]  # fmt: skip


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", ".nan", "1e999"])
def test_a_setting_that_is_not_a_number_is_named(value: str) -> None:
    with pytest.raises(UserError) as refused:
        compose_config(["stage=dpo", *(f"{key}={value}" for key in KEYS)])
    assert {line.partition(": found ")[0] for line in refused.value.problems} == set(KEYS)
