"""Greedy decoding by a model in this process, whatever sampling settings its folder holds."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from ogpsa.models.load import load_model
from ogpsa.models.template import Chat
from ogpsa.models.tokenizer import context_length, end_tokens
from ogpsa.utils.errors import UserError

# Characters of a prompt that a message shows.
SHOWN = 80


class NotFiniteLogitsError(ArithmeticError):
    """A model's logits are no numbers, and whatever follows from them would be an answer of nobody's.

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

    The model raises ``NotFiniteLogitsError`` where its logits are no numbers.

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
        self._ends = set(ends if isinstance(ends, list) else [ends])
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
        """Each conversation's next turn, by the chat template, as ``replies`` gives it."""
        return self.replies([self._chat.render(messages) for messages in conversations], special_tokens=False)

    @cached_property
    def _chat(self) -> Chat:
        return Chat(self._tokenizer)

    def replies(self, prompts: Sequence[str], special_tokens: bool) -> list[dict[str, str]]:
        """Each prompt's continuation as ``text``; ``finish_reason`` is ``stop``, or ``length`` if it is cut.

        Args:
            special_tokens: whether the tokenizer adds the tokens that begin a sequence.

        Raises:
            UserError: a prompt leaves no room for a reply of ``max_tokens``, or the model's logits are no numbers.
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
        try:
            with torch.inference_mode():
                generated = self._model.generate(
                    input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
                ).tolist()
        except NotFiniteLogitsError as error:
            shown = " ".join(prompts[error.rows[0]].split())[-SHOWN:]
            raise UserError(f"{self._tokenizer.name_or_path}: {error} for the prompt that ends in '{shown}'") from None
        replies = []
        for tokens in generated:
            new = tokens[length:]
            stopped = any(token in self._ends for token in new)
            text = self._tokenizer.decode(new, skip_special_tokens=True)
            replies.append({"text": str(text), "finish_reason": "stop" if stopped else "length"})
        return replies
