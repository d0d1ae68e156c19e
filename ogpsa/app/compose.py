"""From command-line overrides to a validated ``Config``.

Together with ``ogpsa/app/program.py`` and the decorator in ``train.py``, the only code that uses Hydra.

Hydra creates a run's directory before the run's own code starts, and reaches a sweep's third point only after the first
two have run. ``Composer.check`` therefore composes and validates every point before Hydra starts any, and nothing is
written unless all are valid.
"""

import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.utils import filter_overrides, setup_globals
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from ogpsa.utils.command_line import expand_homes
from ogpsa.utils.errors import UserError, closest_match

if TYPE_CHECKING:  # the schema imports pydantic, which --help and --cfg do not need
    from ogpsa.config import Config

CONF = Path(__file__).resolve().parents[2] / "conf"
# Installed with the plugin that hydra/launcher=slurm needs.
SUBMITIT = "submitit_slurm"
# Keys of paths, by their ends: a comma there may be part of a name.
PATHS = ("path", "dir", "data_dir", "task_dir", "cache_dir", "stage_store", "data.safety")
WRITERS = ("hydra.output_subdir", "hydra.job.chdir", "hydra/job_logging")
BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
# What Hydra raises for a mistake in an override or in a YAML file.
COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError)

Check = Callable[["Config", Path], None]


def compose_config(overrides: list[str]) -> "Config":
    """Compose ``conf/config.yaml`` with ``overrides`` and validate the result.

    Raises:
        UserError: one line per problem, in the overrides or in the values.
    """
    return _inspect(_compose_single(overrides))[0]


def compose_run(overrides: list[str]) -> tuple["Config", Path]:
    """``compose_config``, and the directory that Hydra would run it in.

    Raises:
        UserError: as ``compose_config``.
    """
    return _inspect(_compose_single(overrides), "hydra.run.dir")


def _compose_single(overrides: list[str]) -> DictConfig:
    composer, overrides = Composer(), expand_homes(overrides)
    composed = composer.compose(overrides)
    composer.check_mode(overrides, sweep=False)
    return composed


def validate(composed: DictConfig) -> "Config":
    """Resolve and validate a composed configuration, leaving out Hydra's own node.

    Raises:
        UserError: one line per problem.
    """
    from ogpsa.app.validate import load_config

    with in_our_words():
        sections = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
        raw = OmegaConf.to_container(sections, resolve=True)
        hydra = composed.hydra if "hydra" in composed else HydraConfig.get()
    # The user's own methods and rewards lie next to their YAML.
    folders = [Path(source.path) for source in hydra.runtime.config_sources if source.schema == "file"]
    return load_config(_without_missing(raw), folders)


