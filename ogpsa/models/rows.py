"""Rows of tokens read by a causal model, from what rows that begin alike have left in its cache.

Rows are padded on the left, whichever way they are read, so that a model sees the same mask and positions as without
the cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from os.path import commonprefix
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

Tokens = Sequence[int]
# Tokens that a common beginning must save: a forward pass of its own costs as much as reading some twenty [measured,
# 135M parameters on a CPU core].
WORTH = 32
# Arguments of a forward pass that is told what was read before.
ARGUMENTS = {"input_ids", "attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep"}
# Rotary frequencies that move with the length of the sequence: keys that a shorter one left are turned otherwise.
MOVING_FREQUENCIES = ("dynamic", "longrope")


def left_padded(rows: Sequence[Tokens], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask of rows, both ``[rows, longest]``, padded by 0 on the left."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
    return ids, _mask([len(row) for row in rows], width, device)


def _mask(lengths: Sequence[int], width: int, device: torch.device) -> torch.Tensor:
    return (torch.arange(width) >= width - torch.tensor(lengths)[:, None]).long().to(device)


def keeps_every_key(model: Any) -> bool:
    """Whether rows may go on from what others have left in the model's cache.

    So they may if every layer's cache is the one that keeps the keys and values of all tokens; a sliding window drops
    some, and a recurrent state stands for no single token.
    """
    config = model.config.get_text_config(decoder=True)
    layers = DynamicCache(config=config).layers
    rope = config.to_dict().get("rope_parameters") or {}
    return (
        signature(model.forward).parameters.keys() >= ARGUMENTS
        and all(type(layer) is DynamicLayer for layer in layers)
        and rope.get("rope_type") not in MOVING_FREQUENCIES
    )


@dataclass(frozen=True)
class Read:
    """Rows that a model has read.

    Attributes:
        lengths: each row's tokens, without the padding.
        cache: keys and values, ``[rows, heads, longest, size]`` each.
        logits: of each row's last columns, ``[rows, columns, vocabulary]``.
    """

    lengths: list[int]
    cache: DynamicCache
    logits: torch.Tensor


class RowReader:
    """Reads rows of tokens; one that ``keeps_every_key`` as the model."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def read(
        self, rows: Sequence[Tokens], columns: int = 1, begun: Read | None = None, origins: Sequence[int] = ()
    ) -> Read:
        """Read rows, each from where the row of ``begun`` that it goes on from ends.

        Args:
            columns: those whose logits are wanted; no row may have fewer tokens beyond its origin than it needs.
            begun: rows that were read before.
            origins: for each row, the number of the one in ``begun`` that it begins with.
        """
        ids, mask = left_padded(rows, self._model.device)
        lengths = [len(row) for row in rows]
        known = [begun.lengths[origin] for origin in origins] if begun else [0] * len(rows)
        # The shorter rows read some tokens of their beginning again, where padding would stand.
        fresh = max(length - before for length, before in zip(lengths, known, strict=True))
        held = ids.shape[1] - fresh
        cache = _branches(begun, origins, lengths, held) if begun else DynamicCache()
        return self._forward(ids[:, held:], mask, cache, lengths, columns)

    def read_alike(self, rows: Sequence[Tokens], needed: Sequence[int]) -> Read:
        """Read rows, what all of them begin with only once, and give the logits of as many columns as a row needs.

        Args:
            needed: each row's last tokens whose logits are wanted.
        """
        shared = commonprefix(list(rows))[: min(len(row) - own for row, own in zip(rows, needed, strict=True))]
        if (len(rows) - 1) * len(shared) < WORTH:
            return self.read(rows, max(needed))
        return self.read(rows, max(needed), self.read([shared]), [0] * len(rows))

    def go_on(self, read: Read, rows: Sequence[int], tokens: Tokens) -> Read:
        """Read one more token of each of ``rows``; the others are left behind, and ``read`` is used up."""
        cache = read.cache
        if len(rows) < len(read.lengths):
            cache.batch_select_indices(torch.tensor(rows, device=self._model.device))
        lengths = [read.lengths[row] + 1 for row in rows]
        ids = torch.tensor(tokens, device=self._model.device)[:, None]
        return self._forward(ids, _mask(lengths, cache.get_seq_length() + 1, ids.device), cache, lengths, 1)

    def _forward(
        self, ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache, lengths: list[int], columns: int
    ) -> Read:
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = self._model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
            logits_to_keep=columns,
        )  # fmt: skip
        return Read(lengths, cache, output.logits)


def _branches(begun: Read, origins: Sequence[int], lengths: Sequence[int], held: int) -> DynamicCache:
    """The first ``held`` columns of rows that go on from ``origins``; behind the mask stands anything."""
    device = begun.cache.layers[0].keys.device
    rows = torch.tensor(origins, device=device)[:, None]
    width = begun.cache.get_seq_length()
    longest = max(lengths)
    shifts = [
        (longest - length) - (width - begun.lengths[origin])
        for length, origin in zip(lengths, origins, strict=True)
    ]  # fmt: skip
    places = (torch.arange(held) - torch.tensor(shifts)[:, None]).clamp(0, width - 1).to(device)
    cache = DynamicCache()
    for number, layer in enumerate(begun.cache.layers):
        keys, values = (kept[rows, :, places].transpose(1, 2) for kept in (layer.keys, layer.values))
        cache.update(keys, values, number)
    return cache
