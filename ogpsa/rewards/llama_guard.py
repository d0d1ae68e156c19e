"""Llama Guard's word, NSPO's reward (arXiv 2512.11391)."""

from typing import Literal

from ogpsa.rewards.judge import Judge


class LlamaGuard(Judge):
    """The guard stands behind a server, or is run by weights of its own."""

    judge: Literal["llama_guard", "llama_guard_weights"]


REWARD = LlamaGuard