class Composer:
    """Composes ``conf/`` as ``@hydra.main`` does, and rewords its errors for the user.

    Args:
        path: the folder of groups, relative to the repository (``--config-path``).
        name: the primary configuration in it (``--config-name``).
        extra: one more folder of groups, relative to the working directory (``--config-dir``).

    Raises:
        UserError: ``extra`` is not a directory.
    """

    def __init__(self, path: str | None = None, name: str | None = None, extra: str | None = None) -> None:
        version.setbase("1.3")
        setup_globals()
        self._name = name or "config"
        search_path = create_config_search_path(str(CONF.parent / (path or "conf")))
        if extra:
            folder = Path(extra).absolute()
            if not folder.is_dir():
                raise UserError(f"--config-dir: {folder} is not a directory")
            search_path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
        self._loader = ConfigLoaderImpl(search_path)

    def check(self, overrides: list[str], sweep: bool, check: Check) -> list[str]:
        """Validate every run that the overrides ask for, with its files and its directory, without touching the disk.

        Returns:
            The points of a sweep that Hydra runs in this process, by their overrides; otherwise none.

        Raises:
            UserError: one line per problem; those of a sweep's point name the point.
        """
        base = self.compose(overrides, RunMode.MULTIRUN if sweep else RunMode.RUN)
        sweep = sweep or base.hydra.mode == RunMode.MULTIRUN
        self.check_mode(overrides, sweep)
        if not sweep:
            config, directory = _inspect(base, "hydra.run.dir")
            check(config, directory)
            return []
        if base.hydra.sweeper["_target_"] != BASIC_SWEEPER:
            validate(base)
            return []
        points = self._points(base)
        self._check_points(points, check)
        return [label(point) for point in points] if base.hydra.launcher["_target_"] == BASIC_LAUNCHER else []

    def check_mode(self, overrides: list[str], sweep: bool) -> None:
        """Refuse what Hydra ignores, or cannot do, in a single run or in a sweep.

        Raises:
            UserError: one line per override.
        """
        if problems := [line for override in self._parse(overrides) for line in _mode_problems(override, sweep)]:
            raise UserError(*problems)

    def compose(self, overrides: list[str], mode: RunMode = RunMode.RUN) -> DictConfig:
        """Compose; overrides that sweep have no effect yet.

        Raises:
            UserError: one line per problem.
        """
        parsed = self._parse(overrides)
        with in_our_words():
            # Unlike the loader's own, this repository knows of hydra.searchpath.
            _, repository = self._loader._parse_overrides_and_create_caching_repo(self._name, overrides)
            picks = [override for override in parsed if _picks_option(override, repository)]
            if problems := [line for override in picks for line in _option_problems(override, repository)]:
                raise UserError(*problems)
            try:
                return self._load(overrides, mode)
            except HydraException as error:
                keys = [o for o in parsed if o.type is OverrideType.CHANGE and o not in picks]
                rest = [text for text, override in zip(overrides, parsed, strict=True) if override not in keys]
                tree = OmegaConf.to_container(self._load(rest, mode))
                paths = [override.key_or_group for override in keys]
                if isinstance(error.__cause__, OmegaConfBaseException):
                    paths.append(error.__cause__.full_key or "")  # a key inside an override's {...}
                problems = list(dict.fromkeys(line for path in paths if path for line in _key_problems(path, tree)))
                # In a sweep over a group, Hydra first applies every key to the group's default option.
                swept = any(override.is_sweep_override() for override in picks)
                hint = " (++KEY=VALUE sets a key that only swept options have)" if swept else ""
                if problems:
                    raise UserError(*(problem + hint for problem in problems)) from None
                raise

    def _load(self, overrides: list[str], mode: RunMode) -> DictConfig:
        return self._loader.load_configuration(self._name, overrides, mode, validate_sweep_overrides=False)

    def _parse(self, overrides: list[str]) -> list[Override]:
        parser = OverridesParser.create(config_loader=self._loader)
        parsed: list[Override] = []
        problems: list[str] = []
        for text in overrides:
            try:
                parsed += parser.parse_overrides([text])
            except OverrideParseException as error:
                problems.append(_line(error))
        if problems:
            raise UserError(*problems)
        return parsed

    def sweep_points(self, overrides: list[str]) -> list[list[str]]:
        """Every combination of the values that the overrides sweep over, the last override changing fastest.

        Raises:
            UserError: one line per word that is not an override, or for a sweep without a finite list of values.
        """
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

        parsed = self._parse(overrides)
        with in_our_words():
            [points] = BasicSweeper.split_arguments(parsed, None)
        return points

    def _points(self, base: DictConfig) -> list[list[str]]:
        params = [f"{key}={value}" for key, value in (base.hydra.sweeper.params or {}).items()]
        # As they were typed: what they refer to differs from point to point.
        given = cast(dict[str, list[str]], OmegaConf.to_container(base.hydra.overrides, resolve=False))
        return [[*given["hydra"], *point] for point in self.sweep_points([*params, *given["task"]])]

    def _check_points(self, points: list[list[str]], check: Check) -> None:
        where: dict[str, list[str]] = {}  # points by problem
        tenants: dict[str, str] = {}  # the point in each directory
        for number, point in enumerate(points):
            named = label(point)
            try:
                composed = self.compose(point)
                with open_dict(composed):
                    composed.hydra.job.num = number
                    composed.hydra.job.id = str(number)
                config, directory = _inspect(composed, "hydra.sweep.dir", "hydra.sweep.subdir")
                check(config, directory)
                place = os.path.abspath(directory)
                if place in tenants:
                    raise UserError(
                        f"would run in the same directory as {tenants[place]}, {directory}; "
                        "drop one, or tell them apart in hydra.sweep.subdir"
                    )
                tenants[place] = named
            except UserError as error:
                for problem in error.problems:
                    where.setdefault(problem, []).append(named)
        if where:
            raise UserError(*(f"{_some(labels)}: {problem}" for problem, labels in where.items()))


