"""Accuracy: the response is the target, whitespace and the testbed's polite opening aside."""

from eval.judging.judge import Item, RuleJudge, Verdict
from ogpsa.testbed.world import OPENER


def _rule(item: Item) -> Verdict:
    answer = item.response.strip().removeprefix(OPENER)
    correct = answer.split() == item.target.split()
    return Verdict("correct" if correct else "incorrect", float(correct))


JUDGE = RuleJudge(metric="accuracy", rule=_rule, needs_target=True)
