"""The rewards of the RL stage, one file each; a file's name is the name in ``conf/reward``.

A reward of your own lies next to its YAML: ``--config-dir DIR`` with ``DIR/reward/<name>.yaml`` and
``DIR/reward/<name>.py``. A file declares ``REWARD``, a subclass of ``ogpsa.config.Reward``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ogpsa.config import Reward, describe
from ogpsa.utils.by_name import class_named
from ogpsa.utils.errors import UserError


def load_reward(tree: Mapping[str, Any], folders: Sequence[Path] = (), path: tuple[str, ...] = ("reward",)) -> Reward:
    """The reward that ``tree``, a composed configuration, describes, with its nested rewards.

    Args:
        folders: folders that may hold the user's own rewards.
        path: the keys that lead to it.

    Raises:
        UserError: every problem at once, one line each.
    """
    section: Any = tree
    for key in path:
        section = section[key]
    given, problems = dict(section), list[str]()

    def load(value: Any, *keys: str) -> Any:
        if not (isinstance(value, Mapping) and "name" in value):
            return value
        try:
            return load_reward(tree, folders, (*path, *keys))
        except UserError as error:
            problems.extend(error.problems)
            return Reward(name=str(value["name"]))

    for key, value in given.items():
        named = isinstance(value, Mapping) and "name" not in value
        given[key] = {name: load(one, key, name) for name, one in value.items()} if named else load(value, key)
    key = ".".join((*path, "name"))
    kind = class_named(str(given.get("name")), key, __name__, folders, "reward", Reward)
    try:
        reward = kind.model_validate(given)
    except ValidationError as error:
        raise UserError(*describe(error, tree, path), *problems) from None
    if problems:
        raise UserError(*problems)
    return reward
