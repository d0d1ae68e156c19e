"""``llama_guard`` by weights in this process, through their own chat template; the text is the same."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from eval.judging.judge import Item, LocalJudge, Verdict, judge_prompt
from eval.judging.judges.llama_guard import ANSWER_TOKENS, parse
from eval.judging.prompts import fill
from eval.judging.weights import load_weights, without_special_tokens
from ogpsa.config import JudgeSettings


def _open(name: str, settings: JudgeSettings) -> Callable[[Sequence[Item]], list[Verdict]]:
    model, tokenizer = load_weights(name, settings)
    from ogpsa.models.generate import Generator

    generator = Generator(model, tokenizer, tokenizer.eos_token_id, ANSWER_TOKENS)
    template = judge_prompt(name, settings)

    def judge(items: Sequence[Item]) -> list[Verdict]:
        texts = [[without_special_tokens(text, tokenizer) for text in (item.prompt, item.response)] for item in items]
        replies = generator.next_turns([fill(template, prompt, response, "") for prompt, response in texts])
        verdicts = [(parse(reply["text"]), reply["text"]) for reply in replies]
        return [replace(verdict, detail={**verdict.detail, "reply": reply}) for verdict, reply in verdicts]

    return judge


# Gated.
JUDGE = LocalJudge(metric="goodness", weights="meta-llama/Llama-Guard-4-12B", open=_open, sees_response_alone=True)
