"""Reading of token rows by a causal model: a common beginning only once, and ended rows no further.

Rows are padded on the left whether or not their beginning was read before, so that a model sees the same mask and
positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from itertools import takewhile
from typing import Any

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

Tokens = list[int]
# Tokens that a common beginning must save: a forward pass of its own costs as much as reading some twenty [measured,
# 135M parameters on a CPU core].
WORTH = 32
# Columns for which a cache has room when it grows [ours].
ROOM = 64
# Arguments of a forward pass that is told what was read before.
ARGUMENTS = {"input_ids", "attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep"}
# Rotary frequencies that depend on the sequence's length: keys cached from a shorter one are rotated differently.
MOVING_FREQUENCIES = ("dynamic", "longrope")


def left_padded(rows: Sequence[Tokens], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask of rows, both ``[rows, longest]``, padded by 0 on the left."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
    return ids, _mask([len(row) for row in rows], width, device)


def beginning(rows: Sequence[Tokens]) -> list[int]:
    """Common beginning of all rows, which is that of the first and the last in order."""
    first, last = min(rows), max(rows)
    return [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))]


def _mask(lengths: Sequence[int], width: int, device: torch.device) -> torch.Tensor:
    return (torch.arange(width) >= width - torch.tensor(lengths)[:, None]).long().to(device)


def keeps_every_key(model: Any) -> bool:
    """Whether rows may continue from what others have left in the model's cache.

    They may if every layer's cache keeps the keys and values of all tokens; a sliding window drops some, and a
    recurrent state stands for no single token.
    """
    config = model.config.get_text_config(decoder=True)
    layers = DynamicCache(config=config).layers
    rope = config.to_dict().get("rope_parameters") or {}
    return (
        signature(model.forward).parameters.keys() >= ARGUMENTS
        and all(type(layer) is DynamicLayer for layer in layers)
        and rope.get("rope_type") not in MOVING_FREQUENCIES
    )


class _Roomy(DynamicLayer):
    """A layer's keys and values with room behind them, so that not every token costs a copy of all before it."""

    _held: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        known = self.get_seq_length()
        length = known + key_states.shape[-2]
        if self._held is None or self._held[0].shape[-2] < length:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            self._held = self._with_room(self.keys, key_states), self._with_room(self.values, value_states)
        for held, states in zip(self._held, (key_states, value_states), strict=True):
            held[..., known:length, :] = states
        self.keys, self.values = (held[..., :length, :] for held in self._held)
        return self.keys, self.values

    @staticmethod
    def _with_room(known: Any, states: torch.Tensor) -> torch.Tensor:
        *outer, length, size = states.shape
        columns = known.shape[-2] if known.numel() else 0
        held = states.new_empty(*outer, columns + length + ROOM, size)
        if columns:
            held[..., :columns, :] = known
        return held

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self._held = None


def _empty_cache() -> Cache:
    return Cache(layer_class_to_replicate=_Roomy)


@dataclass(frozen=True)
class Read:
    """Rows that a model has read.

    Attributes:
        lengths: each row's tokens, without the padding.
        cache: keys and values, ``[rows, heads, longest, size]`` each.
        logits: of each row's last token, ``[rows, 1, vocabulary]``.
    """

    lengths: list[int]
    cache: Cache
    logits: torch.Tensor


class RowReader:
    """Reads rows of tokens, for a model that ``keeps_every_key``."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def read(self, rows: Sequence[Tokens]) -> Read:
        """Read rows, their common beginning only once."""
        # One token must be left, whose logits say what comes next.
        shared = beginning(rows)[: min(len(row) for row in rows) - 1]
        if (len(rows) - 1) * len(shared) < WORTH:
            return self._read(rows, _empty_cache(), 0)
        held = self._read([shared], _empty_cache(), 0).cache
        return self._read(rows, _spread(held, rows), len(shared))

    def go_on(self, read: Read, rows: Sequence[int], tokens: Tokens) -> Read:
        """Read one more token of each of ``rows``; the others are left behind, and ``read`` is used up."""
        cache = read.cache
        if len(rows) < len(read.lengths):
            cache.batch_select_indices(torch.tensor(rows, device=self._model.device))
        lengths = [read.lengths[row] + 1 for row in rows]
        ids = torch.tensor(tokens, device=self._model.device)[:, None]
        return self._forward(ids, _mask(lengths, cache.get_seq_length() + 1, ids.device), cache, lengths)

    def _read(self, rows: Sequence[Tokens], cache: Cache, held: int) -> Read:
        ids, mask = left_padded(rows, self._model.device)
        return self._forward(ids[:, held:], mask, cache, [len(row) for row in rows])

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, cache: Cache, lengths: list[int]) -> Read:
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = self._model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        return Read(lengths, cache, output.logits)


def _spread(held: Cache, rows: Sequence[Tokens]) -> Cache:
    """A cache of the padded rows' first columns, as many as the common beginning in ``held`` has tokens.

    A shorter row has padding there, and less of its beginning: it reads the rest again, in place of padding.
    Masked entries may hold anything.
    """
    longest = max(len(row) for row in rows)
    padding = torch.tensor([longest - len(row) for row in rows])
    places = (torch.arange(held.get_seq_length()) - padding[:, None]).clamp(min=0)
    cache = _empty_cache()
    layers: list[Any] = held.layers
    for number, layer in enumerate(layers):
        keys, values = (kept[0][:, places].transpose(0, 1) for kept in (layer.keys, layer.values))
        cache.update(keys, values, number)
    return cache
