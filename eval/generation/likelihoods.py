"""lm-eval's model, with the beginning that several texts share read once."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedTokenizerBase

from ogpsa.models.rows import RowReader, keeps_every_key

# Positions of a forward pass whose logits are held at once: with 150,000 tokens to choose from 1.2 GB in fp32 [ours].
SCORED = 2048


@dataclass(frozen=True)
class _Group:
    """Continuations of one context.

    Attributes:
        numbers: places of the requests.
        before: the context without its last token, whose logits belong to the continuation's first.
        rows: what is read to score each continuation: all but its last token.
    """

    numbers: list[int]
    before: list[int]
    rows: list[list[int]]
    continuations: list[list[int]]

    @property
    def width(self) -> int:
        return max(len(row) for row in self.rows)

    @property
    def scored(self) -> int:
        return max(len(continuation) for continuation in self.continuations)


class SharingLM(HFLM):
    """lm-eval's model of transformers, faster where texts begin alike: an option is read behind its question.

    Args:
        model: in evaluation mode; where its cache does not keep every key, it is asked as lm-eval does.
        batch: texts of a forward pass.
        tokens: columns of a forward pass, over all its texts.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, batch: int, tokens: int) -> None:
        # As in training: what begins or ends a sequence is the template's to write.
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch, add_bos_token=False)
        self._reader = RowReader(model) if keeps_every_key(model) else None
        self._texts, self._tokens = batch, tokens

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Each continuation's log-likelihood behind its context, and whether it is what greedy decoding would say."""
        if self._reader is None:
            found: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
            return found
        groups = self._groups(requests, override_bs or self._texts)
        answers: dict[int, tuple[float, bool]] = {}
        with torch.inference_mode():
            for batch in self._batches(groups):
                logits = self._logits(self._reader, batch)
                numbers = [number for group in batch for number in group.numbers]
                continuations = [tokens for group in batch for tokens in group.continuations]
                scored = map(_score, logits, continuations)
                answers |= dict(zip(numbers, scored, strict=True))
        return [answers[number] for number in range(len(requests))]

    def _groups(self, requests: Iterable[tuple[Any, list[int], list[int]]], texts: int) -> list[_Group]:
        """The requests by context, those with the longest texts first."""
        contexts: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
        for number, (_, context, continuation) in enumerate(requests):
            # As lm-eval: what the model has no room for is cut from the left.
            kept = (context + continuation)[-(self.max_length + 1) : -len(continuation)]
            contexts.setdefault(tuple(kept), []).append((number, continuation))
        groups = []
        for context, asked in contexts.items():
            for start in range(0, len(asked), texts):
                numbers, continuations = map(list, zip(*asked[start : start + texts], strict=True))
                rows = [[*context, *continuation[:-1]] for continuation in continuations]
                groups.append(_Group(numbers, list(context[:-1]), rows, continuations))
        return sorted(groups, key=lambda group: (-group.width, group.before))

    def _batches(self, groups: Iterable[_Group]) -> Iterator[list[_Group]]:
        """Groups to read at once: no more texts, columns and logits than the settings allow, or a single group."""
        batch: list[_Group] = []
        for group in groups:
            joined = [*batch, group]
            texts = sum(len(one.rows) for one in joined)
            columns, scored = (max(getattr(one, size) for one in joined) for size in ("width", "scored"))
            if batch and (texts > self._texts or texts * columns > self._tokens or texts * scored > SCORED):
                yield batch
                joined = [group]
            batch = joined
        if batch:
            yield batch

    def _logits(self, reader: RowReader, batch: Sequence[_Group]) -> torch.Tensor:
        """``[texts, longest continuation, vocabulary]``, each text's own logits at the end."""
        rows = [row for group in batch for row in group.rows]
        needed = [len(tokens) for group in batch for tokens in group.continuations]
        contexts = [group.before for group in batch]
        if len(rows) == len(batch) or not all(contexts):
            return reader.read_alike(rows, needed).logits
        begun = reader.read_alike(contexts, [1] * len(contexts))
        origins = [number for number, group in enumerate(batch) for _ in group.rows]
        return reader.read(rows, max(needed), begun, origins).logits


def _score(logits: torch.Tensor, continuation: Sequence[int]) -> tuple[float, bool]:
    own = logits[-len(continuation) :].float()
    tokens = torch.tensor(continuation, device=logits.device)
    likelihoods = own.gather(-1, tokens[:, None])[:, 0] - own.logsumexp(dim=-1)
    return float(likelihoods.sum()), bool((own.argmax(dim=-1) == tokens).all())
