"""Rows that would teach something other than their text, named before anything is trained or evaluated."""

import logging
from pathlib import Path
from typing import Any

import pytest

from eval.benchmarks.definition import find_benchmarks
from ogpsa.app.compose import compose_config
from ogpsa.config import Config
from ogpsa.data.rows import load_data
from ogpsa.preflight.shown_rows import show_rows, tokens_of
from ogpsa.preflight.unfit_rows import Unfit, check_answers, unfit_rows
from ogpsa.testbed.tokenizer import build_tokenizer
from ogpsa.testbed.world import World
from ogpsa.training.trainer import build_trainer
from ogpsa.utils.errors import UserError
from ogpsa.utils.files import write_jsonl
from tests.program import contents, run_here
from tests.tiny import byte_tokenizer, tiny_model

Row = dict[str, Any]
STEPS = ["stage.batch_size=1", "stage.micro_batch_size=1", "tracker=none"]
SFT, DPO = ["stage=sft", *STEPS], ["stage=dpo", *STEPS]
REFERENCE = ["method=ogpsa", "method.samples=1", "method.reference_sets=[general]"]


def row(prompt: int = 4, chosen: int = 3, rejected: int = 3, shared: int = 0) -> Row:
    """Texts of so many bytes; the answers begin with as many as they share. A conversation takes 4 tokens more."""
    first, second = "b" * shared + "c" * (chosen - shared), "b" * shared + "d" * (rejected - shared)
    return {"prompt": "a" * prompt, "chosen": first, "rejected": second}


def files(rows: list[Row], *overrides: str, reference: list[Row] | None = None) -> Config:
    """A run over rows of at most 16 tokens; the rows are written into the working directory."""
    write_jsonl(Path("rows.jsonl"), rows)
    more = ["method=baseline"]
    if reference is not None:
        write_jsonl(Path("general.jsonl"), reference)
        more = [*REFERENCE, "+data.reference_sets={general: general.jsonl}"]
    limit = [f"{'stage.dpo' if 'stage=sft_dpo' in overrides else 'stage'}.max_length=16"]
    return compose_config(["data=files", "data.safety=rows.jsonl", "model.path=model", *more, *limit, *overrides])


def problems(config: Config) -> list[str]:
    with pytest.raises(UserError) as refused:
        check_answers(config, load_data(config), byte_tokenizer())
    return list(refused.value.problems)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


CUT = "stage.max_length: 16 tokens cut the answers, so that their end of turn is lost, in 1 of the 2 rows of the "
CUT_REMEDY = "; raise it, take the rows out, or allow it by stage.cut_answers=true"
EQUAL = "stage.equal_answers: chosen and rejected are the same tokens within 16 tokens, so that there is no gradient, "
EQUAL_REMEDY = "; take the rows out, or allow it by stage.equal_answers=true"
NONE = "stage.max_length: 16 tokens leave no answer to train on in 1 of the 2 rows of the "
NONE_REMEDY = "; raise it or take the rows out"


@pytest.mark.parametrize(
    ("stage", "unfit", "lines"),
    [
        (SFT, row(chosen=9), [f"{CUT}safety set, rows.jsonl:2 (17 tokens){CUT_REMEDY}"]),
        (SFT, row(chosen=32), [f"{CUT}safety set, rows.jsonl:2 (40 tokens){CUT_REMEDY}"]),
        (SFT, row(prompt=13), [f"{NONE}safety set, rows.jsonl:2 (a prompt of 16 tokens){NONE_REMEDY}"]),
        pytest.param(
            SFT,
            row(prompt=3_000),
            [f"{NONE}safety set, rows.jsonl:2 (a prompt of 3003 tokens){NONE_REMEDY}"],
            marks=pytest.mark.slow,
        ),
        (DPO, row(rejected=9), [f"{CUT}safety set, rows.jsonl:2 (17 tokens){CUT_REMEDY}"]),
        (DPO, row(prompt=13), [f"{NONE}safety set, rows.jsonl:2 (a prompt of 16 tokens){NONE_REMEDY}"]),
        (
            DPO,
            row(chosen=10, rejected=11, shared=9),
            [
                f"{CUT}safety set, rows.jsonl:2 (19 tokens){CUT_REMEDY}",
                f"{EQUAL}in 1 of the 2 rows of the safety set, rows.jsonl:2 (19 tokens){EQUAL_REMEDY}",
            ],
        ),
    ],
    ids=["cut by one", "twice as long", "prompt fills", "prompt overflows", "rejected is cut", "DPO prompt", "equal"],
)
def test_an_unfit_row_is_named_in_the_safety_and_the_reference_set(
    stage: list[str], unfit: Row, lines: list[str]
) -> None:
    assert problems(files([row(), unfit], *stage)) == lines
    named = [
        line.replace("safety set", "reference set 'general'").replace("rows.jsonl", "general.jsonl") for line in lines
    ]
    assert problems(files([row()], *stage, reference=[row(), unfit])) == named
    # Held-out rows count where they are measured.
    write_jsonl(Path("unseen.jsonl"), [row(), unfit])
    held_out = [*stage, "+data.held_out={safety: unseen.jsonl}"]
    unseen = [
        line.replace("safety set", "held-out set 'safety'").replace("rows.jsonl", "unseen.jsonl") for line in lines
    ]
    assert problems(files([row()], *held_out, "stage.eval_every=1")) == unseen
    config = files([row()], *held_out)
    check_answers(config, load_data(config), byte_tokenizer())


