"""Null spaces on disk: which layers share an input, what is summed up; nothing is computed twice or read damaged."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, LlamaForCausalLM

from ogpsa.app.compose import compose_config
from ogpsa.data.conversations import conversation
from ogpsa.nullspace import kept
from ogpsa.nullspace.kept import KeptSpaces, ensure_spaces
from ogpsa.nullspace.moments import empty_model, in_portions, linear_layers, second_moments, shared_inputs
from ogpsa.nullspace.projector import describe
from ogpsa.nullspace.settings import Modules, Rule, SpaceSettings
from ogpsa.utils.errors import UserError
from tests.program import KilledError, killed_after
from tests.tiny import LFM2, QWEN3_NEXT, byte_tokenizer, other_kind, save_tiny, tiny_model

SETTINGS = SpaceSettings(rule="energy", threshold=0.05, skip_first_token=True, max_length=24)
PAIRS = [("Name a colour.", "Blue."), ("What is two and two?", "It is four."), ("Say hello", "Hello!")]
ROWS = [conversation(*pair) for pair in PAIRS]
BLOCK = {"self_attn.q_proj": ["q_proj", "k_proj", "v_proj"], "self_attn.o_proj": ["o_proj"],
         "mlp.gate_proj": ["gate_proj", "up_proj"], "mlp.down_proj": ["down_proj"]}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_model(byte_tokenizer())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base"), byte_tokenizer())


Spaces = Callable[..., KeptSpaces]


@pytest.fixture
def spaces(base: Path, tmp_path: Path) -> Spaces:
    """``spaces(modules, settings, shares, safe_point)``: those of the same model and rows in the same cache."""
    config = compose_config([]).model

    def ensure(
        modules: Modules = "all-linear",
        settings: SpaceSettings = SETTINGS,
        shares: Sequence[float] = (0.01, 0.99),
        safe_point: Callable[[], None] = lambda: None,
    ) -> KeptSpaces:
        return ensure_spaces(tmp_path, base, config, ROWS, settings, modules, shares, safe_point)

    return ensure


def written(found: KeptSpaces) -> dict[str, int]:
    return {file.parent.name: file.stat().st_mtime_ns for file in found.folder.glob("*/COMPLETE.json")}


def test_layers_with_one_input_are_found(model: LlamaForCausalLM) -> None:
    found = shared_inputs(empty_model(model.config))
    assert [name.rpartition("layers.")[2] for name in found] == [
        f"{block}.{first}" for block in (0, 1) for first in BLOCK
    ]
    assert [[name.rpartition(".")[2] for name in names] for names in found.values()] == 2 * list(BLOCK.values())


def inputs_alone(model: LlamaForCausalLM, layer: str, rows: list[list[int]], first: int) -> Tensor:
    """The layer's inputs [tokens, in] from token ``first`` of each row, one row a pass."""
    found: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_pre_hook(lambda _, given: found.append(given[0][0, first:]))
    with torch.no_grad():
        for row in rows:
            model(torch.tensor([row]))
    hook.remove()
    return torch.cat(found).double()


@pytest.mark.parametrize("first", [0, 1])
def test_padding_counts_for_nothing(first: int, model: LlamaForCausalLM) -> None:
    rows = [[7, 9, 11], [30, 3, 5, 8, 13, 21, 34], [1, 2]]
    layers = ["model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj"]
    found = second_moments(model, layers, rows, skip_first_token=bool(first), safe_point=lambda: None)
    assert list(found) == layers
    for name, moments in found.items():
        inputs = inputs_alone(model, name, rows, first)
        torch.testing.assert_close(moments, inputs.T @ inputs, rtol=1e-5, atol=1e-6)


def test_products_are_fp32_in_a_pass_in_bf16(model: LlamaForCausalLM) -> None:
    layer = "model.layers.1.mlp.down_proj"
    rows = [[7, 9, 11, 30, 3, 5, 8, 13, 21, 34]]
    with torch.autocast("cpu", torch.bfloat16):
        inputs = inputs_alone(model, layer, rows, 0)
        moments = second_moments(model, [layer], rows, skip_first_token=False, safe_point=lambda: None)[layer]
    torch.testing.assert_close(moments, inputs.T @ inputs, rtol=1e-5, atol=1e-6 * float(moments.abs().max()))


def test_portions_hold_what_fits() -> None:
    widths = {"a": 10, "b": 10, "c": 30, "d": 10}
    assert list(in_portions(widths, 1600)) == [["a", "b"], ["c"], ["d"]]


def test_chosen_layers_take_their_groups_space(spaces: Spaces) -> None:
    some = spaces(["k_proj", "mlp.up_proj"])
    assert [group.rpartition(".")[2] for group in some.groups] == ["q_proj", "gate_proj"] * 2
    assert [layer.rpartition(".")[2] for layer in some.layers] == ["k_proj", "up_proj"] * 2
    before = written(some)
    every = spaces()
    assert every.folder == some.folder and len(every.layers) == 14
    # What was there is not computed again.
    assert before.items() <= written(every).items() and len(written(every)) == 8
    assert all(space.share > 0 for space in every.load().values())
    assert spaces("mlp").layers == [layer for layer in every.layers if "mlp" in layer]


