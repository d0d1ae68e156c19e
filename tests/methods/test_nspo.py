"""NSPO's variants in training: what they leave as it is, what leaks, resume, the untuned model, what is refused."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from ogpsa.app.compose import compose_config
from ogpsa.config import Config
from ogpsa.data.rows import load_data
from ogpsa.methods.nspo import Nspo
from ogpsa.models.load import load_model
from ogpsa.models.tokenizer import conversation_tokens
from ogpsa.nullspace.kept import KeptSpaces
from ogpsa.nullspace.moments import second_moments
from ogpsa.preflight.memory import EIGHT_BITS, estimate
from ogpsa.preflight.report import report, stage_setup, stage_shapes
from ogpsa.testbed.cache import ensure_base
from ogpsa.testbed.tokenizer import build_tokenizer
from ogpsa.testbed.world import World
from ogpsa.training.callbacks import StepCallback
from ogpsa.training.trainer import build_trainer
from ogpsa.utils.errors import UserError
from ogpsa.utils.files import read_jsonl
from tests.stage import train_alone, train_and_tear, trained
from tests.tiny import LFM2, QWEN3_NEXT, byte_tokenizer, other_kind, save_tiny

Configure = Callable[..., Config]
NSPO = ["method=nspo", "method.samples=60"]
ROWS = [
    "data.safety_rows=56",
    "stage.batch_size=8",
    "stage.micro_batch_size=4",
    "stage.log_every=1",
    "stage.max_steps=7",
]
# Far enough for the rounding of the weights to be small beside what they have moved.
FAR = ["stage.learning_rate=5e-3", "stage.weight_decay=0.1", "stage.scheduler=constant", "stage.warmup_ratio=0"]
Train = Callable[..., tuple[dict[str, Tensor], list[dict[str, float]]]]


@pytest.fixture(scope="module")
def train(small_config: Configure, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """``train(*overrides)``: the weights of a finished stage, trained once, and what was logged at each step."""
    place = tmp_path_factory.mktemp("trained")

    @cache
    def once(*overrides: str) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
        weights, history = trained(small_config(*ROWS, *overrides), place)
        return weights, [row for row in history if "loss" in row]

    return once


def prepared(config: Config, base: Path) -> Nspo:
    """The configuration's method with the null spaces of the model in ``base``."""
    run: Any = SimpleNamespace(
        config=config, data=load_data(config), safe_point=lambda: None, on_main_process=lambda work: work()
    )
    method = config.method
    assert isinstance(method, Nspo)
    method.prepare(base, run)
    return method


def spaces_of(config: Config) -> KeptSpaces:
    spaces = prepared(config, ensure_base(config))._spaces
    assert spaces is not None
    return spaces


def moved(config: Config, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """By how much each weight has changed, in fp64."""
    start = load_file(ensure_base(config) / "model.safetensors")
    return {name: weights[name].double() - start[name].double() for name in start}


def leak(config: Config, weights: dict[str, Tensor]) -> float:
    """‖ΔW (I − P)‖ / ‖ΔW‖ over all layers that have a null space, in fp64."""
    found, step, sizes = spaces_of(config), moved(config, weights), torch.zeros(2).double()
    for group, space in found.load().items():
        basis = torch.linalg.qr(space.basis.double()).Q
        for layer in found.groups[group]:
            inside = step[f"{layer}.weight"] @ basis @ basis.T
            outside = step[f"{layer}.weight"] - inside if space.of_null_side else inside
            sizes += torch.stack([outside.square().sum(), step[f"{layer}.weight"].square().sum()])
    return float((sizes[0] / sizes[1]).sqrt())


@pytest.mark.parametrize(
    ("variant", "stage"),
    [
        pytest.param("paper", "sft", marks=pytest.mark.long),
        pytest.param("exact", "dpo", marks=pytest.mark.slow),
        ("code", "sft"),
    ],
)
def test_where_all_is_null_it_is_the_baseline_bit_for_bit(variant: str, stage: str, train: Train) -> None:
    all_null = ["method.threshold=1", "method.null_shares=[0,1]"]
    ours, _ = train(*NSPO, f"method.variant={variant}", f"stage={stage}", *all_null)
    theirs, _ = train("method=baseline", f"stage={stage}")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("stage", "more"),
    [
        ("sft", []),
        pytest.param("dpo", ["method.others=freeze"], marks=pytest.mark.slow),
        pytest.param("sft", ["method.modules=[down_proj]"], marks=pytest.mark.slow),
    ],
)
def test_exact_stays_in_the_null_space_under_adamw(
    stage: str, more: list[str], train: Train, small_config: Configure
) -> None:
    overrides = [*NSPO, f"stage={stage}", "method.variant=exact", *FAR, *more]
    weights, steps = train(*overrides)
    config = small_config(*ROWS, *overrides)
    assert leak(config, weights) < 1e-6
    assert max(step["projection/leak"] for step in steps) < 1e-6
    # What the optimizer wants is something else.
    assert min(step["projection/retracted"] for step in steps) > 0.1
    protected = {f"{layer}.weight" for layer in spaces_of(config).layers}
    changed = {name for name, step in moved(config, weights).items() if step.any()}
    assert changed == (protected if more == ["method.others=freeze"] else set(weights))


