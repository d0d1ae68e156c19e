"""Rows that are packed: none sees another, and the stage learns the same from fewer passes."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ogpsa.app.compose import compose_config
from ogpsa.config import Config
from ogpsa.data.rows import load_data
from ogpsa.models.load import load_model
from ogpsa.testbed.cache import ensure_base
from ogpsa.testbed.tokenizer import build_tokenizer
from ogpsa.testbed.world import World
from ogpsa.training.trainer import build_trainer
from ogpsa.utils.errors import UserError
from tests.stage import train_alone
from tests.tiny import other_kind

# Sixteen rows in one step, of a rate at which rounding is small beside the step.
ONE_STEP = ["stage=sft", "data.safety_rows=16", "stage.max_steps=1", "stage.optimizer=sgd", "stage.learning_rate=1e-1",
            "stage.scheduler=constant", "stage.warmup_ratio=0", "stage.max_grad_norm=0"]  # fmt: skip
APART = ["stage.batch_size=16", "stage.micro_batch_size=16", "stage.max_length=64"]
PACKED = ["stage.packing=bfd", "stage.batch_size=1", "stage.micro_batch_size=1", "stage.max_length=1024"]
OGPSA = ["method=ogpsa", "method.samples=6"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=baseline"],
        pytest.param(OGPSA, marks=pytest.mark.slow),
        pytest.param(["method=baseline", "model.attention=eager"], marks=pytest.mark.slow),
    ],
    ids=["baseline", "ogpsa", "eager"],
)
def test_a_step_on_packed_rows_is_the_step_on_the_rows(
    overrides: list[str], small_config: Callable[..., Config], tmp_path: Path
) -> None:
    start = load_file(ensure_base(small_config()) / "model.safetensors")
    ends = []
    for name, given in (("apart", APART), ("packed", PACKED)):
        config = small_config(*ONE_STEP, *overrides, *given)
        train_alone(config, load_data(config), ensure_base(config), tmp_path / name)
        ends.append(load_file(tmp_path / name / "model.safetensors"))
    apart, packed = (torch.cat([(end[name] - start[name]).flatten() for name in start]) for end in ends)
    assert apart.norm() > 0
    assert (packed - apart).norm() < 1e-5 * apart.norm()


def other_model(kind: str, folder: Path, **settings: Any) -> Path:
    """A random model of another kind than the testbed's, with its tokenizer."""
    tokenizer = build_tokenizer(World(0).vocabulary())
    other_kind(kind, tokenizer, **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# Within a row of some ten tokens most of the earlier ones are out of sight.
WINDOW = {"sliding_window": 3}


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [pytest.param("mistral", marks=pytest.mark.long), "gemma3_text", pytest.param("olmo3", marks=pytest.mark.long)],
)
def test_windows_of_attention_follow_the_rows(kind: str, small_config: Callable[..., Config], tmp_path: Path) -> None:
    model = other_model(kind, tmp_path / "model", **WINDOW)
    # The window takes part: without it the step is another.
    wide = shutil.copytree(model, tmp_path / "wide")
    (wide / "config.json").write_text((model / "config.json").read_text().replace('window": 3', 'window": 512'))
    start = load_file(model / "model.safetensors")
    steps = {}
    for name, folder, given in (("apart", model, APART), ("packed", model, PACKED), ("wide", wide, APART)):
        config = small_config(*ONE_STEP, "method=baseline", *given)
        train_alone(config, load_data(config), folder, tmp_path / name)
        end = load_file(tmp_path / name / "model.safetensors")
        steps[name] = torch.cat([(end[weight] - start[weight]).flatten() for weight in start])
    assert (steps["packed"] - steps["apart"]).norm() < 1e-5 * steps["apart"].norm()
    assert (steps["wide"] - steps["apart"]).norm() > 1e-3 * steps["apart"].norm()


@pytest.mark.parametrize(
    ("kind", "settings", "found"),
    [
        ("recurrent_gemma", {"attention_window_size": 8}, "a row of a pack changes the logits of the next one by .*"),
        ("qwen3_5_text", {"linear_num_value_heads": 4, "linear_num_key_heads": 2}, "transformers finds: .*"),
    ],
    ids=["found", "known"],
)
def test_a_model_that_carries_a_state_over_is_refused_by_name(
    kind: str, settings: dict[str, Any], found: str, small_config: Callable[..., Config], tmp_path: Path
) -> None:
    model = other_model(kind, tmp_path / "model", **settings)
    config = small_config(*ONE_STEP, "method=baseline", *PACKED)
    said = rf"^stage\.packing: packed rows of a {kind} model mix \({found}\); allowed: null$"
    with pytest.raises(UserError, match=said):
        train_alone(config, load_data(config), model, tmp_path / "packed")


def test_packs_hold_every_row_whole_within_the_length(small_config: Callable[..., Config], tmp_path: Path) -> None:
    config = small_config(
        "stage=sft", "method=baseline", "data.safety_rows=64", "stage.packing=bfd", "stage.max_length=64",
        "stage.batch_size=4", "stage.micro_batch_size=2", "stage.epochs=1",
    )  # fmt: skip
    model, tokenizer = load_model(ensure_base(config), torch.float32)
    trainer = build_trainer(config, config.stages[0], model, tokenizer, load_data(config), tmp_path)
    packs: Any = trainer.train_dataset
    assert len(packs) < 40 and all(len(pack["input_ids"]) <= 64 for pack in packs)
    rows = sorted(
        tuple(part.tolist())
        for pack in packs
        for part in torch.tensor(pack["input_ids"]).split([int(length) for length in pack["seq_lengths"]])
    )
    unpacked = config.stages[0].model_copy(update={"packing": None})
    whole: Any = build_trainer(config, unpacked, model, tokenizer, load_data(config), tmp_path).train_dataset
    assert rows == sorted(tuple(row["input_ids"]) for row in whole)
    trainer.train()
    assert trainer.state.max_steps == -(-len(packs) // 4)


def test_a_share_of_rows_is_not_one_of_packs() -> None:
    with pytest.raises(UserError) as error:
        compose_config(["stage=sft", "method=ogpsa_light", "stage.packing=bfd"])
    assert error.value.problems == (
        "method.refresh_every: 10% is a share of rows, of which a pack holds several (stage.packing=bfd); give a "
        "number of steps",
    )


def test_a_pack_is_no_row_that_chooses_references() -> None:
    with pytest.raises(UserError, match=r"^method\.selection: conflict .* \(stage\.packing=bfd\); allowed: random$"):
        compose_config(["stage=sft", "method=ogpsa", "method.selection=conflict", "stage.packing=bfd"])


def test_packing_is_sfts_alone() -> None:
    with pytest.raises(UserError, match=r"stage\.packing: unknown key"):
        compose_config(["stage=dpo", "stage.packing=bfd"])
    with pytest.raises(UserError, match=r"stage\.packing: found 'wrapped'; allowed is 'bfd'"):
        compose_config(["stage=sft", "stage.packing=wrapped"])
