"""Llama Guard's verdict, NSPO's reward (arXiv 2512.11391)."""

from typing import Literal

from ogpsa.rewards.judge import Judge


class LlamaGuard(Judge):
    """The guard runs on a server, or in this process from its own weights."""

    judge: Literal["llama_guard", "llama_guard_weights"]


REWARD = LlamaGuard
