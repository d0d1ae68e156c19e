"""Greedy decoding by a model in this process, whatever sampling settings its folder holds."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from ogpsa.config import Precision
from ogpsa.models.load import load_model
from ogpsa.models.rows import RowReader, Tokens, keeps_every_key, left_padded
from ogpsa.models.template import Chat
from ogpsa.models.tokenizer import context_length, end_tokens
from ogpsa.utils.answers import MARK_TOKENS, answer_stops
from ogpsa.utils.errors import UserError

# Characters of a prompt that a message shows.
SHOWN = 80


class NotFiniteLogitsError(ArithmeticError):
    """A model's logits hold NaN or Inf, so nothing that follows from them is the model's answer.

    Attributes:
        rows: those of the batch, in the order in which the model got them.
    """

    def __init__(self, rows: Sequence[int]) -> None:
        super().__init__("the model's logits hold NaN or Inf")
        self.rows = rows


Messages = list[dict[str, str]]


def load_for_generation(
    folder: Path, template_kwargs: Mapping[str, Any], precision: Precision = "bf16"
) -> tuple[Any, PreTrainedTokenizerBase]:
    """A checkpoint on the GPU, or on the CPU in fp32; of its generation settings only the end tokens remain.

    Args:
        template_kwargs: pinned in the chat template.
        precision: on a GPU. What a small learning rate has changed is lost in bf16, unless training rounded so, too.

    The model raises ``NotFiniteLogitsError`` if its logits hold NaN or Inf.

    Raises:
        UserError: the folder cannot be loaded as a model.
    """
    cuda = torch.cuda.is_available()
    dtype = torch.bfloat16 if cuda and precision == "bf16" else torch.float32
    loaded, tokenizer = load_model(folder, dtype, template_kwargs=template_kwargs)
    model: Any = loaded
    # The checkpoint's own sampling settings and penalties would change what greedy means.
    model.generation_config = GenerationConfig(eos_token_id=end_tokens(model.generation_config, tokenizer))
    # Wherever the model is asked from, lm-eval's classes included.
    model.register_forward_hook(_check_logits)
    return model.to("cuda" if cuda else "cpu").eval(), tokenizer


def _check_logits(_: Any, __: Any, output: Any) -> None:
    """Check the logits of the last token, which decide the next one; padding never stands there."""
    finite = torch.isfinite(output.logits[:, -1].amax(dim=-1))
    if not bool(finite.all()):
        raise NotFiniteLogitsError((~finite).nonzero().flatten().tolist())


class Generator:
    """A model's greedy replies, batch by batch.

    Args:
        model: a causal language model; its generation settings are replaced.
        tokenizer: pads on the left.
        ends: the tokens that end a reply.
        max_tokens: cap on a reply.
        context: tokens of prompt and reply that the model was made for; None: any.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        ends: int | list[int] | None,
        max_tokens: int,
        context: int | None = None,
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._max_tokens, self._context = max_tokens, context
        self._ends = set(ends if isinstance(ends, list) else [ends])
        self._decoder = ReplyDecoder(tokenizer, self._ends)
        self._reader = RowReader(model) if keeps_every_key(model) else None
        model.generation_config = GenerationConfig(
            eos_token_id=ends, pad_token_id=tokenizer.pad_token_id, max_new_tokens=max_tokens, do_sample=False
        )

    @classmethod
    def of_checkpoint(cls, folder: Path, max_tokens: int, template_kwargs: Mapping[str, Any]) -> "Generator":
        """The generator of a checkpoint's folder.

        Raises:
            UserError: as ``load_for_generation``.
        """
        model, tokenizer = load_for_generation(folder, template_kwargs)
        return cls(model, tokenizer, model.generation_config.eos_token_id, max_tokens, context_length(folder))

    def next_turns(self, conversations: Sequence[Messages]) -> list[dict[str, str]]:
        """Each conversation's next turn, by the chat template, as ``replies`` gives it.

        Raises:
            UserError: as ``replies``, or the model's logits are not finite; names the prompt.
        """
        prompts = [self._chat.render(messages) for messages in conversations]
        try:
            return self.replies(prompts, special_tokens=False)
        except NotFiniteLogitsError as error:
            said = " ".join(conversations[error.rows[0]][-1]["content"].split())[:SHOWN]
            raise UserError(f"{self._tokenizer.name_or_path}: {error} for the prompt '{said}'") from None

    @cached_property
    def _chat(self) -> Chat:
        return Chat(self._tokenizer)

    def replies(
        self, prompts: Sequence[str], special_tokens: bool, stop: Sequence[str] = (), in_thought: bool = False
    ) -> list[dict[str, str]]:
        """Each prompt's continuation as ``text``; ``finish_reason`` is ``stop``, or ``length`` if it is cut.

        Args:
            special_tokens: whether the tokenizer adds the tokens that begin a sequence.
            stop: texts after which an answer, but no thought, need not go on.
            in_thought: the prompts begin a thought.

        Raises:
            UserError: a prompt leaves no room for a reply of ``max_tokens``.
            NotFiniteLogitsError: the model's logits are not finite.
        """
        encoded: Any = self._tokenizer(list(prompts), add_special_tokens=special_tokens)
        rows: list[list[int]] = encoded["input_ids"]
        length = max(len(row) for row in rows)
        if self._context is not None and length + self._max_tokens > self._context:
            raise UserError(
                f"{self._tokenizer.name_or_path}: a prompt of {length} tokens and a reply of up to {self._max_tokens} "
                f"exceed the model's context of {self._context}; lower max_tokens, or leave long prompts out"
            )
        at_stop = _AtStop(self._decoder, stop, in_thought) if stop else None
        with torch.inference_mode():
            if self._reader is None:
                replies = self._generated(rows, at_stop)
            else:
                replies = self._continued(self._reader, rows, at_stop)
        return [self._decoder.reply(tokens, stop, in_thought) for tokens in replies]

    def _continued(self, reader: RowReader, rows: Sequence[Tokens], at_stop: "_AtStop | None") -> list[list[int]]:
        """The likeliest next tokens of each row, one after another; a row that has ended leaves the batch."""
        replies: list[list[int]] = [[] for _ in rows]
        going = list(range(len(rows)))
        try:
            read = reader.read(rows)
            while True:
                tokens = read.logits[:, -1].float().argmax(dim=-1).tolist()
                for row, token in zip(going, tokens, strict=True):
                    replies[row].append(token)
                places = [place for place, row in enumerate(going) if not self._ended(replies[row], at_stop)]
                if not places:
                    return replies
                going = [going[place] for place in places]
                read = reader.go_on(read, places, [tokens[place] for place in places])
        except NotFiniteLogitsError as error:
            raise NotFiniteLogitsError([going[place] for place in error.rows]) from None

    def _ended(self, reply: list[int], at_stop: "_AtStop | None") -> bool:
        at_end = len(reply) == self._max_tokens or reply[-1] in self._ends
        return at_end or (at_stop is not None and at_stop.ends(reply))

    def _generated(self, rows: Sequence[Tokens], at_stop: "_AtStop | None") -> list[list[int]]:
        """The same by transformers' own loop, for any kind of cache; rows that have ended are padded."""
        ids, mask = left_padded(rows, self._model.device)
        criteria = [] if at_stop is None else [_StoppingAt(at_stop, ids.shape[1])]
        generated = self._model.generate(
            input_ids=ids, attention_mask=mask, stopping_criteria=StoppingCriteriaList(criteria)
        )
        return [list(tokens) for tokens in generated[:, ids.shape[1] :].tolist()]


