"""Accuracy by SimpleQA's three grades (Wei et al., arXiv 2411.04368), asked of an endpoint.

A grade is read as a whole word: the published pattern ``(A|B|C)`` finds its A, which is CORRECT, inside
NOT_ATTEMPTED.
"""

from eval.judging.judge import PromptJudge, Verdict, missing
from eval.judging.replies import read_choice

# The word, the published letter, or both.
GRADES = {
    label: rf"{letter}|(?:{letter}[\s.):-]+)?{label.replace('_', '[ _-]?')}"
    for letter, label in (("A", "correct"), ("B", "incorrect"), ("C", "not_attempted"))
}


def parse(reply: str) -> Verdict:
    label = read_choice(reply, GRADES)
    return missing("unparsed") if label is None else Verdict(label, float(label == "correct"))


JUDGE = PromptJudge(
    metric="accuracy",
    parse=parse,
    max_tokens=256,
    needs_target=True,
    published="https://raw.githubusercontent.com/openai/simple-evals/main/simpleqa_eval.py",
)
