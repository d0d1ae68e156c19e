"""The pre-flight: what must hold of its figures exactly, and the real trainer and real peaks it is held against."""

import json
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, cast, get_args

import huggingface_hub.constants
import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from benchmarks.architectures import ARCHITECTURES, Architecture
from benchmarks.memory import Case, compare, peak_bytes
from eval.judging.reward import JUDGES
from ogpsa.app.compose import CONF, compose_config
from ogpsa.config import NO_JUDGES, Config, Mode, TestbedData
from ogpsa.data.rows import Data, load_data
from ogpsa.distributed.launch import launch_problems
from ogpsa.models.adapters import dequantized
from ogpsa.models.load import load_model
from ogpsa.preflight.memory import BASIS_BYTES, GB, ModelShape, Setup, estimate, shape_of
from ogpsa.preflight.report import count, fit, meta_model, remedies, report, stage_setup, stage_shapes, told_memory
from ogpsa.subspace.settings import ProjectionSettings
from ogpsa.testbed.cache import ensure_base
from ogpsa.testbed.tokenizer import build_tokenizer
from ogpsa.testbed.world import World
from ogpsa.training.trainer import build_trainer
from ogpsa.utils.errors import UserError
from tests.program import contents, run_here

MODES: tuple[Mode, ...] = get_args(Mode)
# Of one chosen micro-batch of 4 rows; r = 2 from as many references.
SETUP = Setup(rows=4, length=2048, checkpointing=True, autocast=True, rank=2, references=2)
FEW_ROWS = [
    "data.safety_rows=45",
    "data.reference_rows=24",
    "method.samples=11",
    "method.refresh_every=4",
    "stage.batch_size=8",
    "stage.micro_batch_size=4",
]


def built(architecture: Architecture) -> ModelShape:
    return shape_of(architecture.build(torch.device("meta")))


@pytest.fixture(scope="module")
def qwen() -> ModelShape:
    return built(ARCHITECTURES["qwen2_5_7b"])


@pytest.mark.parametrize(("name", "prompts_decide"), [("qwen2_5_7b", True), ("llama3_1_8b", False)])
def test_generation_is_highest_at_its_end_or_when_prompts_are_read(name: str, prompts_decide: bool) -> None:
    shape, sequences = shape_of(meta_model(compose_config([f"model={name}", "data=paper"]))), 200
    setup = replace(SETUP, weight_bytes=2, length=1024, prompt=512, generated=sequences)
    cached = 2 * 2 * shape.layers * shape.key_value_heads * shape.head_dim
    block = 2 * (3 * shape.intermediate + 2 * shape.hidden)
    ends = sequences * 1024 * cached, sequences * 512 * (cached + block)
    assert estimate(shape, setup).generation == ends[prompts_decide] == max(ends)


def test_the_cache_of_a_generation_is_as_wide_as_the_residual_stream(qwen: ModelShape) -> None:
    narrow, wide = (
        estimate(qwen, replace(SETUP, mode=mode, processes=8, autocast=True, length=1024, prompt=1, generated=200))
        for mode in ("fsdp2", "ddp")
    )
    assert wide.generation == 2 * narrow.generation


def test_replayed_answers_hold_gradients_and_whole_logits_in_grpo() -> None:
    given = ["stage=grpo", "model=qwen2_5_7b", "data=paper", "reward=refusal_rules"]
    plain, replayed = (
        estimate(*stage_shapes(config, "grpo")[1:], stage_setup(config, config.stages[0], "fsdp2", 8))
        for config in (compose_config([*given, method]) for method in ("method=baseline", "method=replay"))
    )
    assert replayed.moments["generation"] == plain.moments["generation"] + plain.gradients
    assert "answers" not in plain.moments and replayed.moments["answers"] > replayed.moments["backward"]


def test_a_stage_knows_the_tokens_of_its_prompts() -> None:
    config = compose_config(["+experiment=rl/grpo", "reward=refusal_rules"])
    setup = stage_setup(config, config.stages[0], "fsdp2", 8)
    assert (setup.length, setup.prompt, setup.generated) == (1024, 512, 200)


