"""Llama Guard's word on the response, NSPO's reward (arXiv 2512.11391)."""

from typing import Literal

from ogpsa.rewards.judge import Judge


class LlamaGuard(Judge):
    """A judge of the responses alone, behind a server or by weights of its own."""

    judge: Literal["llama_guard", "llama_guard_weights"]


REWARD = LlamaGuard
