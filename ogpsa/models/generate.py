"""A checkpoint's greedy replies, batch by batch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from ogpsa.models.load import load_model

Messages = list[dict[str, str]]


class Generator:
    """A checkpoint in this process, on a GPU if there is one.

    Raises:
        UserError: the folder cannot be loaded as a model.
    """

    def __init__(self, folder: Path, max_tokens: int) -> None:
        cuda = torch.cuda.is_available()
        loaded, self._tokenizer = load_model(folder, torch.bfloat16 if cuda else torch.float32)
        self._model: Any = loaded.to("cuda" if cuda else "cpu").eval()  # type: ignore[arg-type]
        ends = loaded.generation_config.eos_token_id
        self._ends = set(ends if isinstance(ends, list) else [ends])
        # The checkpoint's own sampling settings and penalties would change what greedy means.
        self._model.generation_config = GenerationConfig(
            eos_token_id=ends, pad_token_id=self._tokenizer.pad_token_id, max_new_tokens=max_tokens, do_sample=False
        )

    def replies(self, conversations: Sequence[Messages]) -> list[dict[str, str]]:
        """Each conversation's next turn as ``text``; ``finish_reason`` is ``stop``, or ``length`` if it is cut."""
        prompts = [
            self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            for messages in conversations
        ]
        inputs: Any = self._tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        inputs = inputs.to(self._model.device)
        length = inputs["input_ids"].shape[1]
        with torch.inference_mode():
            generated = self._model.generate(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
            ).tolist()
        replies = []
        for tokens in generated:
            new = tokens[length:]
            stopped = any(token in self._ends for token in new)
            text = self._tokenizer.decode(new, skip_special_tokens=True)
            replies.append({"text": str(text), "finish_reason": "stop" if stopped else "length"})
        return replies
