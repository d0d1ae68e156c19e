"""Accuracy by SimpleQA's three grades (Wei et al., arXiv 2411.04368), asked of an endpoint.

A grade is read as a whole word: the published pattern ``(A|B|C)`` finds its A, which is CORRECT, inside
NOT_ATTEMPTED.
"""

from eval.judging.judges import PromptJudge, Verdict, missing, own_prompt
from eval.judging.judges._replies import read_choice

# The word, the published letter, or both.
GRADES = {
    label: rf"{letter}|(?:{letter}[\s.):-]+)?{label.replace('_', '[ _-]?')}"
    for letter, label in (("A", "correct"), ("B", "incorrect"), ("C", "not_attempted"))
}


def parse(reply: str) -> Verdict:
    label = read_choice(reply, GRADES)
    return missing("unparsed") if label is None else Verdict(label, float(label == "correct"))


JUDGE = PromptJudge(
    metric="accuracy", prompt=own_prompt("simpleqa_grader"), parse=parse, max_tokens=256, needs_target=True
)