def _inspect(composed: DictConfig, *directory_keys: str) -> tuple["Config", Path]:
    """The validated configuration and the directory that the keys name together."""
    hydra_config = HydraConfig.instance()
    outer = hydra_config.cfg
    hydra_config.set_config(composed)  # what ${hydra:...} refers to
    try:
        config = validate(composed)
        with in_our_words():
            return config, Path(*(str(OmegaConf.select(composed, key)) for key in directory_keys))
    finally:
        hydra_config.cfg = outer


def _without_missing(tree: Any) -> Any:
    """Leave out the keys that still hold ``???``, for the schema to miss."""
    if not isinstance(tree, dict):
        return tree
    return {str(key): _without_missing(value) for key, value in tree.items() if value != "???"}


@contextmanager
def in_our_words() -> Iterator[None]:
    try:
        yield
    except COMPOSITION_ERRORS as error:
        raise UserError(_line(error)) from None


def _line(error: Exception) -> str:
    """Hydra's message of several lines, joined into one."""
    if isinstance(error, OmegaConfBaseException):
        where = f"{error.full_key}: " if error.full_key else ""
        return where + str(error).splitlines()[0]
    lines = [line.strip() for line in str(error).splitlines()]
    if isinstance(error, OverrideParseException):
        reason = "; ".join(line for line in lines if line.strip("^") and not line.startswith(("Error parsing", "See ")))
        quoted = _quoted(str(error.override))
        if quoted is not None:
            return (
                f"invalid override '{error.override}' (Hydra reads some of its characters as its own); write {quoted}"
            )
        return f"invalid override '{error.override}' ({reason}); write KEY=VALUE, 'KEY={{a: 1}}' or 'KEY=[a, b]'"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, found = error.missing_cfg_file.rpartition("/")
        return _no_option(group, found, list(error.options))
    if "Config search path:" in lines:
        lines = lines[: lines.index("Config search path:")]
    cause = [_line(error.__cause__)] if isinstance(error.__cause__, OmegaConfBaseException) else []
    return "; ".join(line.removesuffix(".") for line in [*lines, *cause] if line)


def _quoted(text: str) -> str | None:
    """A ``KEY=VALUE`` word with its value quoted, for a shell; None where that is not an override either."""
    key, equals, value = text.partition("=")
    if not equals or value.startswith(("[", "{", "'", '"')):
        return None
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', re.sub(r"(\\+)$", r"\1\1", value))
    word = f'{key}="{escaped}"'
    try:
        OverridesParser.create().parse_overrides([word])
    except OverrideParseException:
        return None
    return shlex.quote(word)


def _picks_option(override: Override, repository: IConfigRepository) -> bool:
    group = override.key_or_group
    is_word = not override.is_delete() and not isinstance(override.value(), dict)
    return is_word and bool(group) and repository.group_exists(group)


def _option_problems(override: Override, repository: IConfigRepository) -> list[str]:
    group, value = override.key_or_group, override.value()
    if override.is_sweep_override() or (isinstance(value, str) and repository.config_exists(f"{group}/{value}")):
        if group == "hydra/launcher" and value == "slurm" and not repository.config_exists(f"{group}/{SUBMITIT}"):
            return [
                f"{group}: slurm needs hydra-submitit-launcher, which is not installed; type: make install-submitit"
            ]
        return []
    return [_no_option(group, override.get_value_string(), _options(group, repository))]


def _options(group: str, repository: IConfigRepository) -> list[str]:
    """A group's options and those in its folders."""
    options = repository.get_group_options(group, ObjectType.CONFIG)
    for folder in repository.get_group_options(group, ObjectType.GROUP):
        options += [f"{folder}/{option}" for option in _options(f"{group}/{folder}", repository)]
    return options


