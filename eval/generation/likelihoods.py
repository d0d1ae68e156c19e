"""lm-eval's model, which reads a shared beginning of texts once: a question before its options, a system prompt."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedTokenizerBase

from ogpsa.models.generate import NotFiniteLogitsError
from ogpsa.models.rows import keeps_every_key

# Tokens of a forward pass, by the kind of device: more of them gain little, and attention is computed between all of
# them, whether or not they see each other [measured with 135M parameters on a CPU core; ours elsewhere].
TOKENS = {"cpu": 256}
TOKENS_ELSEWHERE = 2048
# Attention that takes a mask of pairs of tokens.
PAIRWISE = ("sdpa", "eager")


@dataclass
class _Tree:
    """Texts as a tree of tokens, which holds a common beginning once.

    Attributes:
        tokens: each node's token, after its parent's.
        parents: each node's parent; -1: none.
        paths: for each text, the nodes whose logits score it, the first of them its context's last.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    paths: list[list[int]] = field(default_factory=list)
    _children: dict[tuple[int, int], int] = field(default_factory=dict)

    def fresh(self, text: Sequence[int]) -> int:
        """Count the nodes that a text would add."""
        node = -1
        for depth, token in enumerate(text):
            if (child := self._children.get((node, token))) is None:
                return len(text) - depth
            node = child
        return 0

    def add(self, text: Sequence[int], scored: int) -> None:
        """Add a text, whose last ``scored`` nodes score it."""
        node, path = -1, []
        for token in text:
            child = self._children.setdefault((node, token), len(self.tokens))
            if child == len(self.tokens):
                self.tokens.append(token)
                self.parents.append(node)
            node = child
            path.append(node)
        self.paths.append(path[-scored:])

    def seen(self) -> torch.Tensor:
        """Which nodes each node sees, itself and those above it, ``[nodes, nodes]``."""
        seen = torch.eye(len(self.tokens), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen


@dataclass(frozen=True)
class _Text:
    number: int
    context: list[int]
    continuation: list[int]

    @property
    def read(self) -> list[int]:
        """All but the last token, after which nothing is asked."""
        return [*self.context, *self.continuation[:-1]]


class SharingLM(HFLM):  # type: ignore[misc]
    """lm-eval's model of transformers, faster where texts begin alike.

    Args:
        model: in evaluation mode; one that does not see all tokens before a token, each at a position that it is told,
            is asked as lm-eval does.
        batch: texts per forward pass in that case.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, batch: int) -> None:
        # As in training: the template writes what begins or ends a sequence.
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch, add_bos_token=False)
        self._shares = keeps_every_key(model) and model.config._attn_implementation in PAIRWISE
        self._tokens = TOKENS.get(model.device.type, TOKENS_ELSEWHERE)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Each continuation's log-likelihood behind its context, and whether it is what greedy decoding would say.

        Raises:
            NotFiniteLogitsError: a log-likelihood is not finite; its ``rows`` are those of ``requests``, of which some
                may only have shared a forward pass with another.
        """
        if self._shares:
            found = self._shared(requests)
        else:
            found = super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        if rows := [number for number, (value, _) in enumerate(found) if not math.isfinite(value)]:
            raise NotFiniteLogitsError(rows)
        return found

    def _shared(self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]]) -> list[tuple[float, bool]]:
        texts = []
        for number, (_, context, continuation) in enumerate(requests):
            # As lm-eval: what the model has no room for is cut from the left.
            whole = (context + continuation)[-(self.max_length + 1) :]
            texts.append(_Text(number, whole[: -len(continuation)], continuation))
        scores: dict[int, tuple[float, bool]] = {}
        with torch.inference_mode():
            for batch, tree in self._passes(texts):
                scores |= {text.number: score for text, score in zip(batch, self._scores(batch, tree), strict=True)}
        return [scores[number] for number in range(len(requests))]

    def _passes(self, texts: Iterable[_Text]) -> Iterator[tuple[list[_Text], _Tree]]:
        """Texts of one forward pass each, those of a context together and the longest first."""
        contexts: dict[tuple[int, ...], list[_Text]] = {}
        for text in texts:
            contexts.setdefault(tuple(text.context), []).append(text)
        groups = sorted(contexts.values(), key=lambda group: (-max(len(text.read) for text in group), group[0].context))
        batch, tree = list[_Text](), _Tree()
        for text in (text for group in groups for text in group):
            if batch and len(tree.tokens) + tree.fresh(text.read) > self._tokens:
                yield batch, tree
                batch, tree = [], _Tree()
            batch.append(text)
            tree.add(text.read, len(text.continuation))
        if batch:
            yield batch, tree

    def _scores(self, batch: Sequence[_Text], tree: _Tree) -> Iterator[tuple[float, bool]]:
        seen = tree.seen()
        scored = sorted({node for path in tree.paths for node in path})
        places = {node: place for place, node in enumerate(scored)}
        mask = torch.zeros(seen.shape, dtype=self.model.dtype).masked_fill(~seen, torch.finfo(self.model.dtype).min)
        logits = self.model(
            input_ids=torch.tensor([tree.tokens], device=self.device),
            attention_mask=mask[None, None].to(self.device),
            # A node stands behind those that it sees.
            position_ids=(seen.sum(-1) - 1)[None].to(self.device),
            use_cache=False,
            logits_to_keep=torch.tensor(scored, device=self.device),
        ).logits[0].float()  # fmt: skip
        totals, likeliest = logits.logsumexp(dim=-1), logits.argmax(dim=-1)
        for text, path in zip(batch, tree.paths, strict=True):
            rows = torch.tensor([places[node] for node in path], device=self.device)
            tokens = torch.tensor(text.continuation, device=self.device)
            value = (logits[rows, tokens] - totals[rows]).sum()
            yield float(value), bool((likeliest[rows] == tokens).all())
