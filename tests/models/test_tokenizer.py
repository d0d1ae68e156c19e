"""Tokenizers that disagree with template or model, and an answer's context in training and in evaluation."""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from eval.generation.generate import local_model
from ogpsa.app.compose import compose_config
from ogpsa.data.conversations import turns
from ogpsa.data.rows import Data, load_data
from ogpsa.models.load import load_model
from ogpsa.models.template import pin
from ogpsa.models.tokenizer import context_difference, load_tokenizer
from ogpsa.preflight.unfit_rows import check_answers
from ogpsa.training.trainer import build_trainer
from ogpsa.utils.errors import UserError
from ogpsa.utils.files import read_json, write_json, write_jsonl
from tests.tiny import byte_tokenizer, save_tiny

PUBLISHED = Path(str(files("trl"))) / "chat_templates"
CHATML = str(byte_tokenizer().chat_template)


def folder_with(place: Path, template: str | None = None, **settings: Any) -> Path:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template or CHATML
    return save_tiny(place, tokenizer, **settings)


def configure(place: Path, **values: Any) -> Path:
    """Other values in the tokenizer's configuration; None takes a key out."""
    file = place / "tokenizer_config.json"
    settings = read_json(file) | values
    write_json(file, {key: value for key, value in settings.items() if value is not None})
    return place


def edited(place: Path, **values: Any) -> Path:
    """Other values in the model's configuration."""
    write_json(place / "config.json", read_json(place / "config.json") | values)
    return place


def with_template(template: str) -> Callable[[Path], Path]:
    return lambda place: folder_with(place, template)


BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "neither pad nor eos": (
        lambda place: configure(folder_with(place), pad_token=None, eos_token=None),
        "the tokenizer has neither pad_token nor eos_token; name the eos_token in tokenizer_config.json; the chat "
        "template ends an answer with '<end>'",
    ),
    "no eos": (lambda place: configure(folder_with(place), eos_token=None), "the tokenizer has no eos_token; name"),
    "one token beyond the embedding": (
        lambda place: configure(folder_with(place), extra_special_tokens=["<extra>"]),
        "token '<extra>' has id 261, but the model's embedding holds 261 rows; take it out",
    ),
    "a pad token that the vocabulary lacks": (
        lambda place: configure(folder_with(place), pad_token="[PAD]"), "token '[PAD]' has id 261",
    ),
    "an embedding that is too small": (
        lambda place: edited(folder_with(place), vocab_size=200), "but the model's embedding holds 200 rows",
    ),
    "a padding beyond the embedding": (
        lambda place: edited(folder_with(place), pad_token_id=900), "pad_token_id is 900, but the model's embedding",
    ),
    "a turn that ends otherwise": (
        with_template(CHATML.replace("<end>", "<user>")),
        "the chat template ends an answer with '<user>', but generation stops at '<end>' alone, so that no",
    ),
    "a turn that does not end": (
        with_template(CHATML.replace("+ '<end>'", "")), "the chat template ends an answer with ''",
    ),
    "no user's turn": (
        with_template("{{ raise_exception('tools only') }}" + CHATML),
        "the chat template does not take the turns user (tools only)",
    ),
    "no assistant's turn": (
        with_template("{{ messages[0].content }}"), "the chat template does not write the assistant's turn",
    ),
    "a message as an object": (
        with_template("{% for part in messages[0].content %}{{ part['text'] }}{% endfor %}" + CHATML[1:]),
        "the chat template",
    ),
    "a draw": (with_template("{{ [1, 2] | random }}" + CHATML), "the chat template draws at random"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_disagreement_is_one_line_that_names_the_folder(name: str, tmp_path: Path) -> None:
    spoil, line = BROKEN[name]
    folder = spoil(tmp_path / "model")
    with pytest.raises(UserError) as caught:
        load_tokenizer(folder, {})
    [problem] = caught.value.problems
    assert problem.startswith(str(folder)) and line in problem
    assert "\n" not in problem


def test_generation_may_stop_at_what_the_tokenizer_does_not_know_as_its_end(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "model", CHATML.replace("<end>", "<user>"))
    user = byte_tokenizer().convert_tokens_to_ids("<user>")
    settings = read_json(folder / "generation_config.json")
    write_json(folder / "generation_config.json", settings | {"eos_token_id": [settings["eos_token_id"], user]})
    assert load_tokenizer(folder, {}).eos_token == "<end>"


def test_the_end_token_pads_where_there_is_no_other(tmp_path: Path) -> None:
    folder = configure(folder_with(tmp_path / "model"), pad_token=None)
    assert load_tokenizer(folder, {}).pad_token == "<end>"


EQUAL = (
    "qwen2_5", "llama3", "llama3_1", "llama3_2", "gemma", "gemma3", "phi3", "phi3_5", "cohere2", "lfm2",
    "qwen3_instruct_2507",
)  # fmt: skip
THINKING = "+model.template_kwargs.enable_thinking=false makes them equal"
DIFFERENT = {
    "qwen3": ("puts '<think>\\n\\n</think>\\n\\n' in front of the answer", THINKING),
    "qwen3_6": ("puts '\\n</think>\\n\\n' in front of the answer", THINKING),
    "nemotron_3_nano": ("goes on with '</think>', in evaluation with '\\n'", THINKING),
    "deepseekv3": ("in evaluation with '<think>\\n'", "use a template that renders both alike"),
    "gptoss": ("puts '<|channel|>final<|message|>' in front", "use a template that renders both alike"),
    "smolvlm": ("does not write the answer as it stands in the row", "use a template"),
}


def published(name: str) -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (PUBLISHED / f"{name}.jinja").read_text(encoding="utf-8")
    tokenizer.bos_token = "<system>"
    pin(tokenizer, {})
    return tokenizer


def test_the_picture_token_of_a_model_that_takes_none_is_accepted_and_rows_that_hold_it_are_not(tmp_path: Path) -> None:
    """As Gemma 3's smallest, whose embedding has no row for it."""
    named = {"image_token": "<image_soft_token>"}
    tokenizer = load_tokenizer(configure(folder_with(tmp_path / "model"), extra_special_tokens=named), {})
    assert tokenizer.get_vocab()["<image_soft_token>"] == 261
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a", "chosen": "b <image_soft_token>"}])
    config = compose_config([
        "data=files", f"data.safety={tmp_path / 'rows.jsonl'}", "stage=sft", "method=baseline", "stage.batch_size=1",
        "stage.micro_batch_size=1",
    ])  # fmt: skip
    with pytest.raises(UserError, match=r"rows\.jsonl:1 \('<image_soft_token>'\)"):
        check_answers(config, load_data(config), tokenizer)


@pytest.mark.parametrize("name", EQUAL)
def test_templates_that_give_an_answer_one_context(name: str) -> None:
    assert context_difference(published(name), turns("Hello?\n"), "Sorry, no.\n\nNever.") is None


@pytest.mark.parametrize("name", DIFFERENT)
def test_templates_that_give_an_answer_two_contexts(name: str) -> None:
    tokenizer = published(name)
    found = context_difference(tokenizer, turns("Hello?"), "Sorry, no.")
    assert found is not None and all(part in found for part in DIFFERENT[name])
    if THINKING in found:
        pin(tokenizer, {"enable_thinking": False})
        assert context_difference(tokenizer, turns("Hello?"), "Sorry, no.") is None


OTHERS = {
    "no generation prompt": (CHATML.partition("{% if add")[0], "puts '<assistant>' in front of the answer"),
    "a newline more in training": (CHATML.replace("'>' +", "'>\\n' +"), "puts '\\n' in front of the answer"),
    "a newline more in evaluation": (CHATML.replace("'<assistant>'", "'<assistant>\\n'"), "in evaluation with '\\n'"),
    "another header": (CHATML.replace("'<assistant>'", "'<system>'"), "'<assistant>Sorry, ', in evaluation with '<sys"),
    "a changed question": (CHATML.replace("'<' +", "(messages | length | string) + '<' +"), "the context goes on with"),
    "a shortened answer": (CHATML.replace("message.content +", "message.content[:5] +"), "does not write the answer"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_first_difference_is_shown(name: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template, part = OTHERS[name]
    found = context_difference(tokenizer, turns("Hello?"), "Sorry, no.")
    assert found is not None and part in found, found


def test_a_newline_at_the_beginning_of_a_rows_answer_is_its_own() -> None:
    assert context_difference(byte_tokenizer(), turns("Hello?"), "\n Sorry, no.") is None


def begins(tokenizer: PreTrainedTokenizerFast, whole: str) -> PreTrainedTokenizerFast:
    """A tokenizer that adds tokens of its own, as Llama's does at the beginning."""
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<system>", "<end>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=whole, special_tokens=ids)
    tokenizer.bos_token = "<system>"
    return tokenizer


SEQUENCES = {
    "as it is": (None, CHATML),
    "first token by the template": (None, "{{ bos_token }}" + CHATML),
    "first token by the tokenizer": ("<system> $A", CHATML),
    "first token by both": ("<system> $A", "{{ bos_token }}" + CHATML),
    "first token by both, after a newline": ("<system> $A", "{{ '\\n' + bos_token }}" + CHATML),
    "last token by the tokenizer": ("$A <end>", CHATML),
}


@pytest.mark.parametrize("stage", ["sft", pytest.param("dpo", marks=pytest.mark.long)])
@pytest.mark.parametrize("name", SEQUENCES)
def test_training_and_evaluation_share_an_answers_context(name: str, stage: str, tmp_path: Path) -> None:
    processor, template = SEQUENCES[name]
    tokenizer = byte_tokenizer() if processor is None else begins(byte_tokenizer(), processor)
    tokenizer.bos_token = "<system>"
    tokenizer.chat_template = template
    folder = save_tiny(tmp_path / "model", tokenizer)
    row = {"prompt": "How?", "chosen": "Not at all.", "rejected": "Like this."}
    config = compose_config(["method=baseline", f"stage={stage}", "stage.batch_size=1", "stage.micro_batch_size=1"])
    model, loaded = load_model(folder, torch.float32)
    assert context_difference(loaded, turns(row["prompt"]), row["chosen"]) is None
    trainer: Any = build_trainer(config, config.stages[0], model, loaded, Data([row], {}), tmp_path / "out")
    prepared = trainer.train_dataset[0]
    trained = prepared["input_ids"][: prepared["labels"].count(-100)] if stage == "sft" else prepared["prompt_ids"]

    evaluation = local_model(folder, config.eval)
    text = evaluation.chat_template([{"role": "user", "content": row["prompt"]}])
    lm: HFLM = evaluation._lm
    assert trained == lm.tok_encode(text) == lm.tok_batch_encode([text])[0][0].tolist()
