"""Accuracy: the response is the target, whitespace and the testbed's polite opening aside."""

from eval.judging.judge import Item, RuleJudge, Verdict
from ogpsa.testbed.world import is_right


def _rule(item: Item) -> Verdict:
    correct = is_right(item.response, item.target)
    return Verdict("correct" if correct else "incorrect", float(correct))


JUDGE = RuleJudge(metric="accuracy", rule=_rule, needs_target=True)