def test_a_7b_model_on_one_device(qwen: ModelShape) -> None:
    parameters = 7_615_616_512
    found = estimate(qwen, SETUP)
    assert qwen.parameters == qwen.trained == parameters
    assert (found.weights, found.gradients, found.optimizer) == (4 * parameters, 4 * parameters, 8 * parameters)
    assert found.basis == 2 * 2 * parameters
    assert found.communication == found.host == found.streams == 0
    assert estimate(qwen, replace(SETUP, optimizer="sgd")).optimizer == 0
    # All moments in 8 bits but the embedding's.
    embedding = 152_064 * 3_584
    expected = 2 * (parameters - embedding) + 8 * embedding
    assert estimate(qwen, replace(SETUP, optimizer="adamw_8bit")).optimizer == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("mode", MODES)
def test_what_a_mode_divides_by_the_processes(mode: Mode, qwen: ModelShape) -> None:
    one, eight = (estimate(qwen, replace(SETUP, mode=mode, processes=processes)) for processes in (1, 8))
    for part in ("gradients", "optimizer", "basis", "references"):
        assert getattr(one, part) / getattr(eight, part) == (8 if mode in ("fsdp2", "zero2", "zero3") else 1)
    # ZeRO keeps an fp32 master copy of its share beside the weights.
    copy = 4 * qwen.trained
    expected = {"fsdp2": copy / 8, "zero2": copy + copy / 8, "zero3": 2 * copy / 8}
    assert eight.weights == expected.get(mode, copy)


@pytest.mark.parametrize(("mode", "shards"), [("single", 1), ("ddp", 1), ("fsdp2", 8)])
def test_an_anchor_takes_a_copy_of_the_weights(mode: Mode, shards: int, qwen: ModelShape) -> None:
    setup = replace(SETUP, mode=mode, processes=8 if mode != "single" else 1)
    plain, anchored = (estimate(qwen, replace(setup, extra_bytes=extra)) for extra in (0.0, 4.0))
    assert anchored.weights - plain.weights == 4 * qwen.trained / shards


@pytest.mark.parametrize("mode", MODES)
def test_bases_of_inputs_are_whole_on_every_process(mode: Mode, qwen: ModelShape) -> None:
    assert estimate(qwen, replace(SETUP, mode=mode, processes=8, rank=0, references=0, whole_bytes=7e9)).basis == 7e9


@pytest.mark.parametrize("rank", [0, 1, 2, 8, 32])
@pytest.mark.parametrize(("dtype", "size"), BASIS_BYTES.items())
def test_the_basis_takes_rank_times_its_bytes(rank: int, dtype: Any, size: float, qwen: ModelShape) -> None:
    setup = replace(SETUP, rank=rank, references=rank, basis_dtype=dtype)
    assert estimate(qwen, setup).basis == rank * size * qwen.trained
    host = estimate(qwen, replace(setup, basis_device="host"))
    # The rows of a refresh are no wider than bf16, unless the basis is.
    assert (host.basis, host.references) == (0, 0)
    assert host.host == rank * max(size, 2) * qwen.trained


def test_auto_is_bf16_on_a_gpu_and_fp32_on_a_cpu(qwen: ModelShape) -> None:
    for device, dtype in (("cuda", "bf16"), ("cpu", "fp32")):
        setup: Setup = replace(SETUP, device=device)  # type: ignore[arg-type]
        found, spelled = estimate(qwen, setup), estimate(qwen, replace(setup, basis_dtype=dtype))  # type: ignore[arg-type]
        assert (found, found.moments) == (spelled, spelled.moments)


def test_streaming_adds_two_fp32_sums_a_reference(qwen: ModelShape) -> None:
    found = estimate(qwen, replace(SETUP, references=3, streamed_sums=2))
    assert found.streams == 2 * 3 * 4 * qwen.trained
    assert found.moments["backward"] - estimate(qwen, replace(SETUP, references=3)).moments["backward"] == found.streams


def test_a_refresh_takes_no_more_than_the_basis_once_more(qwen: ModelShape) -> None:
    for dtype in ("fp32", "bf16"):
        found = estimate(qwen, replace(SETUP, basis_dtype=dtype))  # type: ignore[arg-type]
        assert found.references == found.basis
    assert estimate(qwen, replace(SETUP, basis_dtype="int8")).references <= 2 * estimate(qwen, SETUP).basis