class ReplyDecoder:
    """From generated tokens to a reply's text, in which special tokens remain only where they mark a thought.

    Args:
        ends: the tokens that end a reply.
    """

    def __init__(self, tokenizer: Any, ends: Iterable[int | None]) -> None:
        self._tokenizer = tokenizer
        self._ends = set(ends)
        special = {number: token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        special |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
        self._silent = {number for number, content in special.items() if not MARK_TOKENS.fullmatch(content)}

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens, up to the first that ends the reply."""
        return str(self._tokenizer.decode([token for token in self._until_end(tokens) if token not in self._silent]))

    def reply(self, tokens: Sequence[int], stop: Sequence[str], in_thought: bool) -> dict[str, str]:
        """``text`` and ``finish_reason`` of the generated tokens, padding included."""
        text = self.text(tokens)
        stopped = len(self._until_end(tokens)) < len(tokens) or answer_stops(text, stop, in_thought)
        return {"text": text, "finish_reason": "stop" if stopped else "length"}

    def _until_end(self, tokens: Sequence[int]) -> Sequence[int]:
        end = next((place for place, token in enumerate(tokens) if token in self._ends), len(tokens))
        return tokens[:end]


class _AtStop:
    """Whether an answer holds a stop text; one in its thought ends nothing."""

    def __init__(self, decoder: ReplyDecoder, stop: Sequence[str], in_thought: bool) -> None:
        self._decoder, self._stop, self._in_thought = decoder, stop, in_thought
        # No tokenizer makes more tokens of a text than it has bytes.
        self._window = 1 + max(len(text.encode()) for text in stop)

    def ends(self, tokens: list[int]) -> bool:
        end = self._decoder.text(tokens[-self._window :])
        return any(text in end for text in self._stop) and answer_stops(
            self._decoder.text(tokens), self._stop, self._in_thought
        )


class _StoppingAt(StoppingCriteria):
    """``_AtStop`` for each row of a batch whose replies begin at the column ``start``."""

    def __init__(self, at_stop: _AtStop, start: int) -> None:
        self._at_stop, self._start = at_stop, start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        rows = input_ids[:, self._start :].tolist()
        return torch.tensor([self._at_stop.ends(tokens) for tokens in rows], device=input_ids.device)
