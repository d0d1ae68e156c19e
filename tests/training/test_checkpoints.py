"""Which checkpoint a stage is resumed from, and by how many processes; what its result says of itself."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch

from ogpsa.app.compose import compose_config
from ogpsa.config import Config
from ogpsa.data.rows import load_data
from ogpsa.models.load import load_model
from ogpsa.testbed.cache import ensure_base
from ogpsa.training.resume import last_complete_checkpoint
from ogpsa.utils.errors import UserError
from ogpsa.utils.files import mark_complete, read_json
from tests.stage import train_alone
from tests.tiny import tiny_model


def saved(folder: Path, by: int) -> Path:
    """A whole checkpoint of ``by`` processes."""
    checkpoint = folder / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    mark_complete(checkpoint, {"step": 3, "processes": by})
    return checkpoint


@pytest.mark.parametrize("words", [("distributed=ddp",), ("distributed=fsdp2",), ("distributed=fsdp2", "stage=dpo")])
def test_another_number_of_processes_is_said(
    words: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = compose_config(["stage=sft", *words])
    [stage] = config.stages
    checkpoint = saved(tmp_path, by=8)
    with caplog.at_level(logging.INFO):
        assert last_complete_checkpoint(tmp_path, config, stage) == checkpoint
    assert caplog.messages == [
        f"{stage.name}: checkpoint-3 was saved by 8 processes and is resumed by 1: the batch stays {stage.batch_size}, "
        "sums round differently, and of an epoch's last batch, if it is not full, other rows are repeated"
    ]
    caplog.clear()
    mark_complete(checkpoint, {"step": 3, "processes": 1})
    assert last_complete_checkpoint(tmp_path, config, stage) == checkpoint
    assert not caplog.messages


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("stage=sft", "distributed=zero2"), "zero2 keeps a part of the optimizer's state per process"),
        (("stage=dpo", "distributed=zero3"), "zero3 keeps a part of the optimizer's state per process"),
        (("stage=grpo", "distributed=ddp"), "grpo draws completions per process"),
        (("stage=sft", "distributed=fsdp2", "method.basis_dtype=int8"),
         "the scales of an int8 basis are those of its shards"),
    ],
)  # fmt: skip
def test_what_is_bound_to_its_processes_is_refused(words: tuple[str, ...], why: str, tmp_path: Path) -> None:
    config = compose_config(list(words))
    checkpoint = saved(tmp_path, by=8)
    with pytest.raises(UserError) as error:
        last_complete_checkpoint(tmp_path, config, config.stages[0])
    assert error.value.problems == (
        f"distributed.processes: {checkpoint} was saved by 8 processes, this run has 1, and {why}; start 8, or delete "
        f"{tmp_path} to train the stage from its beginning",
    )


def test_the_next_stage_trains_the_embedding_of_the_token_that_pads(
    small_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = small_config("stage=sft", "method=baseline", "stage.max_steps=1")
    _, tokenizer = load_model(ensure_base(config), torch.float32)
    # As Llama-3: no padding of its own, so that the end token pads.
    start = tmp_path / "start"
    tiny_model(tokenizer, pad_token_id=None).save_pretrained(start)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(start)
    train_alone(config, load_data(config), start, tmp_path / "stage")
    assert read_json(tmp_path / "stage" / "config.json")["pad_token_id"] is None
    model, _ = load_model(tmp_path / "stage", torch.float32)
    assert cast(torch.nn.Embedding, model.get_input_embeddings()).padding_idx is None