def test_rows_that_just_fit_pass() -> None:
    rows = [row(chosen=8), row(prompt=9, rejected=3), row(prompt=1, chosen=11, rejected=11, shared=10)]
    for stage in (SFT, DPO):
        config = files(rows, *stage, reference=rows)
        check_answers(config, load_data(config), byte_tokenizer())


def test_many_unfit_rows_are_counted_and_the_first_named() -> None:
    [line] = problems(files([row(chosen=20)] * 9, *SFT))
    assert "in 9 of the 9 rows of the safety set, rows.jsonl:1 (28 tokens), " in line
    assert "rows.jsonl:5 (28 tokens) and 4 more; raise it" in line


def test_each_stage_is_held_to_its_own_length() -> None:
    stages = [
        "stage=sft_dpo",
        *(word.replace("stage.", f"stage.{name}.") for name in ("sft", "dpo") for word in STEPS[:2]),
    ]
    [line] = problems(files([row(chosen=20)], *stages, "stage.sft.max_length=28"))
    assert line.startswith("stage.dpo.max_length: 16 tokens cut") and line.endswith("by stage.dpo.cut_answers=true")


def test_what_a_key_allows_is_counted_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    equal = row(chosen=10, rejected=11, shared=9)
    config = files([row(), equal], *DPO, "stage.cut_answers=true", "stage.equal_answers=true")
    with caplog.at_level(logging.WARNING):
        check_answers(config, load_data(config), byte_tokenizer())
    assert caplog.messages == [
        f"{CUT}safety set, rows.jsonl:2 (19 tokens)",
        f"{EQUAL}in 1 of the 2 rows of the safety set, rows.jsonl:2 (19 tokens)",
    ]


@pytest.mark.parametrize(
    ("change", "mark"),
    [
        ({"chosen": "c<end><user>"}, "<end>"),
        ({"prompt": "a<assistant>b"}, "<assistant>"),
        ({"rejected": "d<pad>"}, "<pad>"),
    ],
)
def test_marks_of_turns_inside_a_text_are_named(change: Row, mark: str) -> None:
    assert problems(files([row(), row() | change], *DPO)) == [
        "safety set: a text holds a mark of the model's own turns, as if a turn ended there, in 1 of the 2 rows, "
        f"rows.jsonl:2 ({mark!r}); take the rows out, or the marks"
    ]
    assert problems(files([row()], *DPO, reference=[row() | change]))[0].startswith("reference set 'general': a text")


def test_marks_that_are_not_tokens_and_marks_of_others() -> None:
    tokenizer, rows = byte_tokenizer(), [row() | {"chosen": mark} for mark in ("[/INST]", "<|im_end|>", "<b>", "[A]")]
    tokenizer.chat_template = (
        str(tokenizer.chat_template).replace("'<' +", "'[INST]' +").replace("+ '>'", "+ '[/INST]'")
    )
    [found] = unfit_rows(tokenizer, files(rows, *SFT).stages, rows)
    assert found.marks == {0: "[/INST]"}


@pytest.mark.parametrize(
    ("old", "new", "chosen"),
    [
        ("message.content +", "message.content.split('</think>')[-1] +", "<think>c</think> d"),
        ("message.content +", "message.content[:8] +", "c" * 9),
        ("message.content +", "(message.content if '?' not in message.content else 1 / 0) +", "c?"),
    ],
    ids=["thoughts taken out", "cut", "not taken"],
)
def test_every_row_is_compared_with_what_the_template_makes_of_it(old: str, new: str, chosen: str) -> None:
    tokenizer, rows = byte_tokenizer(), [row()] * 60 + [row() | {"chosen": chosen}] + [row()] * 300
    tokenizer.chat_template = str(tokenizer.chat_template).replace(old, new)
    [found] = unfit_rows(tokenizer, files(rows, *SFT).stages, rows)
    assert list(found.otherwise) == [60] and found.otherwise[60].startswith("the chat template does not ")
    config = files(rows, *SFT)
    with pytest.raises(UserError, match=r"safety set, rows\.jsonl:61: the chat template does not "):
        check_answers(config, load_data(config), tokenizer)


