"""``llama_guard`` by weights in this process: their own chat template makes the input of the conversation."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from eval.judging.judge import Item, LocalJudge, ReadyJudge, Verdict, judge_prompt
from eval.judging.judges.llama_guard import ANSWER_TOKENS, parse
from eval.judging.prompts import Message, fill
from eval.judging.weights import load_weights, without_special_tokens
from ogpsa.config import JudgeSettings
from ogpsa.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def _open(name: str, settings: JudgeSettings) -> ReadyJudge:
    model, tokenizer = load_weights(name, settings)
    from ogpsa.models.generate import Generator

    generator = Generator(model, tokenizer, tokenizer.eos_token_id, ANSWER_TOKENS)
    template = judge_prompt(name, settings)
    rendered = _renderer(f"eval.judge.weights.{name}", tokenizer, template)

    def judge(items: Sequence[Item]) -> list[Verdict]:
        texts = [[without_special_tokens(text, tokenizer) for text in (item.prompt, item.response)] for item in items]
        prompts = [rendered(fill(template, prompt, response, "")) for prompt, response in texts]
        replies = generator.replies(prompts, special_tokens=False)
        verdicts = [(parse(reply["text"]), reply["text"]) for reply in replies]
        return [replace(verdict, detail={**verdict.detail, "reply": reply}) for verdict, reply in verdicts]

    return judge


def _renderer(
    key: str, tokenizer: "PreTrainedTokenizerBase", template: tuple[Message, ...]
) -> Callable[[Sequence[Message]], str]:
    """The chat template, given each message's text as it is, or as a list of parts where it reads nothing else.

    Raises:
        UserError: it shows the response in neither form.
    """
    from ogpsa.models.template import render

    def as_parts(messages: Sequence[Any]) -> list[Any]:
        return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]

    said = "What the agent said."
    example = fill(template, "What the user said.", said, "")
    if said in render(tokenizer, example):
        return lambda messages: render(tokenizer, messages)
    if said in render(tokenizer, as_parts(example)):
        return lambda messages: render(tokenizer, as_parts(messages))
    raise UserError(f"{key}: {tokenizer.name_or_path}: the chat template leaves the assistant's turn out")


# Gated.
JUDGE = LocalJudge(
    metric="goodness", weights="meta-llama/Llama-Guard-4-12B", open=_open, parameters=12e9, needs_prompt=False,
    reads_as="llama_guard",
)  # fmt: skip