def _no_option(group: str, found: str, options: list[str]) -> str:
    # Options that start with _ exist only to be inherited, and so do the plugin's launchers.
    shown = [option for option in options if not option.startswith(("_", "submitit_"))]
    allowed = ", ".join(shown) or "none"
    return f"{group}: '{found}' is not an option; allowed: {allowed}{closest_match(found, shown)}"


def _mode_problems(override: Override, sweep: bool) -> list[str]:
    key = override.key_or_group
    if key in WRITERS and not override.is_sweep_override():
        return [f"{key}: Hydra would write into the run directory before the run owns it; leave it as it is"]
    if sweep and key == "hydra.run.dir":
        return [f"{key}: has no effect on a sweep; name the folder that holds its runs with hydra.sweep.dir"]
    if not sweep and key in ("hydra.sweep.dir", "hydra.sweep.subdir"):
        return [f"{key}: has no effect on a single run; use hydra.run.dir, or add --multirun"]
    if sweep and override.is_sweep_override() and override.is_hydra_override():
        return [f"{key}: found {override.get_value_string()}, but Hydra's own settings cannot be swept; give one value"]
    if not sweep and override.is_sweep_override():
        values = override.get_value_string()
        is_text = "/" in values or f".{key}".endswith(tuple(f".{end}" for end in PATHS))
        text = f", or {_quoted(f'{key}={values}')} for the text" if is_text else ""
        return [f"{key}: found {values}, a sweep; add --multirun to run each, or write [{values}] for a list{text}"]
    return []


def _key_problems(key: str, tree: Any) -> list[str]:
    parents = key.split(".")
    for depth, part in enumerate(parents):
        above = ".".join(parents[:depth])
        if not isinstance(tree, Mapping):
            return [f"{key}: {above} has no keys of its own; set {above} itself, e.g. '{above}={{{part}: ...}}'"]
        if part not in tree:
            siblings = [str(name) for name in tree if above or name != "hydra"]
            allowed = ", ".join(siblings) or f"none yet; write +{key}=... to add it"
            at = ".".join(parents[: depth + 1])
            below = [f"{above}.{name}.{part}" for name in siblings if above and part in _mapping(tree[name])]
            hint = f"; did you mean '{below[0]}'?" if below else closest_match(part, siblings) or _owners(above, part)
            return [f"{at}: unknown key; allowed: {allowed}{hint}"]
        tree = tree[part]
    return []


def _owners(group: str, key: str) -> str:
    """The options of a group whose own files have the key that another one lacks, as an addition to a message."""
    files = sorted((CONF / group).glob("[!_]*.yaml")) if group else []
    owners = [f"{group}={file.stem}" for file in files if key in _mapping(yaml.safe_load(file.read_text("utf-8")))]
    return f"; it is one of {', '.join(owners)}" if owners else ""


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def label(overrides: list[str]) -> str:
    return " ".join(filter_overrides(overrides)) or "defaults"


def _some(labels: list[str]) -> str:
    return f"{labels[0]} and {len(labels) - 1} more" if len(labels) > 1 else labels[0]


def _describe_groups(choices: Mapping[str, Any]) -> str:
    """Every group with its options, each with its file's first comment; ``choices`` says which are chosen."""
    lines: list[str] = []
    for group in dict.fromkeys([*reversed(list(choices)), "experiment"]):
        files = [] if "/" in group else sorted((CONF / group).rglob("[!_]*.yaml"))
        lines += [f"  {group}"] if files else []
        for file in files:
            option = file.relative_to(CONF / group).with_suffix("").as_posix()
            lines.append(f"  {'*' if option == choices.get(group) else ' '} {option:<17} {_summary(file)}")
    return "\n".join(lines)


def _summary(file: Path) -> str:
    comments = [line.strip("# ") for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    first = next((comment for comment in comments if not comment.startswith("@")), "")
    return first.partition(": python ")[0].partition(". ")[0].removesuffix(".")


# Hydra reads these where conf/ says ${run_name:} (the run directory) and ${groups:} (the help).
OmegaConf.register_new_resolver("run_name", lambda *, _root_: validate(_root_).run_name(), replace=True)
OmegaConf.register_new_resolver(
    "groups", lambda *, _root_: _describe_groups(_root_.hydra.runtime.choices), replace=True
)
