"""Models whose files name the weights otherwise than their modules do: a checkpoint is read whole."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ogpsa.app.compose import compose_config
from ogpsa.config import Config
from ogpsa.data.rows import load_data
from ogpsa.utils.files import read_json, write_jsonl
from tests.stage import train_alone, train_and_tear
from tests.tiny import byte_tokenizer, image_reader, other_kind, save_tiny

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_hidden_layers": 2}


def image_model(folder: Path) -> None:
    image_reader(byte_tokenizer()).save_pretrained(folder)


def experts(folder: Path) -> None:
    other_kind("qwen3_moe", byte_tokenizer(), **EXPERTS).save_pretrained(folder)


def plain(folder: Path) -> None:
    save_tiny(folder, byte_tokenizer(), tie_word_embeddings=True)


@pytest.fixture(params=[image_model, experts, plain])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    request.param(tmp_path / "start")
    byte_tokenizer().save_pretrained(tmp_path / "start")
    return tmp_path / "start"


def stage(start: Path, *overrides: str) -> Config:
    rows = [{"prompt": f"request {n}", "chosen": f"answer {n}", "rejected": "no"} for n in range(6)]
    write_jsonl(start.parent / "rows.jsonl", rows)
    write_jsonl(start.parent / "others.jsonl", [{"prompt": "another", "chosen": "other"}])
    few = ["stage=sft", "stage.epochs=1", "stage.batch_size=1", "stage.micro_batch_size=1", "stage.max_length=64"]
    return compose_config(
        ["method=baseline", "data=files", f"data.safety={start.parent}/rows.jsonl", f"model.path={start}",
         "stage.learning_rate=1e-2", "tracker=none", f"cache_dir={start.parent}/cache", *few, *overrides]
    )  # fmt: skip


@pytest.mark.slow
def test_a_resumed_stage_equals_the_unbroken_one(start: Path, tmp_path: Path) -> None:
    config = stage(start, "stage.save_every=3")
    train_alone(config, load_data(config), start, tmp_path / "whole")
    train_and_tear(config, tmp_path / "broken", 6, start)
    train_alone(config, load_data(config), start, tmp_path / "broken")
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.slow
def test_the_best_weights_are_kept_whole(start: Path, tmp_path: Path) -> None:
    # So large a rate that the loss soon rises.
    steady = ["stage.scheduler=constant", "stage.warmup_ratio=0", "stage.learning_rate=0.1"]
    held_out = f"+data.held_out={{safety: {tmp_path}/others.jsonl}}"
    measured = stage(start, *steady, "stage.eval_every=1", "stage.keep=best", held_out)
    train_alone(measured, load_data(measured), start, tmp_path / "best")
    step = read_json(tmp_path / "best" / "COMPLETE.json")["best_step"]
    assert step < 6
    short = stage(start, *steady, f"stage.max_steps={step}")
    train_alone(short, load_data(short), start, tmp_path / "short")
    best, wanted = (load_file(tmp_path / name / "model.safetensors") for name in ("best", "short"))
    assert all(torch.equal(best[name], wanted[name]) for name in wanted)
