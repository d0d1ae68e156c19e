"""Second moments of the linear layers' inputs, summed up batch by batch."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ogpsa.models.text import linear_layers
from ogpsa.utils.errors import UserError, first_line

# Rows of a forward pass.
ROWS = 8
# Rows and tokens of the pass that only finds which inputs layers share.
TOKENS = (2, 3)


def empty_model(config: PretrainedConfig) -> PreTrainedModel:
    """A model on the meta device, by the attention that looks at no values.

    In bf16: fused experts take no other type there.
    """
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation="eager"
        )
    return model


def shared_inputs(model: PreTrainedModel) -> dict[str, list[str]]:
    """The linear layers that the same tensors enter, as ``q_proj``, ``k_proj`` and ``v_proj``.

    Found by a pass of a few tokens through an ``empty_model``. Layers that it does not reach are left out, and so are
    those that anything other than one or more vectors a token enters.

    Returns:
        Each group's layers, by the first one's name.

    Raises:
        UserError: the pass fails, for example since what the model does depends on values.
    """
    try:
        entered = _entered(model)
    except RuntimeError:
        # Some models ask whether a mask hides anything, to save work. Of fake tensors transformers does not ask it, but
        # a pass with them takes five times as long.
        try:
            with FakeTensorMode(allow_non_fake_inputs=True):
                entered = _entered(model)
        except RuntimeError as error:
            raise UserError(
                "model.path: null spaces of inputs rest on what enters each layer, which has to be found before the "
                f"weights are read, and cannot for model_type {model.config.model_type} ({first_line(error)}); it can "
                "for llama, mistral, qwen2, qwen3"
            ) from None
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, given in entered.items():
        if all(one.shape[:2] == TOKENS or one.shape[:-1] == (math.prod(TOKENS),) for one in given):
            groups.setdefault(tuple(map(id, given)), []).append(name)
    return {names[0]: names for names in groups.values()}


def _entered(model: PreTrainedModel) -> dict[str, list[Tensor]]:
    """What enters each linear layer in a pass of ``TOKENS``, by its name."""
    entered: dict[str, list[Tensor]] = {}
    ids = torch.zeros(TOKENS, dtype=torch.long, device=model.device)

    def note(name: str, inputs: Tensor) -> None:
        entered.setdefault(name, []).append(inputs)

    _pass(model, linear_layers(model), note, input_ids=ids, attention_mask=ids)
    return entered


def second_moments(
    model: PreTrainedModel,
    layers: Sequence[str],
    rows: Sequence[Sequence[int]],
    skip_first_token: bool,
    safe_point: Callable[[], None],
) -> dict[str, Tensor]:
    """K Kᵀ [in, in] in fp64 of each layer's inputs over all tokens of ``rows``.

    Products of a batch are fp32, their sum is fp64. ``safe_point`` is called before each batch and may end it.
    """
    wanted = {name: layer for name, layer in linear_layers(model).items() if name in layers}
    sums = {
        name: torch.zeros(layer.in_features, layer.in_features, dtype=torch.float64, device=model.device)
        for name, layer in wanted.items()
    }
    for ids, mask in _batches(rows):
        safe_point()
        ids, mask = ids.to(model.device), mask.to(model.device)
        counted = mask.bool()
        if skip_first_token:
            counted[:, 0] = False

        def add(name: str, inputs: Tensor, counted: Tensor = counted) -> None:
            width = inputs.shape[-1]
            tokens = inputs.reshape(*counted.shape, -1, width)[counted].view(-1, width).float()
            # The hook runs within the pass, whose autocast would take the product in bf16.
            with torch.autocast(inputs.device.type, enabled=False):
                sums[name] += tokens.T @ tokens

        _pass(model, wanted, add, input_ids=ids, attention_mask=mask)
    return sums


def _batches(rows: Sequence[Sequence[int]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids and attention mask [rows, tokens], padded on the right: what comes later is seen by no token."""
    by_length = sorted(rows, key=len)
    for start in range(0, len(by_length), ROWS):
        batch = [torch.tensor(row) for row in by_length[start : start + ROWS]]
        padded = nn.utils.rnn.pad_sequence(batch, batch_first=True)
        lengths = torch.tensor([len(row) for row in batch])
        yield padded, (torch.arange(padded.shape[1]) < lengths[:, None]).long()


def _pass(
    model: PreTrainedModel, layers: dict[str, nn.Linear], take: Callable[[str, Tensor], None], **inputs: Tensor
) -> None:
    """A forward pass, without the output head, that hands each layer's input to ``take``."""

    def hook(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda _, given: take(name, given[0])

    with ExitStack() as held, torch.no_grad():
        for name, layer in layers.items():
            held.callback(layer.register_forward_pre_hook(hook(name)).remove)
        model.base_model(**inputs, use_cache=False)


def in_portions(widths: dict[str, int], limit: float) -> Iterator[list[str]]:
    """The layers cut into portions whose second moments take at most ``limit`` bytes together, or are one layer's."""
    portion: list[str] = []
    for name in widths:
        if portion and 8 * sum(widths[one] ** 2 for one in [*portion, name]) > limit:
            yield portion
            portion = []
        portion.append(name)
    if portion:
        yield portion
