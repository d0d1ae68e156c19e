"""The part of a configuration that makes two runs the same run."""

import hashlib
import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

# Not part of a run's identity: where to log and cache, whether to run at all, how an endpoint is reached, how many
# tokens an evaluation batch holds, what a model's own files say and where a copy of them lies (a run records their
# content). A star stands for the keys that lead to a nested reward.
INERT_SECTIONS = (
    "tracker", "cache_dir", "stage_store", "lock_wait", "accept_changed", "preflight", "eval.judge.max_calls",
    "eval.batch_tokens", "model.architecture", "model.local_copy",
    *(f"eval.{section}.{key}" for section in ("backend", "judge")
      for key in ("api_key_env", "concurrency", "timeout", "attempts")),
    *(f"reward.*endpoint.{key}" for key in ("api_key_env", "concurrency", "timeout", "attempts", "max_calls")),
)  # fmt: skip

# Keys that were added after the first runs, at the values that keep the earlier behaviour.
LATER: dict[str, Any] = {
    "model.activation_offload": False, "model.compile": False, "method.lora_dora": False, "method.lora_quantize": None,
    "data.held_out": {},
    **{f"{stage}.packing": None for stage in ("stage", "stage.sft")},
    **{f"{stage}.eval_every": None for stage in ("stage", "stage.sft", "stage.dpo")},
    **{f"{stage}.keep": "last" for stage in ("stage", "stage.sft", "stage.dpo")},
}  # fmt: skip


def is_inert(key: str) -> bool:
    """Whether a dotted key is one of ``INERT_SECTIONS``, or below one."""
    return any(fnmatchcase(key, section) or fnmatchcase(key, f"{section}.*") for section in INERT_SECTIONS)


def without_inert(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration, or its section ``prefix`` (``eval.``), without inert keys and those that are as in ``LATER``."""
    return {
        key: without_inert(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in tree.items()
        if not is_inert(f"{prefix}{key}") and (f"{prefix}{key}" not in LATER or value != LATER[f"{prefix}{key}"])
    }


def identity_of(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a whole configuration, possibly of another schema version, that identifies a run."""
    identity = without_inert(tree)
    if "grpo" not in identity["stage"]["name"]:
        identity.pop("reward", None)
    stage = identity["stage"]
    if not any("eval_every" in one for one in (stage, *stage.values()) if isinstance(one, Mapping)):
        # Nothing is measured on them.
        identity["data"].pop("held_out", None)
    return identity


def identity_key(identity: Mapping[str, Any]) -> str:
    """``Config.key()`` of a configuration that may be of another version of this schema."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def identity_name(identity: Mapping[str, Any]) -> str:
    """``Config.run_name()`` of a configuration that may be of another version of this schema."""
    model, stage, method = (identity[section]["name"] for section in ("model", "stage", "method"))
    return f"{model}-{stage}-{method}-seed{identity['seed']}-{identity_key(identity)}"
