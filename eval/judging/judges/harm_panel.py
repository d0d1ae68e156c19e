"""Harm by the majority of three judges with weights of their own (``eval.judge.members.harm_panel``)."""

from eval.judging.judge import PanelJudge

JUDGE = PanelJudge(metric="goodness", members=("harmbench", "llama_guard_weights", "strongreject_finetuned"))