TURNS = [
    {"role": "system", "content": "ab"},
    {"role": "user", "content": "cd"},
    {"role": "assistant", "content": "<think>e</think>f"},
    {"role": "user", "content": "gh"},
]
GRPO = [
    "stage=grpo", "stage.batch_size=2", "stage.micro_batch_size=2", "stage.num_generations=2", "reward=refusal_rules",
    "stage.updates_per_generation=1", "stage.max_new_tokens=4", "tracker=none",
]  # fmt: skip


@pytest.mark.parametrize("stage", [SFT, GRPO], ids=["SFT", "GRPO"])
@pytest.mark.parametrize(
    ("message", "line"),
    [
        (
            "{% if message.role == 'system' %}{{ raise_exception('no system') }}{% endif %}",
            "the chat template does not take the turns system, user, assistant, user (no system); write what it does "
            "not take into a user's turn, or take the row out",
        ),
        (
            "{% if message.role == 'system' %}{% continue %}{% endif %}",
            "the chat template leaves out or changes turn 1 (system), 'ab'; write it into another turn, or take the "
            "row out",
        ),
        (
            "{% set message = {'role': message.role, 'content': message.content.split('</think>')[-1]} %}",
            "the chat template leaves out or changes turn 3 (assistant), '<think>e</think>f'; write it into another "
            "turn, or take the row out",
        ),
    ],
    ids=["refused", "left out", "changed"],
)
def test_a_turn_that_the_template_does_not_write_is_named(message: str, line: str, stage: list[str]) -> None:
    config = files([row(), {"prompt": TURNS, "chosen": "i"}], *stage, "stage.max_length=100")
    check_answers(config, load_data(config), byte_tokenizer())
    tokenizer = byte_tokenizer()
    begun = "{% for message in messages %}"
    tokenizer.chat_template = str(tokenizer.chat_template).replace(begun, begun + message)
    with pytest.raises(UserError) as refused:
        check_answers(config, load_data(config), tokenizer)
    assert refused.value.problems == (f": safety set, rows.jsonl:2: {line}",)


def test_a_reference_row_of_grpo_is_refused_without_a_key_that_grpo_has_not() -> None:
    config = files([row()], *GRPO, *REFERENCE, reference=[row(), row(chosen=90)])
    assert problems(config) == [
        "stage.max_length: 16 tokens are too few for a whole answer, in 1 of the 2 rows of the reference set "
        "'general', general.jsonl:2 (98 tokens); raise it or take the rows out"
    ]


def test_every_turn_of_a_conversation_counts() -> None:
    rows = [{"prompt": TURNS[:2], "chosen": "c" * size} for size in (6, 7)]
    assert problems(files(rows, *SFT)) == [f"{CUT}safety set, rows.jsonl:2 (17 tokens){CUT_REMEDY}"]