@pytest.mark.slow
def test_paper_leaks_under_adamw_and_not_under_sgd(train: Train, small_config: Configure) -> None:
    overrides = [*NSPO, "method.variant=paper", "stage=sft", *FAR]
    weights, steps = train(*overrides)
    found = leak(small_config(*ROWS, *overrides), weights)
    assert 0.05 < found < 0.6 and steps[-1]["projection/leak"] == pytest.approx(found, rel=1e-4)
    assert all(0.1 < step["projection/gradient_outside"] <= 1 for step in steps)
    plain = [*NSPO, "method.variant=paper", "stage=sft", "stage.optimizer=sgd", "stage.learning_rate=0.1"]
    assert leak(small_config(*ROWS, *plain), train(*plain)[0]) < 1e-4


def test_code_retracts_after_steps_1_6_11(train: Train) -> None:
    _, steps = train(*NSPO, "method.variant=code", "stage=sft", *FAR, "stage.max_steps=12")
    assert [step["step"] for step in steps if step["projection/leak"] < 1e-6] == [1, 6, 11]
    assert [step["step"] for step in steps if "projection/retracted" in step] == [1, 6, 11]
    shares = {key.split("/")[2] for key in steps[0] if "null_share" in key}
    assert shares == {"gate_proj", "up_proj", "down_proj"}


@pytest.mark.slow
def test_outputs_on_the_general_rows_stay(train: Train, small_config: Configure) -> None:
    overrides = [*NSPO, "stage=sft", "method.variant=exact", *FAR]
    config = small_config(*ROWS, *overrides)
    data, found = load_data(config), spaces_of(config)
    step, free = moved(config, train(*overrides)[0]), moved(config, train("method=baseline", "stage=sft", *FAR)[0])
    model, tokenizer = load_model(ensure_base(config), torch.float32)
    rows = [data.reference_sets[name] for name in ("helpfulness", "truthfulness")]
    turns = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["chosen"]}]
        for part in rows
        for row in part
    ]
    tokens = conversation_tokens(tokenizer, turns)
    # Of all rows, of which those that the spaces come from are a third.
    moments = second_moments(model, list(found.groups), tokens, True, lambda: None)
    for group, layers in found.groups.items():
        for layer in layers:
            ours, theirs = (
                float(torch.einsum("oi,ij,oj->", change, moments[group], change) / change.square().sum())
                for change in (step[f"{layer}.weight"], free[f"{layer}.weight"])
            )
            assert ours <= 0.011 * float(moments[group].trace())
            assert ours < 0.2 * theirs


OTHER_KINDS: dict[str, tuple[dict[str, Any], str, str]] = {
    "lfm2": (LFM2, "[in_proj,out_proj,q_proj,k_proj,v_proj,w1,w2,w3]", "model.layers.0.conv.conv"),
    "qwen3_next": (QWEN3_NEXT, "[in_proj_qkvz,out_proj,q_proj,o_proj]", "model.layers.0.linear_attn.conv1d"),
}


@pytest.mark.parametrize("kind", ["lfm2", pytest.param("qwen3_next", marks=pytest.mark.slow)])
def test_models_of_other_kinds_train_where_their_layers_are_linear(
    kind: str, small_config: Configure, tmp_path: Path
) -> None:
    settings, modules, unfit = OTHER_KINDS[kind]
    tokenizer, base = build_tokenizer(World(0).vocabulary()), tmp_path / "base"
    other_kind(kind, tokenizer, num_hidden_layers=2, **settings).save_pretrained(base)
    tokenizer.save_pretrained(base)
    given = [*NSPO, *ROWS, *FAR, "stage=sft", "method.variant=exact", "stage.max_steps=2"]
    with pytest.raises(UserError, match=rf"^method\.modules: 'all-linear' also stands for {unfit}\b.* be unprotected;"):
        prepared(small_config(*given), base)
    config = small_config(*given, f"method.modules={modules}", "method.null_shares=[0,1]")
    prepared(config, base)
    train_alone(config, load_data(config), base, tmp_path / "stage")
    rows = read_jsonl(tmp_path / "stage" / "history.jsonl")
    leaks = [row["projection/leak"] for row in rows if "projection/leak" in row]
    assert len(leaks) == 2 and max(leaks) < 1e-4
    start, end = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "stage"))
    changed = [name for name in start if not torch.equal(start[name], end[name])]
    assert any(name.endswith("out_proj.weight") for name in changed)


