"""Refusal by the majority of a rule, WildGuard and an endpoint's model (``eval.judge.members.refusal_panel``)."""

from eval.judging.judge import PanelJudge

JUDGE = PanelJudge(metric="refusal_rate", members=("refusal_rules", "wildguard", "xstest_rubric"))