def test_an_interrupted_computation_is_resumed_and_a_damaged_space_made_again(
    spaces: Spaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "MOMENTS_BYTES", 0)
    with pytest.raises(KilledError):
        spaces(safe_point=killed_after(7))
    part = spaces(["q_proj"])
    before = written(part)
    assert 0 < len(before) < 8
    whole = spaces()
    assert before.items() <= written(whole).items() and len(written(whole)) == 8

    [first, *_] = whole.groups
    file = whole.folder / first / kept.SPACE_FILE
    content, before = file.read_bytes(), written(whole)
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    again = written(spaces())
    assert [name for name in again if again[name] != before[name]] == [first]
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    "change",
    [{"rule": "relative"}, {"threshold": 0.06}, {"skip_first_token": False}, {"max_length": 16}],
    ids=lambda change: next(iter(change)),
)
def test_every_setting_is_another_key(change: dict[str, object], spaces: Spaces) -> None:
    assert spaces("mlp").folder != spaces("mlp", replace(SETTINGS, **change)).folder  # type: ignore[arg-type]


REFUSED = {
    "fits no layer": (
        ["q_porj"],
        SETTINGS,
        r"^method\.modules: 'q_porj' fits no linear layer of the model; allowed: all-linear, mlp, or endings of names, "
        r"such as down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj; did you mean 'q_proj'\?$",
    ),
    "leaves some without": (
        "all-linear",
        replace(SETTINGS, threshold=1e-5),
        r"^method\.threshold: found 1e-05 with method\.rule=energy, by which \d+ of 14 layers would be frozen or "
        r"nearly so \(null shares: model\.layers\.0\.\S+ 0\.0%, .* and \d+ more\); allowed: null shares from 0\.01 "
        r"to 0\.99, and the nearest threshold that gives them to all layers is method\.threshold=\S+; or take another "
        r"method\.rule, leave layers out of method\.modules, or allow these by method\.null_shares=\[0, 0\.99\]$",
    ),
    "leaves none": (
        ["layers.1.self_attn.o_proj", "layers.1.self_attn.q_proj"],
        replace(SETTINGS, threshold=1e-9),
        r"2 of 2 layers would be frozen or nearly so .* that gives them to all layers is method\.threshold=\S+;",
    ),
    "protects none": (
        ["q_proj"],
        replace(SETTINGS, threshold=1),
        r"^method\.threshold: found 1 with .* 2 of 2 layers would be hardly protected \(null shares: "
        r"model\.layers\.0\.self_attn\.q_proj 100\.0%, \S+ 100\.0%\); .*method\.null_shares=\[0\.01, 1\]$",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("modules", "settings", "message"), REFUSED.values(), ids=REFUSED)
def test_layers_that_would_be_frozen_or_unprotected_are_refused_unless_allowed(
    modules: Modules, settings: SpaceSettings, message: str, spaces: Spaces
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        spaces(modules, settings)
    assert len(raised.value.problems) == 1
    assert settings is SETTINGS or spaces(modules, settings, (0, 1)).layers


@pytest.mark.parametrize("rule", ["relative", "energy"])
@pytest.mark.parametrize("threshold", [1e-9, pytest.param(1.0, marks=pytest.mark.slow)])
def test_the_threshold_that_a_refusal_names_is_the_nearest_that_works(
    rule: Rule, threshold: float, spaces: Spaces
) -> None:
    shares, given = (0.1, 0.6), replace(SETTINGS, rule=rule, threshold=threshold)
    with pytest.raises(UserError, match=r"all layers is method\.threshold=\S+;") as raised:
        spaces(settings=given, shares=shares)
    told = float(str(raised.value).split("method.threshold=")[1].split(";")[0])
    assert spaces(settings=replace(given, threshold=told), shares=shares).layers
    with pytest.raises(UserError, match=f"method.threshold={told:g};"):
        spaces(settings=replace(given, threshold=told * (0.9 if told > threshold else 1.1)), shares=shares)


def test_where_no_threshold_works_a_refusal_says_so(spaces: Spaces) -> None:
    with pytest.raises(UserError) as raised:
        spaces(settings=replace(SETTINGS, threshold=0.3), shares=(0.33, 0.33))
    [line] = raised.value.problems
    assert "allowed: null shares from 0.33 to 0.33, and no threshold gives them to all layers; or take" in line


def test_what_is_left_unprotected_is_counted(spaces: Spaces, model: LlamaForCausalLM) -> None:
    found = spaces("mlp")
    protected = {layer: space for group, space in found.load().items() for layer in found.groups[group]}
    inside, whole = 2 * 3 * 32 * 64, sum(parameter.numel() for parameter in model.parameters())
    assert describe(model, protected)[0] == (
        f"{inside / 1e6:.3f} M weights of 6 of 14 linear layers protected, {(whole - inside) / 1e6:.3f} M trained "
        "unprotected, 0.000 M frozen"
    )


@pytest.mark.parametrize(
    ("kind", "sizes", "refused", "told", "allowed"),
    [
        ("qwen3_moe", {"num_hidden_layers": 2, "num_experts": 4, "num_experts_per_tok": 2, "hidden_size": 64,
                       "moe_intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2},
         ["all-linear", "mlp", ["down_proj"]],
         # Of a layer: gate and up, and down, of four experts, and the router.
         [2 * (4 * 3 * 32 * 64 + 4 * 64), 2 * (4 * 3 * 32 * 64 + 4 * 64), 2 * 4 * 32 * 64], ["q_proj", "o_proj"]),
        ("gpt2", {"n_layer": 1, "n_embd": 64, "n_head": 2}, ["all-linear", "mlp", ["c_fc"]],
         [12 * 64 * 64, 8 * 64 * 64, 4 * 64 * 64], None),
    ],
    ids=["fused experts", "Conv1D"],
)  # fmt: skip
def test_matrices_that_are_no_linear_layers_are_not_passed_over(
    kind: str, sizes: dict[str, int], refused: list[Modules], told: list[int], allowed: list[str] | None
) -> None:
    empty = empty_model(AutoConfig.for_model(kind, **sizes))
    for modules, weights in zip(refused, told, strict=True):
        with pytest.raises(UserError) as raised:
            kept.chosen_groups(empty, modules)
        [line] = raised.value.problems
        assert f", {weights / 1e6:.3g} M weights that are not torch.nn.Linear and would be unprotected" in line
        assert line.endswith(f"here {'k_proj, o_proj, q_proj, v_proj' if allowed else 'none'}")
    if allowed:
        assert len(kept.chosen_groups(empty, allowed)) == 4


def test_the_output_head_is_not_a_layer(model: LlamaForCausalLM) -> None:
    assert "lm_head" not in linear_layers(model)


# Kinds that ask a mask for its values, hand a layer the tokens of all rows in one, or use a layer twice.
KINDS: dict[str, dict[str, Any]] = {
    "lfm2": LFM2,
    "qwen3_next": QWEN3_NEXT,
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "hrm_text": {},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_has_one_input_in_models_of_other_kinds(kind: str) -> None:
    model = other_kind(kind, byte_tokenizer(), num_hidden_layers=2, **KINDS[kind])
    rows = [[7, 8, 9, 10], [11, 12], [13, 14, 15]]
    layers = linear_layers(model)
    groups = shared_inputs(empty_model(model.config))
    assert sorted(name for names in groups.values() for name in names) == sorted(layers)
    assert any(len(names) > 1 for names in groups.values())
    # Each layer's own inputs, row by row without padding.
    whole = {name: torch.zeros(one.in_features, one.in_features).double() for name, one in layers.items()}

    def add(name: str, _: torch.nn.Module, given: tuple[Tensor, ...]) -> None:
        tokens = given[0].reshape(-1, given[0].shape[-1]).double()
        whole[name] += tokens.T @ tokens

    hooks = [layer.register_forward_pre_hook(partial(add, name)) for name, layer in layers.items()]
    with torch.no_grad():
        for row in rows:
            model(torch.tensor([row]), use_cache=False)
    for hook in hooks:
        hook.remove()
    found = second_moments(model, list(groups), rows, False, lambda: None)
    for group, names in groups.items():
        for name in names:
            assert (found[group] - whole[name]).norm() <= 1e-5 * whole[name].norm()


def test_a_kind_whose_pass_depends_on_values_is_refused_in_one_line() -> None:
    settings = {"emb_dim": 32, "n_layers": 1, "n_heads": 4, "n_words": 64}
    empty = empty_model(AutoConfig.for_model("xlm", **settings))
    with pytest.raises(UserError) as raised:
        kept.chosen_groups(empty, "all-linear")
    [line] = raised.value.problems
    assert line.startswith("model.path: null spaces of inputs rest on what enters each layer")
    assert line.endswith("; it can for llama, mistral, qwen2, qwen3") and "model_type xlm (aten." in line


def test_a_layer_that_sees_something_else_than_tokens_is_refused_by_name(model: LlamaForCausalLM) -> None:
    empty = empty_model(model.config)
    pooled = empty.get_submodule("model.layers.1.mlp.down_proj")
    pooled.register_forward_pre_hook(lambda _, given: (given[0].mean(1, keepdim=True),))
    said = (
        r"^method\.modules: a forward pass does not send every token through model\.layers\.1\.mlp\.down_proj, whose "
        "inputs are not known; leave it out$"
    )
    with pytest.raises(UserError, match=said):
        kept.chosen_groups(empty, "mlp")
    assert len(kept.chosen_groups(empty, ["gate_proj", "layers.0.mlp.down_proj"])) == 3
