"""Folders of models whose files hold other than they should: one line that names the folder, and no traceback."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ogpsa.config import Precision
from ogpsa.models import generate
from ogpsa.models.files import check_weights
from ogpsa.models.load import load_model
from ogpsa.utils.errors import UserError
from ogpsa.utils.files import read_json, write_json
from tests.tiny import byte_tokenizer, save_tiny, tiny_model


def holding(name: str, content: Any) -> Callable[[Path], None]:
    """Other content of a JSON file."""
    return lambda folder: write_json(folder / name, content)


def setting(name: str, **values: Any) -> Callable[[Path], None]:
    """Other values in a JSON file."""
    return lambda folder: write_json(folder / name, read_json(folder / name) | values)


def template(text: str, encoding: str = "utf-8") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "chat_template.jinja").write_bytes(text.encode(encoding))

    return write


def zeros(folder: Path) -> None:
    model = tiny_model(byte_tokenizer())
    for weight in model.parameters():
        weight.data.zero_()
    model.save_pretrained(folder)


SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "fewer layers": (
        setting("config.json", num_hidden_layers=1),
        "9 weights have no place in the model that config.json describes (model.layers.1.input_layernorm.weight, ",
    ),
    "zeros": (zeros, "the input embedding holds zeros alone"),
    "an adapter beside": (holding("adapter_config.json", {}), "holds a model and adapter_config.json; move"),
    "quantized": (
        setting("config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "config.json has a quantization_config",
    ),
    "generation a list": (
        holding("generation_config.json", []),
        "generation_config.json holds a list of 0; expected an object",
    ),
    "configuration a list": (holding("config.json", [1]), "config.json holds a list of 1; expected an object"),
    "tokens a list": (holding("special_tokens_map.json", ["a"]), "special_tokens_map.json holds a list of 1"),
    "end a text": (setting("generation_config.json", eos_token_id="</s>"), "eos_token_id of generation_config.json"),
    "end a list of lists": (setting("generation_config.json", eos_token_id=[[4]]), "is a list of 1; allowed: the ids"),
    "end beyond": (setting("generation_config.json", eos_token_id=[4, 9999]), "is 9999; allowed: the ids of the"),
    "end a number": (setting("tokenizer_config.json", eos_token=4), "not loadable as a model (TypeError: Special"),
    "added a list": (setting("tokenizer_config.json", added_tokens_decoder=[1]), "not loadable as a model (Attrib"),
    "length a text": (setting("tokenizer_config.json", model_max_length="x"), "model_max_length is a text; allowed"),
    "empty tokenizer": (holding("tokenizer.json", {}), "(it lacks 'added_tokens', or transformers does not know it)"),
    "unknown activation": (setting("config.json", hidden_act="foo"), "(it lacks 'foo', or transformers does not"),
    "three heads": (setting("config.json", num_attention_heads=3), "multiple of the number of attention heads (3)"),
    "a division by zero": (template("{{ 1/0 }}"), "does not take the turns user (division by zero)"),
    "a macro without end": (
        template("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}"),
        "does not take the turns user (maximum recursion depth exceeded",
    ),
    "a template in UTF-16": (template("{{ messages }}", "utf-16"), "chat_template.jinja: not a UTF-8 text file"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_files_that_hold_something_else_are_one_line(name: str, tmp_path: Path) -> None:
    spoil, line = SPOILT[name]
    folder = save_tiny(tmp_path / "model", byte_tokenizer())
    spoil(folder)
    with pytest.raises(UserError) as caught:  # noqa: PT012  either of the two finds it
        check_weights(folder, "model.path", "write it again")
        load_model(folder, torch.float32)
    [problem] = caught.value.problems
    assert str(folder) in problem and line in problem and "\n" not in problem


def test_settings_of_sampling_that_do_not_say_so_are_saved(tmp_path: Path) -> None:
    """As in many published folders: transformers reads them, and would refuse to save them."""
    folder = save_tiny(tmp_path / "model", byte_tokenizer())
    setting("generation_config.json", temperature=0.6, top_p=0.9)(folder)
    model, _ = load_model(folder, torch.float32)
    model.generation_config.pad_token_id = 0
    model.save_pretrained(tmp_path / "again")
    found = read_json(tmp_path / "again" / "generation_config.json")
    assert (found["temperature"], found["top_p"], found["do_sample"]) == (0.6, 0.9, True)
    setting("generation_config.json", early_stopping=True)(folder)
    with pytest.raises(
        UserError, match=r"generation_config\.json: no checkpoint could be saved with it: .*early_stopping"
    ):
        load_model(folder, torch.float32)


@pytest.mark.parametrize(
    ("gpu", "precision", "dtype"),
    [(True, "fp32", torch.float32), (True, "bf16", torch.bfloat16), (False, "bf16", torch.float32)],
)
def test_a_gpu_answers_in_the_precision_of_the_training(
    gpu: bool, precision: Precision, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(_: Path, found: torch.dtype, **settings: Any) -> None:
        raise LookupError(found)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(generate, "load_model", loaded)
    with pytest.raises(LookupError, match=str(dtype)):
        generate.load_for_generation(Path("model"), {}, precision)