@pytest.mark.slow
def test_random_spaces_are_of_equal_dimension(train: Train) -> None:
    given = [*NSPO, "stage=sft", "method.variant=exact", *FAR]
    ours, own = train(*given)
    theirs, drawn = train(*given, "method.basis=random")
    assert not torch.equal(*(found["model.layers.0.mlp.down_proj.weight"] for found in (ours, theirs)))
    shares = [{key: value for key, value in steps[0].items() if "null_share" in key} for steps in (own, drawn)]
    assert shares[0] == shares[1] and drawn[-1]["projection/leak"] < 1e-6


def test_a_later_stage_takes_the_untuned_models_spaces(small_config: Configure, tmp_path: Path) -> None:
    config = small_config(*NSPO, "method.threshold=0.05", "stage=sft_dpo")
    keys = {}
    for name in ("one", "other"):
        model = save_tiny(tmp_path / name, byte_tokenizer(), seed=len(keys))
        keys[name] = prepared(config, model).training_key("dpo")
    assert keys["one"].keys() == keys["other"].keys()
    assert [key for key in keys["one"] if keys["one"][key] != keys["other"][key]] == ["spaces"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "stage"), [pytest.param("paper", "sft", marks=pytest.mark.long), ("code", "dpo"), ("exact", "sft")]
)
def test_resumed_stage_equals_the_unbroken_one(
    variant: str, stage: str, small_config: Configure, train: Train, tmp_path: Path
) -> None:
    overrides = [*NSPO, f"method.variant={variant}", f"stage={stage}", *FAR, "stage.save_every=4"]
    whole, steps = train(*overrides)
    config = small_config(*ROWS, *overrides)
    base, data, folder = ensure_base(config), load_data(config), tmp_path / "broken"
    prepared(config, base)
    # So that the stage resumes from step 4, between two retractions of ``code``.
    train_and_tear(config, folder, 7)
    train_alone(config, data, base, folder)
    weights = load_file(folder / "model.safetensors")
    assert all(torch.equal(weights[name], whole[name]) for name in whole)

    def numbers(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
        return [{key: value for key, value in row.items() if "seconds" not in key} for row in rows if "loss" in row]

    assert numbers(read_jsonl(folder / "history.jsonl")) == numbers(steps)


# Of a block of Qwen2.5-7B: squared widths of its inputs (q, k and v; o; gate and up; down) and weights of its layers.
ATTENTION, MLP = (2 * 3584**2, 2 * 3584 * (3584 + 512)), (3584**2 + 18944**2, 3 * 3584 * 18944)


@pytest.mark.parametrize(
    ("overrides", "pairs", "kept"),
    [
        (["method.variant=paper"], ATTENTION[0] + MLP[0], 0),
        (["method.variant=exact"], ATTENTION[0] + MLP[0], ATTENTION[1] + MLP[1]),
        (["method.variant=code"], *MLP),
        (["method.variant=exact", "method.modules=[o_proj]"], 3584**2, 3584**2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_preflight_counts_the_chosen_layers_alone(overrides: list[str], pairs: int, kept: int) -> None:
    config = compose_config(["method=nspo", "model=qwen2_5_7b", "data=testbed", "stage=grpo", *overrides])
    shape, setup = stage_shapes(config, "grpo")[1], stage_setup(config, config.stages[0], "single", 1)
    found, plain = (estimate(shape, one) for one in (setup, replace(setup, extra_bytes=0, whole_bytes=0)))
    # An fp32 basis of at most half the width of each input, and the fp32 weights that the stage started from.
    assert found.basis - plain.basis == 28 * 2 * pairs
    assert found.weights - plain.weights == pytest.approx(28 * 4 * kept)
    # ``paper`` keeps these on the host, on every process.
    assert found.host == (0 if kept else 28 * 4 * (ATTENTION[1] + MLP[1]))


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(["method.others=train"], marks=pytest.mark.slow),
        ["method.others=freeze"],
        pytest.param(["method.others=freeze", "method.modules=[down_proj]"], marks=pytest.mark.long),
    ],
    ids=" ".join,
)
def test_preflight_charges_gradients_and_moments_of_what_is_trained_alone(
    overrides: list[str], small_config: Configure, tmp_path: Path
) -> None:
    config = small_config(*NSPO, *ROWS, "method.variant=exact", "stage=sft", "stage.max_steps=1", *overrides)
    base, data = ensure_base(config), load_data(config)
    prepared(config, base)
    trainer = build_trainer(config, config.stages[0], *load_model(base, torch.float32), data, tmp_path)
    model, found = cast(PreTrainedModel, trainer.model), dict[str, int]()

    def measure(**event: Any) -> None:
        found["gradients"] = sum(weight.grad.nbytes for weight in model.parameters() if weight.grad is not None)

    trainer.add_callback(StepCallback(on_pre_optimizer_step=measure))
    trainer.train()
    states = cast(Optimizer, trainer.optimizer).state.values()
    found["optimizer"] = sum(one.nbytes for state in states for one in state.values() if one.dim())
    found["kept"] = sum(start.nbytes for start in cast(Any, trainer).null_spaces._start.values())
    shape, setup = stage_shapes(config, "sft")[1], stage_setup(config, config.stages[0], "single", 1)
    foreseen = estimate(shape, setup)
    # Each weight is there once, trained or not.
    kept = foreseen.weights - sum(weight.nbytes for weight in model.parameters())
    assert found == {"gradients": foreseen.gradients, "optimizer": foreseen.optimizer, "kept": pytest.approx(kept)}
    # What 8 bits do not hold is the embedding's.
    eight = estimate(shape, replace(setup, optimizer="adamw_8bit")).optimizer
    assert (eight > EIGHT_BITS * shape.trained) == ("method.others=train" in overrides)


@pytest.mark.parametrize(
    ("others", "trained"), [pytest.param("train", "all of them", marks=pytest.mark.slow), ("freeze", "6.53 B of them")]
)
def test_preflight_says_how_much_is_trained(others: str, trained: str) -> None:
    config = compose_config(["method=nspo", f"method.others={others}", "model=qwen2_5_7b", "data=testbed", "stage=sft"])
    # 28 blocks of 3584 × (3584 + 2 × 512 + 3584) in attention and 3 × 3584 × 18944 in the MLP.
    assert report(config, load_data(config)).splitlines()[0].endswith(f"7.62 B parameters, {trained} trained")


def test_preflight_says_what_the_spaces_take() -> None:
    config = compose_config(["method=nspo", "method.variant=exact", "model=qwen2_5_7b", "data=testbed", "stage=sft"])
    lines = report(config, load_data(config)).splitlines()
    assert lines[-1] == (
        "nspo, once before the stages: 14 forward passes over 668 rows of at most 2048 tokens with 6.67 GB of second "
        "moments in addition to the weights; 112 eigendecompositions in fp64, up to 18944 × 18944 in 8.61 GB, about "
        "1.75e+03 TFLOP together; at most 22.3 GB on disk and on each device"
    )
    [header, single] = [line.split() for line in lines if line.split()[:1] in (["distributed"], ["single"])]
    assert single[header.index("basis")] == "22.3"


REFUSED: dict[tuple[str, ...], str] = {
    ("method.threshold=0",): "method.threshold: found 0; allowed is greater than 0",
    ("method.variant=exct",): (
        "method.variant: found 'exct'; allowed is 'paper', 'code' or 'exact'; did you mean 'exact'?"
    ),
    ("method.modules={code: mlp}",): (
        "method.modules: found {code: …}, which has no value for method.variant=paper"
    ),
    ("method.modules=[q_proj,lm_head]",): (
        "method.modules: lm_head is the output head, which is never protected; leave it out"
    ),
    ("method.general_sets=[helpfullness]",): (
        "method.general_sets: 'helpfullness' is not among data=testbed's sets for sft; allowed: helpfulness, "
        "truthfulness, preference, general, mathematics, knowledge, harmful_answers; did you mean 'helpfulness'?"
    ),
    ("method.samples=500",): (
        "method.samples: 500 rows wanted, but each testbed set holds data.reference_rows=400; lower the one or raise "
        "the other"
    ),
    ("distributed=zero3",): (
        "distributed: zero3 is not supported with method=nspo, since DeepSpeed keeps the gradients and weights to "
        "itself; allowed: single, ddp, fsdp2"
    ),
}  # fmt: skip


@pytest.mark.parametrize("overrides", REFUSED, ids=" ".join)
def test_what_cannot_be_projected_is_refused_by_name(overrides: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as raised:
        compose_config(["stage=sft_dpo", "method=nspo", *overrides])
    assert list(raised.value.problems) == [REFUSED[overrides]]