def test_a_pair_is_two_rows_and_checkpointing_saves_memory(qwen: ModelShape) -> None:
    pair, rows = estimate(qwen, replace(SETUP, rows=2, pairs=True)), estimate(qwen, SETUP)
    assert (pair, pair.moments) == (rows, rows.moments)
    stored = estimate(qwen, replace(SETUP, checkpointing=False)).activations
    assert stored > 3 * estimate(qwen, SETUP).activations


def test_the_peak_is_the_highest_moment(qwen: ModelShape) -> None:
    for mode in MODES:
        found = estimate(qwen, replace(SETUP, mode=mode, processes=4))
        assert found.peak == found.moments[found.peak_moment] == max(found.moments.values())
        assert found.peak > found.weights + found.gradients + found.optimizer


def suggested(config: Config, memory: float, processes: int = 1) -> dict[str, float]:
    """What to type against a first stage that does not fit, and the peak with it."""
    stage = config.stages[0]
    shape = stage_shapes(config, stage.name)[1]
    return {words: found.peak for words, found in remedies(config, stage, shape, processes, memory)}


SEVEN = ["model=qwen2_5_7b", "data=files", "data.safety=rows.jsonl"]
PAPER = [*SEVEN, "stage=sft", "method=ogpsa", "+data.reference_sets={helpfulness: a.jsonl, truthfulness: b.jsonl}"]


@pytest.mark.slow
def test_remedies_by_what_they_save() -> None:
    config = compose_config(PAPER)
    now = fit(config, 1, 140, NO_JUDGES).peak
    found = suggested(config, 140e9)
    assert list(found.values()) == sorted(found.values()) and max(found.values()) < now
    assert {"method.basis_dtype=int8", "stage.optimizer=adamw_8bit"} <= found.keys()
    # The one is on; the other does nothing for the optimizer's step, which is the peak.
    assert not {"model.gradient_checkpointing=true", "stage.micro_batch_size=1"} & found.keys()
    spread = [peak for words, peak in found.items() if words.startswith("distributed=")]
    assert len(spread) == 2 and max(spread) <= 140e9
    found = suggested(compose_config([*PAPER, "stage.optimizer=sgd", "model.gradient_checkpointing=false"]), 140e9)
    best = next(iter(found))
    assert best == "model.gradient_checkpointing=true" or best.startswith("distributed=")
    assert "stage.micro_batch_size=1" in found


@pytest.mark.slow
def test_what_cannot_be_sharded_is_given_up_for_it() -> None:
    whole = compose_config(["+experiment=one_card/qwen2_5_7b", "model.activation_offload=true"])
    given_up = "stage.sft.optimizer=adamw stage.dpo.optimizer=adamw model.activation_offload=false"
    assert f"distributed=fsdp2 with 4 processes, {given_up}" in suggested(whole, 80e9)
    quantized = compose_config(["+experiment=one_card/qwen2_5_7b_24gb"])
    assert "distributed=fsdp2 with 16 processes, method.lora_quantize=null" in suggested(quantized, 10e9)


# A stage or two in a mode, where at least one saving or mode is refused.
REFUSING = [
    ["stage=sft_dpo", "stage.sft.micro_batch_size=4", "stage.dpo.micro_batch_size=8", "stage.dpo.optimizer=adamw_8bit"],
    ["stage=grpo", "reward=refusal_rules", "distributed=fsdp2", "stage.micro_batch_size=16"],
    ["stage=sft", "stage.keep=best", "stage.eval_every=1", "distributed=ddp", "stage.micro_batch_size=4"],
]
METHODS = sorted(file.stem for file in (CONF / "method").glob("*.yaml"))


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(
            name,
            marks=[pytest.mark.slow] * (name != "osf") + [pytest.mark.long] * (name not in ("osf", "lora", "ogpsa")),
        )
        for name in METHODS
    ],
)
def test_remedies_are_accepted_by_every_method(method: str) -> None:
    for words in REFUSING:
        given = [f"method={method}", *words, "model.gradient_checkpointing=true"]
        try:
            config = compose_config(given)
        except UserError:
            # The method has no such stage or mode.
            continue
        count = 1 if config.distributed.name == "single" else 2
        for remedy in suggested(config, 1.0, count):
            typed = remedy.replace(" with ", " distributed.processes=").replace(" processes", "").replace(",", "")
            changed = compose_config([*given, *typed.split()])
            problems = launch_problems(changed, changed.distributed.processes or count)
            assert [line for line in problems if "not installed" not in line] == [], remedy


