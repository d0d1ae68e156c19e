"""Greedy decoding by a model in this process, whatever sampling settings its folder holds."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from ogpsa.models.load import load_model
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


def load_for_generation(folder: Path, template_kwargs: Mapping[str, Any]) -> tuple[Any, PreTrainedTokenizerBase]:
    """A checkpoint on the GPU in bf16, or on the CPU in fp32; of its own generation settings its end tokens remain.

    Args:
        template_kwargs: pinned in the chat template.

    The model raises ``NotFiniteLogitsError`` if its logits hold NaN or Inf.

    Raises:
        UserError: the folder cannot be loaded as a model.
    """
    cuda = torch.cuda.is_available()
    dtype = torch.bfloat16 if cuda else torch.float32
    loaded, tokenizer = load_model(folder, dtype, template_kwargs=template_kwargs)
    model: Any = loaded
    # The checkpoint's own sampling settings and penalties would change what greedy means.
    model.generation_config = GenerationConfig(eos_token_id=end_tokens(model.generation_config, tokenizer))
    # Wherever the model is asked from, lm-eval's classes included.
    model.register_forward_hook(_check_logits)
    return model.to("cuda" if cuda else "cpu").eval(), tokenizer


def _check_logits(_: Any, __: Any, output: Any) -> None:
    """Of the last token, from which the next is taken: padding has no say there."""
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
        self._decoder = ReplyDecoder(tokenizer, ends if isinstance(ends, list) else [ends])
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
        inputs: Any = self._tokenizer(
            list(prompts), return_tensors="pt", padding=True, add_special_tokens=special_tokens
        ).to(self._model.device)
        length = inputs["input_ids"].shape[1]
        if self._context is not None and length + self._max_tokens > self._context:
            raise UserError(
                f"{self._tokenizer.name_or_path}: a prompt of {length} tokens and a reply of up to {self._max_tokens} "
                f"exceed the model's context of {self._context}; lower max_tokens, or leave long prompts out"
            )
        with torch.inference_mode():
            generated = self._model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                stopping_criteria=StoppingCriteriaList(
                    [_AtStop(self._decoder, stop, in_thought, length)] if stop else []
                ),
            ).tolist()
        return [self._decoder.reply(tokens[length:], stop, in_thought) for tokens in generated]


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


class _AtStop(StoppingCriteria):
    """Ends a row whose answer holds a stop text; one in its thought ends nothing."""

    def __init__(self, decoder: ReplyDecoder, stop: Sequence[str], in_thought: bool, start: int) -> None:
        self._decoder, self._stop, self._in_thought, self._start = decoder, stop, in_thought, start
        # No tokenizer makes more tokens of a text than it has bytes.
        self._window = 1 + max(len(text.encode()) for text in stop)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        rows = input_ids[:, self._start :].tolist()
        return torch.tensor([self._stopped(tokens) for tokens in rows], device=input_ids.device)

    def _stopped(self, tokens: list[int]) -> bool:
        end = self._decoder.text(tokens[-self._window :])
        return any(text in end for text in self._stop) and answer_stops(
            self._decoder.text(tokens), self._stop, self._in_thought
        )