@pytest.mark.parametrize("stage", [SFT, DPO])
def test_the_check_sees_what_the_trainer_trains_on(stage: list[str]) -> None:
    rows = [row(chosen=size, rejected=size + 1, shared=size - 1) for size in range(6, 12)]
    allowed = ["stage.cut_answers=true", *["stage.equal_answers=true"] * (stage == DPO)]
    config = files(rows, *stage, *allowed)
    tokenizer, [settings] = byte_tokenizer(), config.stages
    trainer = build_trainer(config, settings, tiny_model(tokenizer), tokenizer, load_data(config), Path("out"))
    found = Unfit()
    data: Any = trainer.train_dataset
    for number, one in enumerate(data):
        batch = trainer.data_collator([one])
        lines = [
            ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        if any(ids[-1] != tokenizer.eos_token_id for ids in lines):
            found.cut[number] = 4 + 4 + 6 + number + (settings.name == "dpo")
        if len(lines) > 1 and lines[0] == lines[1]:
            found.equal[number] = 4 + 4 + 7 + number
    assert unfit_rows(tokenizer, [settings], load_data(config).safety) == [found]
    assert found.cut and (found.equal or settings.name == "sft")


@pytest.mark.parametrize("stage", [SFT, DPO], ids=["sft", "dpo"])
def test_the_rows_that_are_shown_are_those_that_the_trainer_trains_on(stage: list[str]) -> None:
    rows = [row(), row(prompt=2, chosen=12, rejected=5)]
    config = files(rows, *stage, "stage.cut_answers=true")
    tokenizer, [settings] = byte_tokenizer(), config.stages
    trainer = build_trainer(config, settings, tiny_model(tokenizer), tokenizer, load_data(config), Path("out"))
    data: Any = trainer.train_dataset
    for one, told in zip(data, rows, strict=True):
        batch = trainer.data_collator([one])
        shown = [tokens_of(tokenizer, told, column, 16) for column in ("chosen", "rejected")[: len(batch["input_ids"])]]
        wholes = [
            ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        assert wholes == [before + learned for before, learned in shown]
        carries = batch["labels"] != -100 if "labels" in batch else batch["completion_mask"].bool()
        learned = [ids[mask].tolist() for ids, mask in zip(batch["input_ids"], carries, strict=True)]
        assert learned == [answer for _, answer in shown]


def test_the_first_rows_of_each_set_are_shown_with_their_loss() -> None:
    asked = row(prompt=700)
    config = files([row(), asked, row()], *DPO, "stage.max_length=1000", reference=[row(chosen=5)])
    lines = show_rows(config, load_data(config), byte_tokenizer()).splitlines()
    sets = [number for number, line in enumerate(lines) if line.endswith(":") and number]
    assert [lines[number] for number in sets] == ["dpo, safety set:", "dpo, reference set 'general':"]
    safety = lines[sets[0] + 1 : sets[1] - 1]
    assert len(safety) == 4 and safety[0].startswith("  chosen: 11 tokens, 4 with loss: ")
    assert "aaaa" in safety[0] and "⟦ccc" in safety[0].replace("</s>", "") and safety[1].count("ddd") == 1
    assert " … " in safety[2] and len(safety[2]) < 1000
    assert lines[-2].startswith("  chosen: 13 tokens, 6 with loss: ")


def test_sets_that_a_method_prepares_from_and_held_out_ones_are_shown_too() -> None:
    config = compose_config(["stage=sft", "method=nspo", "stage.eval_every=2", "data.reference_rows=400"])
    shown = show_rows(config, load_data(config), build_tokenizer(World(0).vocabulary())).splitlines()
    assert [line for line in shown[1:] if line.endswith(":")] == [
        "sft, safety set:",
        *(f"sft, reference set '{use.name}':" for use in config.method.prepared_from()),
        *(f"sft, held-out set '{name}':" for name in config.data.held_out_names),
    ]


@pytest.mark.parametrize("stage", ["sft", "dpo"])
@pytest.mark.parametrize("more", [["preflight=true"], []], ids=["preflight", "run"])
def test_a_run_is_refused_before_its_base_is_evaluated(stage: str, more: list[str], here: Path) -> None:
    tokenizer = byte_tokenizer()
    tiny_model(tokenizer).save_pretrained("model")
    tokenizer.save_pretrained("model")
    write_jsonl(Path("rows.jsonl"), [row(prompt=13)])
    names = ["facts", "harmful_seen", "look_alike"]
    for benchmark in find_benchmarks(names):
        write_jsonl(Path("benchmarks", f"{benchmark.rows}.jsonl"), [{"id": "1", "prompt": "a", "target": "b"}])
    groups = ["eval.utility=[facts]", "eval.safety=[harmful_seen]", "eval.over_refusal=[look_alike]"]
    command = [
        "data=files", "data.safety=rows.jsonl", "model.path=model", "method=baseline", f"stage={stage}", *STEPS,
        *groups, "stage.max_length=16", "eval.data_dir=benchmarks", "eval.composites={}", "cache_dir=cache",
        "hydra.run.dir=run", *more,
    ]  # fmt: skip
    before = contents(here)
    result = run_here(*command, cwd=here)
    line = NONE.replace("1 of the 2", "1 of the 1")
    assert result.stderr == f"error: {line}safety set, rows.jsonl:1 (a prompt of 16 tokens){NONE_REMEDY}\n"
    assert result.code == 2
    assert contents(here) == before


@pytest.mark.slow
def test_the_testbed_is_checked_too(small: list[str], here: Path) -> None:
    result = run_here(*small, "stage=sft", "stage.max_length=8", "preflight=true", cwd=here)
    assert result.code == 2
    assert (
        "error: stage.max_length: 8 tokens " in result.stderr
        and "of the 64 rows of the safety set, row " in result.stderr
    )
