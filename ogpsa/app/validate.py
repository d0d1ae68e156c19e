"""From a composed configuration to a valid one. Imports nothing heavy."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ogpsa.config import Config, Method, Reward, config_problems, describe, missing_stage_values
from ogpsa.methods import method_class
from ogpsa.rewards import load_reward
from ogpsa.utils.errors import UserError


def load_config(raw: Mapping[str, Any], folders: Sequence[Path] = ()) -> Config:
    """Validate a composed configuration.

    Args:
        folders: folders of option groups; their ``method`` and ``reward`` may hold the user's own.

    Raises:
        UserError: every problem at once, one line each.
    """
    problems: list[str] = []
    sections = dict(raw)
    method = sections.get("method")
    name = str(method.get("name")) if isinstance(method, Mapping) else "baseline"
    try:
        sections["method"] = method_class(name, [folder / "method" for folder in folders]).model_validate(method)
    except ValidationError as error:
        problems += describe(error, raw, ("method",))
        sections["method"] = Method(name=name)
    if isinstance(reward := sections.get("reward"), Mapping):
        sections["reward"] = Reward(name=str(reward.get("name")))
        try:
            sections["reward"] = load_reward(raw, [folder / "reward" for folder in folders])
        except UserError as error:
            problems += error.problems
    try:
        config = Config.model_validate(sections)
    except ValidationError as error:
        raise UserError(*describe(error, raw), *problems) from None
    problems = problems or missing_stage_values(config.method, [stage.name for stage in config.stages])
    if config.eval.template_kwargs != config.model.template_kwargs:
        problems.append("eval.template_kwargs: not as in training; set model.template_kwargs, which both read")
    problems = problems or config_problems(config)
    if problems:
        raise UserError(*problems)
    return config