def test_adapters_are_what_peft_makes(small_config: Callable[..., Config], tmp_path: Path) -> None:
    architecture = Architecture("llama", 64, 3, 96, 4, 2, 200)
    architecture.build(torch.device("meta")).config.save_pretrained(tmp_path)
    modules = "method.lora_target_modules=[q_proj,down_proj]"
    whole, shape = stage_shapes(small_config(f"model.path={tmp_path}", "method=lora", modules), "sft")
    assert whole == built(architecture)
    assert shape.trained == 3 * 8 * ((64 + 64) + (96 + 64))
    assert shape.parameters == built(architecture).parameters + shape.trained
    assert (shape.adapted, shape.trained_head) == (64 + 96, False)
    assert (shape.block, shape.matrices) == (built(architecture).block, built(architecture).matrices)
    found = estimate(shape, SETUP)
    assert found.gradients == 4 * shape.trained and found.weights == 4 * shape.parameters
    half = estimate(shape, replace(SETUP, weight_bytes=2))
    assert half.weights == 2 * (shape.parameters - shape.trained) + 4 * shape.trained


def test_a_base_in_4_bits_takes_what_bitsandbytes_stores(small_config: Callable[..., Config]) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (make install-8bit)")
    config = small_config("stage=sft", "method=lora", "method.lora_dora=true", "method.lora_quantize=nf4")
    whole, shape = stage_shapes(config, "sft")
    # Each of the linear layers carries one magnitude for each of its outputs.
    assert shape.trained - stage_shapes(small_config("method=lora"), "sft")[1].trained == (
        shape.layers * shape.magnitudes
    )
    model, _ = load_model(ensure_base(config), torch.float32, nf4_compute=torch.float32)
    stored = 0
    for weight in model.parameters():
        stored += weight.nbytes
        if weight.dtype == torch.uint8:
            state: Any = vars(weight)["quant_state"]
            stored += state.absmax.nbytes + state.state2.absmax.nbytes
    setup = stage_setup(config, config.stages[0], "single", 1)
    adapters = 4 * (shape.parameters - whole.parameters)
    assert estimate(shape, setup).weights == pytest.approx(stored + adapters, rel=1e-2)


def test_paged_and_offloaded_tensors_count_on_the_host(qwen: ModelShape) -> None:
    kept, paged, offloaded = (
        estimate(qwen, setup)
        for setup in (
            replace(SETUP, optimizer="adamw_8bit"),
            replace(SETUP, optimizer="paged_adamw_8bit"),
            replace(SETUP, optimizer="adamw_8bit", offloads=True),
        )
    )
    # But for norms and biases all tensors are paged.
    assert paged.host == pytest.approx(kept.optimizer, rel=1e-3)
    assert paged.optimizer + paged.host == pytest.approx(kept.optimizer)
    assert kept.peak > paged.peak
    # Of the inputs of 28 blocks six are on the device.
    assert offloaded.host == 22 * 4 * 3584 * 4 * 2048
    assert offloaded.activations < kept.activations


