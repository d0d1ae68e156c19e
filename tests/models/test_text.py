"""Models that read images as well: text trains their language model, and nothing else counts as trained."""

from pathlib import Path

import pytest
import torch
from peft import get_peft_model

from ogpsa.app.compose import compose_config
from ogpsa.models.load import load_model
from ogpsa.models.text import language_model, linear_layers
from ogpsa.preflight.memory import shape_of
from ogpsa.preflight.report import meta_model
from tests.tiny import byte_tokenizer, image_reader, tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma 3 with a vision tower."""
    tokenizer = byte_tokenizer()
    made = tmp_path_factory.mktemp("nested") / "model"
    image_reader(tokenizer).save_pretrained(made)
    tokenizer.save_pretrained(made)
    return made


def test_what_is_trained_is_what_text_passes_through(folder: Path) -> None:
    model, tokenizer = load_model(folder, torch.float32)
    ids = tokenizer("a request and its answer", return_tensors="pt").input_ids
    model(input_ids=ids, labels=ids).loss.backward()
    with_gradient = {name for name, weight in model.named_parameters() if weight.grad is not None}
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == with_gradient
    assert any("vision_tower" in name for name, _ in model.named_parameters())
    assert not any("vision_tower" in name or "projector" in name for name in (*trained, *linear_layers(model)))


def test_adapters_keep_out_of_the_vision_tower(folder: Path) -> None:
    model, _ = load_model(folder, torch.float32)
    config = compose_config(["method=lora", "stage=sft", "tracker=none"])
    adapter = config.method.adapter(model, "sft")
    adapted = get_peft_model(model, adapter)
    names = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    # Seven layers in each of two blocks, two matrices each.
    assert len(names) == 28
    assert not any("vision_tower" in name for name in names)
    # A model that reads text alone leaves none out.
    assert config.method.adapter(tiny_model(byte_tokenizer()), "sft").exclude_modules is None


def test_preflight_counts_the_tower_as_kept_and_not_as_trained(folder: Path) -> None:
    config = compose_config(
        ["model=gemma3_4b", f"model.path={folder}", "data=files", "data.safety=rows.jsonl", "method=baseline"]
    )
    model, _ = load_model(folder, torch.float32)
    shape = shape_of(meta_model(config))
    assert shape.parameters == sum(weight.numel() for weight in model.parameters())
    assert shape.trained == sum(weight.numel() for weight in language_model(model).parameters())
    assert shape.layers * shape.block < shape.trained < shape.parameters
