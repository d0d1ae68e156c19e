"""LoRA: what is trained, how it gets into the weights, what DPO compares with, and what is refused."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from ogpsa import pipeline
from ogpsa.app.compose import compose_config
from ogpsa.config import Config, StageName
from ogpsa.data.rows import load_data
from ogpsa.models.adapters import dequantized, merged_model
from ogpsa.models.load import load_model
from ogpsa.testbed.cache import ensure_base
from ogpsa.training.resume import CompletionCallback
from ogpsa.training.trainer import build_trainer
from ogpsa.utils.errors import UserError
from ogpsa.utils.files import COMPLETE_FILE, read_json
from tests.stage import train_alone
from tests.training.test_seam import on_refresh

SHORT = ["method.samples=7", "method.refresh_every=4"]
NF4 = "method.lora_quantize=nf4"
ROWS = ["data.safety_rows=32", "stage.batch_size=8", "stage.micro_batch_size=4", "stage.log_every=1"]
Configure = Callable[..., Config]


def trainer_of(config: Config, start: Path, output: Path) -> Any:
    """The last stage's trainer, as a run would make it."""
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    compute = dtypes[config.model.precision] if config.method.quantization(config.stages[-1].name) else None
    model, tokenizer = load_model(start, dtypes[config.model.dtype], nf4_compute=compute)
    return build_trainer(config, config.stages[-1], model, tokenizer, load_data(config), output)


def run(config: Config, start: Path, folder: Path) -> Path:
    """Train the configuration's first stage from ``start`` into ``folder``."""
    train_alone(config, load_data(config), start, folder)
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def base(small_config: Configure) -> Path:
    return ensure_base(small_config())