@pytest.mark.parametrize("method", ["lora", pytest.param("osf", marks=pytest.mark.long)])
def test_merging_takes_the_host_memory_that_is_said(
    method: str, small_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = small_config("stage=sft", f"method={method}")
    start, (_, shape) = ensure_base(config), stage_shapes(config, "sft")
    model, _ = load_model(start, torch.float32)
    adapter = config.method.adapter(model, "sft")
    assert adapter is not None
    get_peft_model(model, adapter).save_pretrained(str(tmp_path))
    adapted = PeftModel.from_pretrained(load_model(start, torch.float32)[0], tmp_path)
    assert shape.merging == sum(tensor.nbytes for tensor in (*adapted.parameters(), *adapted.buffers()))
    said = f"merge: {shape.merging / GB:.3g} GB of the main process's host memory"
    assert said in report(config, load_data(config))
    assert "merge:" not in report(small_config("method=baseline"), load_data(config))


def test_merging_with_4_bits_unpacks_one_matrix_at_a_time(small_config: Callable[..., Config]) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (make install-8bit)")
    config = small_config("stage=sft", "method=lora", "method.lora_quantize=nf4")
    model, _ = load_model(ensure_base(config), torch.float32, nf4_compute=torch.float32)
    adapter = config.method.adapter(model, "sft")
    assert adapter is not None
    trained = cast(PeftModel, get_peft_model(model, adapter))
    unpacked = list(dequantized(trained))
    assert len(unpacked) == 7 * model.config.num_hidden_layers
    largest = max(weight.nbytes for _, weight in unpacked)

    def unpack() -> None:
        deque(dequantized(trained), maxlen=0)

    peak = peak_bytes(unpack, torch.device("cpu"))
    # With the scales that are unpacked for it, and the last one until the next is there.
    assert largest <= peak <= 3 * largest


# 139 GiB, and what the smallest cards sold as 24 and 48 GB hold.
CARDS = {"qwen2_5_7b": 149, "qwen2_5_7b_24gb": 24, "qwen2_5_7b_48gb": 48}


@pytest.mark.parametrize(
    "preset",
    [
        pytest.param(file.stem, marks=[pytest.mark.slow] * (file.stem != "qwen2_5_7b_24gb"))
        for file in sorted((CONF / "experiment" / "one_card").glob("*.yaml"))
    ],
)
def test_the_presets_for_one_card_fit_it_and_no_smaller_one(preset: str) -> None:
    config = compose_config([f"+experiment=one_card/{preset}"])
    found = fit(config, 1, CARDS[preset], NO_JUDGES)
    assert (found.fits, found.text) == (True, "fits")
    # With a tenth of room for what is not counted, as the context of CUDA.
    assert found.peak < 0.9 * CARDS[preset] * GB
    smaller = [card for card in CARDS.values() if card < CARDS[preset]]
    assert not smaller or not fit(config, 1, max(smaller), NO_JUDGES).fits
    described = (CONF / "experiment" / "one_card" / f"{preset}.yaml").read_text()
    assert f"it prints what it takes: {found.peak / GB:.0f} GB." in described


def test_the_testbed_base_is_known_before_it_is_trained(small_config: Callable[..., Config]) -> None:
    config = small_config()
    assert isinstance(config.data, TestbedData)
    trained = AutoModelForCausalLM.from_pretrained(ensure_base(config))
    assert shape_of(meta_model(config)) == shape_of(trained)


def test_a_hub_model_needs_its_configuration_alone(
    small_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qwen: ModelShape
) -> None:
    place = tmp_path / "models--somebody--qwen"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0123")
    (place / "snapshots" / "0123").mkdir(parents=True)
    config = ARCHITECTURES["qwen2_5_7b"].build(torch.device("meta")).config
    (place / "snapshots" / "0123" / "config.json").write_text(json.dumps(config.to_dict()))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert shape_of(meta_model(small_config("model.path=somebody/qwen"))) == qwen


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        # As the hub's pages count them.
        ("qwen2_5_0_5b", 494_032_768),
        pytest.param("qwen2_5_1_5b", 1_543_714_304, marks=pytest.mark.slow),
        pytest.param("qwen2_5_3b", 3_085_938_688, marks=pytest.mark.slow),
        pytest.param("qwen2_5_7b", 7_615_616_512, marks=pytest.mark.slow),
        ("llama3_2_1b", 1_235_814_400),
        pytest.param("llama3_2_3b", 3_212_749_824, marks=pytest.mark.slow),
        pytest.param("llama3_1_8b", 8_030_261_248, marks=pytest.mark.slow),
        pytest.param("llama3_3_70b", 70_553_706_496, marks=pytest.mark.slow),
        pytest.param("qwen3_0_6b", 596_049_920, marks=pytest.mark.slow),
        pytest.param("qwen3_1_7b", 1_720_574_976, marks=pytest.mark.slow),
        pytest.param("qwen3_4b", 4_022_468_096, marks=pytest.mark.slow),
        ("qwen3_8b", 8_190_735_360),
        pytest.param("gemma3_1b", 999_885_952, marks=pytest.mark.slow),
        pytest.param("gemma3_4b", 4_300_079_472, marks=pytest.mark.slow),
        ("olmo3_7b", 7_298_011_136),
        pytest.param("smollm3_3b", 3_075_098_624, marks=pytest.mark.slow),
    ],
)
def test_a_named_model_needs_no_network(model: str, parameters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", ask)
    config = compose_config([f"model={model}", "data=files", "data.safety=rows.jsonl", "method=baseline"])
    assert shape_of(meta_model(config)).parameters == parameters
    assert "architecture" not in config.identity()["model"]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["method=lora"], "model.dtype=bf16: "),
        pytest.param(
            ["method=lora", "model.precision=fp32"], "model.dtype=bf16 model.precision=bf16: ", marks=pytest.mark.long
        ),
        (["method=lora", "model.dtype=bf16"], None),
        (["method=baseline"], None),
    ],
)
def test_memory_that_the_environment_names_counts(
    words: list[str], offered: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": "p", "chosen": "c", "rejected": "r"}] * 64
    config = compose_config(["model=qwen2_5_7b", "stage=sft", "data=files", "data.safety=rows.jsonl", *words])
    monkeypatch.setenv("OGPSA_GPU_MEMORY_GB", "24")
    said = report(config, Data(rows, {}, {}))
    assert "OGPSA_GPU_MEMORY_GB's 24.0 GB" in said
    lines = [line.strip() for line in said.splitlines() if "model.dtype" in line]
    assert len(lines) == (offered is not None)
    assert offered is None or lines[0].startswith(offered)


@pytest.mark.slow
def test_a_judge_with_weights_that_rewards_is_in_the_memory() -> None:
    given = ["model=qwen2_5_7b", "stage=grpo", "reward=llama_guard", "method=baseline"]
    said, free = (
        report(compose_config([*given, *more]), load_data(compose_config(given)), JUDGES)
        for more in (["reward.judge=llama_guard_weights"], [])
    )
    assert "reward: 24 GB of judges' weights on the main process's GPU, among the weights" in said
    weights = [
        float(next(line.split()[1] for line in text.splitlines() if line.split()[:1] == ["fsdp2"]))
        for text in (said, free)
    ]
    assert weights[0] - weights[1] == pytest.approx(24, abs=0.1) and "judges' weights" not in free


@pytest.mark.parametrize("text", ["much", "-3", "0", "nan"])
def test_memory_that_is_not_a_number_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OGPSA_GPU_MEMORY_GB", text)
    with pytest.raises(UserError, match=rf"^OGPSA_GPU_MEMORY_GB: found '{text}'; expected a number of GB, as 80$"):
        told_memory()


def test_another_kind_of_model_is_refused_by_name() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=16))
    with pytest.raises(UserError, match="gpt2 has no num_hidden_layers"):
        shape_of(model)


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("mixtral", "num_local_experts"), ("olmoe", "num_experts"), ("llama4_text", "num_local_experts"),
        ("deepseek_v3", "n_routed_experts"),
    ],
)  # fmt: skip
def test_a_mixture_of_experts_is_refused_by_name(kind: str, key: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, num_hidden_layers=1))
    with pytest.raises(UserError, match=rf"{kind} is a mixture of experts \({key}=\d+\)"):
        shape_of(model)


