"""Which of two answers to a request helps more, asked of an endpoint: the response, the target, or neither of them.

The judge of ``python -m eval winrate``, which asks in both orders.
"""

from eval.judging.judge import PromptJudge, Verdict, missing
from eval.judging.replies import read_choice

WORDS = {
    "first": r"(?:the\s+)?first(?:\s+answer)?",
    "second": r"(?:the\s+)?second(?:\s+answer)?",
    "tie": r"(?:a\s+)?tie",
}
VALUES = {"first": 1.0, "second": 0.0, "tie": 0.5}


def parse(reply: str) -> Verdict:
    label = read_choice(reply, WORDS)
    return missing("unparsed") if label is None else Verdict(label, VALUES[label])


JUDGE = PromptJudge(metric="win_rate", parse=parse, max_tokens=256, needs_target=True)