@pytest.fixture(scope="module")
def tuned(small_config: Configure, base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a finished SFT stage, with adapters and without."""
    place = tmp_path_factory.mktemp("tuned")
    return {name: run(small_config("stage=sft", f"method={name}"), base, place / name) for name in ("lora", "baseline")}


# LLaMA-Factory's defaults.
DEFAULT = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear", "use_dora": False}


@pytest.mark.parametrize(
    ("override", "sft", "dpo"),
    [
        ("seed=0", DEFAULT, DEFAULT),
        ("method.lora_rank={sft: 4, dpo: 8}", DEFAULT | {"r": 4, "lora_alpha": 8}, DEFAULT),
        ("method.lora_alpha={sft: 2r, dpo: 3}", DEFAULT, DEFAULT | {"lora_alpha": 3}),
        ("method.lora_dropout={sft: 0.1, dpo: 0.0}", DEFAULT | {"lora_dropout": 0.1}, DEFAULT),
        ("method.lora_dora={sft: false, dpo: true}", DEFAULT, DEFAULT | {"use_dora": True}),
        (
            "method.lora_target_modules={sft: all-linear, dpo: [q_proj]}",
            DEFAULT,
            DEFAULT | {"target_modules": {"q_proj"}},
        ),
    ],
)
@pytest.mark.parametrize("method", ["lora", pytest.param("ogpsa_lora", marks=pytest.mark.long)])
def test_adapter_of_each_stage(
    method: str, override: str, sft: dict[str, Any], dpo: dict[str, Any], base: Path
) -> None:
    settings, (model, _) = compose_config([f"method={method}", override]).method, load_model(base, torch.float32)
    stages: list[StageName] = ["sft", "dpo"]
    adapters = [vars(settings.adapter(model, stage)) for stage in stages]
    assert [{key: adapter[key] for key in DEFAULT} for adapter in adapters] == [sft, dpo]


@pytest.mark.parametrize("model", ["tiny", "llama3_1_8b"])
@pytest.mark.parametrize("method", ["baseline", "ogpsa", "lora", "ogpsa_lora"])
def test_learning_rate_is_that_of_what_is_trained(method: str, model: str) -> None:
    adapters = method.endswith("lora")
    config = compose_config([f"method={method}", f"model={model}"])
    for stage, recipe in zip(config.stages, (config.model.recipe.sft, config.model.recipe.dpo), strict=True):
        assert stage.learning_rate == (recipe.adapter_learning_rate if adapters else recipe.learning_rate)
    if model != "tiny":  # paper, appendix
        assert [stage.learning_rate for stage in config.stages] == [1e-4 if adapters else 1e-6] * 2


@pytest.mark.parametrize("method", ["baseline", "lora"])
def test_learning_rate_that_is_given_is_taken(method: str) -> None:
    assert compose_config([f"method={method}", "stage=dpo", "stage.learning_rate=3e-3"]).stages[0].learning_rate == 3e-3


REFUSED: dict[tuple[str, ...], str] = {
    ("method=lora", "method.lora_rank=0"): (
        "method.lora_rank: found 0; allowed is greater than or equal to 1, or a mapping by stage"
    ),
    ("method=lora", "method.rank=4"): (
        "method.rank: unknown key; allowed: name, recipe_rate, lora_rank, lora_alpha, lora_dropout, "
        "lora_target_modules, lora_dora, lora_quantize; did you mean 'lora_rank'?"
    ),
    ("method=ogpsa_lora", "method.lora_dropout=0.1"): (
        "method.lora_dropout: 0.1 has no effect in dpo, which compares policy and reference without dropout; "
        "allowed: 0, or {sft: 0.1, dpo: 0.0}"
    ),
    ("method=lora", "stage=grpo", "method.lora_dropout=0.1"): (
        "method.lora_dropout: 0.1 has no effect in grpo, whose completions are sampled without dropout; allowed: 0"
    ),
    ("method=lora", "stage=sft_grpo", "method.lora_dropout=0.1"): (
        "method.lora_dropout: 0.1 has no effect in grpo, whose completions are sampled without dropout; "
        "allowed: 0, or {sft: 0.1, grpo: 0.0}"
    ),
    ("method=lora", "method.lora_target_modules=[q_proj,lm_head]"): (
        "method.lora_target_modules: an adapter on lm_head would never be trained, since the loss reads that layer's "
        "own weights; leave it out"
    ),
    ("method=baseline", "model.dtype=bf16", "model.precision=bf16"): (
        "model.dtype: weights stored in bf16 do not move at the learning rates of full fine-tuning, so "
        "method=baseline would not train; allowed: fp32 (model.precision=bf16 is autocast over it), or method=lora, "
        "ogpsa_lora"
    ),
    ("method=lora", "model.dtype=bf16"): (
        "model.precision: fp32 with model.dtype=bf16; allowed: bf16, or model.dtype=fp32"
    ),
    ("method=lora", "model.dtype=bf16", "model.precision=bf16", "distributed=zero3"): (
        "model.dtype: bf16 makes distributed=zero3 train adapters in bf16, which would not move; allowed: fp32"
    ),
}  # fmt: skip


@pytest.mark.parametrize("overrides", REFUSED, ids=" ".join)
def test_what_cannot_work_is_refused_by_name(overrides: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as raised:
        compose_config(list(overrides))
    assert list(raised.value.problems) == [REFUSED[overrides]]


def test_target_module_that_the_model_lacks(small_config: Configure, base: Path, tmp_path: Path) -> None:
    config = small_config("stage=sft", "method=lora", "method.lora_target_modules=[q_porj,v_proj]")
    with pytest.raises(UserError, match=r"'q_porj' is not a linear layer of the model.*; did you mean 'q_proj'\?"):
        trainer_of(config, base, tmp_path)


def test_layers_that_the_model_lacks_are_refused_before_anything_is_evaluated(
    small_config: Configure, tmp_path: Path
) -> None:
    def evaluate(*_: Any) -> Any:
        raise AssertionError("evaluated")

    modules = "method.lora_target_modules={sft: all-linear, dpo: [q_porj]}"
    with pytest.raises(UserError, match="'q_porj' is not a linear layer of the model"):
        pipeline.run(small_config("stage=sft_dpo", "method=lora", modules), tmp_path / "run", evaluate)


@pytest.mark.parametrize("override", ["seed=0", "method.lora_target_modules=[q_proj,v_proj]"])
def test_only_the_named_layers_train_and_in_fp32(
    override: str, small_config: Configure, base: Path, tmp_path: Path
) -> None:
    plain, _ = load_model(base, torch.float32)
    linear = {name for name, module in plain.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"}
    wanted = {name for name in linear if override == "seed=0" or name.endswith(("q_proj", "v_proj"))}
    trainer = trainer_of(small_config("stage=sft", "method=lora", override), base, tmp_path)
    trained = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in trained} == wanted
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    assert {weight.shape for name, weight in trained.items() if "lora_A" in name} >= {torch.Size((8, 32))}


@pytest.mark.parametrize(
    ("dtype", "keys"),
    [
        ("fp32", []),
        pytest.param("bf16", [], marks=pytest.mark.slow),
        pytest.param("fp32", ["method.lora_dora=true"], marks=pytest.mark.slow),
        ("fp32", [NF4]),
        pytest.param("bf16", [NF4, "method.lora_dora=true"], marks=pytest.mark.long),
    ],
)
def test_merged_model_is_the_one_that_was_trained(
    dtype: str, keys: list[str], small_config: Configure, base: Path, tmp_path: Path
) -> None:
    nf4 = NF4 in keys
    if nf4:
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (make install-8bit)")
    storage = [f"model.dtype={dtype}", f"model.precision={dtype}", *keys]
    trainer = trainer_of(small_config("stage=sft", "method=lora", *storage), base, tmp_path)
    start = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    for name, weight in trainer.model.named_parameters():
        packed = nf4 and name.endswith("base_layer.weight")
        stored = torch.float32 if weight.requires_grad or dtype == "fp32" else torch.bfloat16
        assert weight.dtype == (torch.uint8 if packed else stored)
        assert torch.equal(weight, start[name]) != weight.requires_grad
    trainer.save_model(str(tmp_path / "adapter"))
    instead = dequantized(trainer.model) if nf4 else ()
    merged = merged_model(base, tmp_path / "adapter", instead)
    before, _ = load_model(base, torch.float32)
    tokens = torch.arange(40).view(2, 20)
    with torch.no_grad():
        found, wanted, old = (model(tokens).logits.float() for model in (merged, trainer.model.eval(), before))
    difference = (found - wanted).norm() / (wanted - old).norm()
    assert difference < (1e-4 if dtype == "fp32" else 0.1)
    assert (wanted - old).norm() > 1e-2 * old.norm()
    # The full weights are not those that the adapter was trained to go with.
    if nf4:
        with torch.no_grad():
            elsewhere = merged_model(base, tmp_path / "adapter")(tokens).logits
        assert (elsewhere - wanted).norm() > 2 * (found - wanted).norm()


@pytest.mark.slow
def test_a_stage_over_4_bits_leaves_a_model_and_says_on_what_it_was_merged(
    small_config: Configure, base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (make install-8bit)")
    short = [*ROWS, *SHORT, "stage.max_steps=2", "stage.learning_rate=1e-9"]
    with caplog.at_level("INFO", logger="ogpsa"):
        folder = run(small_config("stage=sft", "method=ogpsa_lora", NF4, *short), base, tmp_path / "stage")
    assert read_json(folder / COMPLETE_FILE)["merged_on"] == "the stage's start in nf4, dequantized"
    assert "sft: the adapter is merged with the stage's start in nf4, dequantized" in caplog.text
    # Hardly trained, it is the quantized start.
    model, _ = load_model(folder, torch.float32)
    quantized, _ = load_model(base, torch.float32, nf4_compute=torch.float32)
    tokens = torch.arange(40).view(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, quantized(tokens).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_folder_of_a_stage_is_that_of_any_other_method(tuned: dict[str, Path], base: Path) -> None:
    lora, full = tuned["lora"], tuned["baseline"]
    assert {path.name for path in lora.iterdir()} == {path.name for path in full.iterdir()}
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        # Training switches the cache off in the configuration of the model that it holds.
        assert read_json(lora / name) | {"use_cache": True} == read_json(full / name) | {"use_cache": True}
    ours, theirs, start = weights(lora), weights(full), weights(base)
    shapes = [{name: (w.shape, w.dtype) for name, w in found.items()} for found in (ours, theirs)]
    assert shapes[0] == shapes[1]
    moved = {name for name in ours if not torch.equal(ours[name], start[name])}
    assert moved == {name for name in ours if name.endswith("_proj.weight")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "method", "stage"),
    [
        pytest.param("tiny", "lora", "dpo", marks=pytest.mark.long),
        pytest.param("tiny", "ogpsa_lora", "sft", marks=pytest.mark.long),
        ("qwen2_5_7b", "lora", "sft"),
        ("qwen2_5_7b", "ogpsa_lora", "dpo"),
    ],
)
def test_rates_of_the_presets_move_the_weights(
    preset: str, method: str, stage: str, small_config: Configure, base: Path, tmp_path: Path
) -> None:
    settings = compose_config([f"model={preset}", f"method={method}", f"stage={stage}"])
    chosen = [f"stage.learning_rate={settings.stages[0].learning_rate}", f"model.precision={settings.model.precision}"]
    few = SHORT if method == "ogpsa_lora" else []
    config = small_config(f"stage={stage}", f"method={method}", *chosen, *few)
    before, after = weights(base), weights(run(config, base, tmp_path / "stage"))
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert [name for name in still if name.endswith("_proj.weight")] == []


def log_probabilities(model: PreTrainedModel, row: dict[str, list[int]]) -> list[float]:
    """Of the chosen and of the rejected answer, one row alone and without padding."""
    found = []
    prompt = row["prompt_ids"]
    for answer in (row["chosen_ids"], row["rejected_ids"]):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        found.append(float(logits.log_softmax(dim=-1).gather(1, torch.tensor(answer)[:, None]).sum()))
    return found


class FirstLoss(TrainerCallback):
    """What the first step logs."""

    logs: dict[str, Any] | None = None

    def on_log(self, *_: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.logs = self.logs or logs


@pytest.mark.parametrize(
    ("method", "keys"),
    [
        ("lora", []),
        pytest.param("ogpsa_lora", [], marks=pytest.mark.slow),
        pytest.param("lora", [NF4], marks=pytest.mark.long),
        pytest.param("lora", ["method.lora_dora=true"], marks=pytest.mark.long),
    ],
)
def test_reference_of_dpo_is_the_sft_policy(
    method: str, keys: list[str], tuned: dict[str, Path], base: Path, small_config: Configure, tmp_path: Path
) -> None:
    if NF4 in keys:
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (make install-8bit)")
    few = SHORT if method == "ogpsa_lora" else []
    config = small_config("stage=dpo", f"method={method}", *ROWS, *few, *keys, "stage.learning_rate=1e-2")
    trainer = trainer_of(config, tuned["lora"], tmp_path)
    sft, _ = load_model(tuned["lora"], torch.float32, nf4_compute=torch.float32 if NF4 in keys else None)
    untuned, _ = load_model(base, torch.float32)
    prepared = [trainer.train_dataset, *(trainer.eval_dataset or {}).values()]
    for row in [row for rows in prepared for row in list(rows)[:6]]:
        reference = [row["ref_chosen_logps"], row["ref_rejected_logps"]]
        assert reference == pytest.approx(log_probabilities(sft, row), rel=1e-5)
        assert reference != pytest.approx(log_probabilities(untuned, row), rel=1e-3)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(6)])
    first = FirstLoss()
    trainer.add_callback(first)
    trainer.train()
    # Policy and reference agree before the first step, whose margin is therefore zero.
    assert first.logs is not None
    assert first.logs["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first.logs["rewards/margins"] == pytest.approx(0, abs=1e-5)
    # The policy has moved since, the reference has not.
    recomputed = trainer.compute_ref_log_probs(trainer.model, batch)  # type: ignore[attr-defined]
    for key, found in zip(("ref_chosen_logps", "ref_rejected_logps"), recomputed, strict=True):
        assert torch.allclose(found, batch[key], rtol=1e-5)
    moved = [log_probabilities(trainer.model, trainer.train_dataset[index])[0] for index in range(6)]
    assert moved != pytest.approx(batch["ref_chosen_logps"].tolist(), rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "stage", "keys"),
    [
        pytest.param("lora", "sft", [], marks=pytest.mark.long),
        ("ogpsa_lora", "sft", []),
        pytest.param("ogpsa_lora", "dpo", [], marks=pytest.mark.long),
        pytest.param("ogpsa_lora", "dpo", [NF4, "method.lora_dora=true"], marks=pytest.mark.long),
    ],
)
def test_resumed_stage_equals_the_unbroken_one(
    method: str, stage: str, keys: list[str], small_config: Configure, base: Path, tmp_path: Path
) -> None:
    if NF4 in keys:
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (make install-8bit)")
    # K = 4 divides no save; dropout draws at every step.
    few = SHORT if method == "ogpsa_lora" else []
    dropout = ["method.lora_dropout=0.1"] if stage == "sft" else []
    config = small_config(
        f"stage={stage}", f"method={method}", *ROWS, *few, *dropout, *keys, "stage.epochs=2", "stage.save_every=3"
    )
    whole = run(config, base, tmp_path / "whole")
    # A run that leaves its checkpoints behind, of which the last is then torn.
    broken = tmp_path / "broken"
    trainer = trainer_of(config, base, broken / "checkpoints")
    trainer.add_callback(CompletionCallback(trainer))
    trainer.train()
    kept, last = (broken / "checkpoints" / f"checkpoint-{step}" for step in (6, 8))
    assert kept.is_dir()
    assert not (kept / "model.safetensors").exists()
    adapter = last / "adapter_model.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:-1])
    run(config, base, broken)
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("warmup_ratio", "first"), [pytest.param("0", 1, marks=pytest.mark.long), ("0.1", 2)])
def test_second_estimate_covers_what_the_first_move_woke(
    warmup_ratio: str, first: int, small_config: Configure, base: Path, tmp_path: Path
) -> None:
    # A warm-up starts from zero, so that its first step moves nothing.
    warmup = f"stage.warmup_ratio={warmup_ratio}"
    config = small_config("stage=sft", "method=ogpsa_lora", *SHORT, *ROWS, "stage.max_steps=6", warmup)
    trainer = trainer_of(config, base, tmp_path)
    seen: dict[int, list[Tensor]] = {}

    def record(rows: list[Tensor]) -> None:
        seen[trainer.state.global_step] = [part.clone() for part in rows]

    on_refresh(trainer, record)
    trainer.train()
    assert list(seen) == [0, first, 4]
    names = [name for name, weight in trainer.model.named_parameters() if weight.requires_grad]
    for step, gradients in seen.items():
        for name, rows in zip(names, gradients, strict=True):
            assert bool(rows.any()) == ("lora_B" in name or step > 0)