# Four processes share these batches.
SPREAD = ["stage.sft.micro_batch_size=4", "stage.dpo.micro_batch_size=8"]
TRAINED = [
    pytest.param(["stage=sft"], marks=pytest.mark.long),
    ["stage=sft", "stage.epochs=2.5", "stage.micro_batch_size=8"],
    pytest.param(["stage=sft", "stage.max_steps=7"], marks=pytest.mark.long),
    ["stage=sft", "method.streaming=true"],
    pytest.param(["stage=sft", "method.refresh_every=never"], marks=pytest.mark.long),
    pytest.param(["stage=sft", "method=ogpsa_lora"], marks=pytest.mark.long),
    # With a warm-up the estimate after the first move is at step 2, as one of these is.
    ["stage=sft", "method=ogpsa_lora", "method.refresh_every=2"],
    ["stage=dpo", "method.rank=3"],
    ["stage=sft", "method.selection=conflict"],
]


@pytest.mark.slow
@pytest.mark.parametrize("overrides", TRAINED, ids=" ".join)
def test_counts_are_what_the_trainer_does(
    overrides: list[str], small_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = small_config(*FEW_ROWS, *overrides)
    stage, data = config.stages[0], load_data(config)
    model = AutoModelForCausalLM.from_pretrained(ensure_base(config))
    trainer = build_trainer(config, stage, model, build_tokenizer(World(0).vocabulary()), data, tmp_path)
    trainer.get_train_dataloader()  # DPO computes its reference log-probabilities here
    rows: list[int] = []
    model.model.embed_tokens.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    trainer.train()
    found = count(stage, config.method.projection(stage.name), data, checkpointing=False)
    sequences = 2 if stage.name == "dpo" else 1
    assert found.steps == trainer.state.global_step
    assert sum(rows) == sequences * (found.samples + found.reference_samples)
    assert found.share == found.reference_samples / (found.samples + found.reference_samples)


def test_shares_of_rows_and_of_work(small_config: Callable[..., Config]) -> None:
    config = small_config("stage=sft", *FEW_ROWS)
    data = load_data(config)
    text = {"prompt": "p" * 10, "chosen": "c" * 10, "rejected": "r" * 30}
    longer = {"prompt": "p" * 10, "chosen": "c" * 50, "rejected": "r" * 30}
    made = replace(data, safety=[text] * 64, reference_sets={"a": [longer] * 30, "b": [text] * 30})
    projection = ProjectionSettings(("a", "b"), rank=2, samples=20, refresh_every=4)
    # 64 rows × 3 epochs in batches of 8: 24 steps, 6 refreshes of 2 × 20 rows.
    found = count(config.stages[0], projection, made, checkpointing=False)
    assert (found.steps, found.samples, found.refreshes, found.reference_samples) == (24, 192, 6, 240)
    assert found.share == 240 / 432
    assert found.work == pytest.approx(6 * 20 * (60 + 20) / (6 * 20 * (60 + 20) + 192 * 20))
    assert count(config.stages[0], None, made, checkpointing=False).share == 0
    # 0.3 of 192 rows are 57, which 2 × 20 rows fit into once; half of them twice.
    for share, refreshes in ((0.3, 1), (0.5, 2), (0.01, 1)):
        shared = replace(projection, refresh_every=None, share=share)
        assert count(config.stages[0], shared, made, checkpointing=False).refreshes == refreshes
    # In DPO a pair sends 10 + 10 + 10 + 30 characters; the reference policy reads every row once, forward only.
    dpo = small_config("stage=dpo", "stage.batch_size=8", "stage.micro_batch_size=4").stages[0]
    found = count(dpo, replace(projection, reference_sets=("b",)), made, checkpointing=True)
    assert (found.steps, found.refreshes, found.reference_samples) == (8, 2, 40)
    assert found.work == pytest.approx(40 * 60 / (40 * 60 + 64 * 60 + (64 + 30) * 60 / 4))


@pytest.mark.parametrize(
    ("samples", "micro", "processes", "several"),
    [
        (32, 16, 1, False),
        # The first of two chunks has a row more.
        (33, 16, 1, True),
        (32, 8, 2, False),
        # 17 rows: eight for each of two processes, and one that only one of them counts.
        (33, 8, 2, True),
        (2, 8, 2, False),
    ],
)
def test_a_chunk_that_takes_several_micro_batches_is_counted_as_such(
    samples: int, micro: int, processes: int, several: bool
) -> None:
    config = compose_config(["stage=sft", "method=ogpsa", f"method.samples={samples}", "method.rank=4",
                             "stage.batch_size=16", f"stage.micro_batch_size={micro}"])  # fmt: skip
    mode = "single" if processes == 1 else "ddp"
    assert stage_setup(config, config.stages[0], mode, processes).reference_accumulates == several


def test_processes_share_the_batch(small_config: Callable[..., Config]) -> None:
    config = small_config("stage=sft", "data.safety_rows=128", "stage.batch_size=16", "stage.micro_batch_size=2")
    stage, data = config.stages[0], load_data(config)
    alone, shared = (count(stage, config.method.projection("sft"), data, False, processes) for processes in (1, 4))
    assert alone == shared
    assert stage_setup(config, stage, "fsdp2", 4).accumulates and not stage_setup(config, stage, "fsdp2", 8).accumulates


def test_the_report_names_every_mode_and_the_sizes(small_config: Callable[..., Config]) -> None:
    config = small_config("stage=sft_dpo", "method.samples=8", "method=ogpsa_lora", "method.lora_rank=4")
    text = report(config, load_data(config))
    for line in ("4 epochs", "refreshes", "trained in adapters", "no GPU on this machine"):
        assert text.count(line) == (2 if line != "4 epochs" else 0)
    for mode in MODES:
        assert text.count(f" {mode} ") == 2


@pytest.mark.slow
def test_preflight_prints_and_writes_nothing(small: list[str], tmp_path: Path) -> None:
    given = ["preflight=true", "method.samples=8"]
    alone = run_here(*small, *given, "hydra.run.dir=run", cwd=tmp_path)
    assert (alone.code, contents(tmp_path)) == (0, {})
    assert [line.split(":")[0] for line in alone.stdout.splitlines() if line.startswith(("sft:", "dpo:"))] == [
        "sft",
        "dpo",
    ]
    spread = run_here(
        *small, *given, "distributed=fsdp2", "distributed.processes=4", *SPREAD, "hydra.run.dir=run", cwd=tmp_path
    )
    assert spread.code == 0 and "4 processes" in spread.stdout
    sweep = run_here("-m", *small, *given, "stage=sft", "method.rank=1,2", "hydra.sweep.dir=runs", cwd=tmp_path)
    assert sweep.code == 0 and sweep.stdout.count("sft:") == 2
    # Hydra's own record of the sweep.
    assert list(contents(tmp_path)) == ["runs", "runs/multirun.yaml"]


@pytest.mark.slow
def test_an_unknown_hub_id_is_one_line(small: list[str], tmp_path: Path) -> None:
    given = ["preflight=true", "method.samples=8", "model.path=nobody/nothing", "hydra.run.dir=run"]
    refused = run_here(*small, *given, cwd=tmp_path)
    assert (refused.code, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: model.path: config.json of nobody/nothing is not in the hub's cache")
    assert refused.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        Case("llama_6m", "sft", False, 2, "adamw", padded=True, rows=1),
        pytest.param(Case("llama_6m", "dpo", True, 0, "sgd", autocast=True, rows=1), marks=pytest.mark.long),
        Case("llama_6m", "sft", True, 4, "sgd", fused=False, rows=1),
    ],
    ids=str,
)
def test_a_peak_is_within_two_percent_of_the_estimate(case: Case) -> None:
    assert compare(case, torch.device("cpu"))["ratio"] == pytest.approx(1, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(["stage=sft"], marks=pytest.mark.long),
        ["stage=dpo"],
        pytest.param(["stage=sft", "method.streaming=true"], marks=pytest.mark.long),
    ],
    ids=" ".join,
)
def test_the_trainer_peaks_within_two_percent_of_the_estimate(
    overrides: list[str], small_config: Callable[..., Config], tmp_path: Path
) -> None:
    given = ["stage.batch_size=64", "stage.micro_batch_size=32", "stage.max_steps=3"]
    config = small_config(*given, "method.samples=64", "method.refresh_every=1", *overrides)
    words, random = World(0).vocabulary(), Random(0)

    def rows() -> list[dict[str, str]]:
        """Different texts of the same length, so that every micro-batch is as large as the largest."""
        return [
            {column: " ".join(random.choices(words, k=8)) for column in ("prompt", "chosen", "rejected")}
            for _ in range(64)
        ]

    data = load_data(config)
    data = replace(data, safety=rows(), reference_sets={name: rows() for name in data.reference_sets})
    tokenizer = build_tokenizer(words)
    architecture = Architecture("llama", 256, 4, 512, 4, 4, len(tokenizer))
    lengths: list[int] = []

    def work() -> None:
        model = architecture.build(torch.device("cpu"))
        trainer = build_trainer(config, config.stages[0], model, tokenizer, data, tmp_path)
        model.model.embed_tokens.register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[1]))
        trainer.train()

    measured = peak_bytes(work, torch.device("cpu"))
    setup = replace(stage_setup(config, config.stages[0], "single", 1), length=max(lengths), device="cpu")
    expected = estimate(built(architecture), setup)
    assert expected.peak / GB == pytest.approx(measured / GB, rel=0.02)
