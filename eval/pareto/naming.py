"""The names of worlds and of method variants: the settings in which the collected runs differ."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import yaml

from eval.pareto.collection import Run, Settings
from ogpsa.app.compose import CONF

BASE_SETTINGS = ("model.name", "data.name", "data.seed")

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)
Variant = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ConfiguredRun:
    """A run with all its settings, before it has a group."""

    run: Run
    settings: Settings

    @property
    def pipeline(self) -> str:
        return str(self.settings["stage.name"])

    @property
    def method(self) -> str:
        return str(self.settings["method.name"])

    @property
    def variant(self) -> Variant:
        return tuple((key, text_of(value)) for key, value in sorted(self.settings.items()))

    def values(self, keys: Sequence[str]) -> tuple[str, ...]:
        return tuple(text_of(self.settings[key]) if key in self.settings else "unset" for key in keys)


def runs_by_world(finished: Sequence[ConfiguredRun]) -> dict[str, list[ConfiguredRun]]:
    """Runs by world. The name holds those evaluation settings that tell it from others of the same base."""
    short = _short_names(finished)
    worlds: dict[str, list[ConfiguredRun]] = defaultdict(list)
    for (model, data, seed), same_base in partition(finished, lambda run: run.values(BASE_SETTINGS)).items():
        telling: list[str] = []
        # eval.name first, since it often says it all.
        for key in sorted(_differing(same_base), key=lambda key: (key != "eval.name", key)):
            kinds = {run.values(telling) for run in same_base}
            finer = {run.values([*telling, key]) for run in same_base}
            if key.startswith("eval.") and len(finer) > len(kinds):
                telling.append(key)
        for run in same_base:
            told = [f"{short[key]}={value}" for key, value in zip(telling, run.values(telling), strict=True)]
            worlds[" ".join([f"{model}, {data} seed {seed}", *told])].append(run)
    return worlds


def variant_labels(
    finished: Sequence[ConfiguredRun], worlds: Iterable[Sequence[ConfiguredRun]], notes: list[str]
) -> dict[Variant, str]:
    """Label every variant by its method and the settings in which runs differ, alike in all worlds.

    Those are the method's own keys in which any two of its runs differ, and the other keys in which two of
    its runs of the same world and pipeline do. A key's usual value is not named; it goes to ``notes``.
    """
    short = _short_names(finished)
    others: dict[tuple[str, str], set[str]] = defaultdict(set)
    for members in worlds:
        for case, runs in partition(members, lambda run: (run.method, run.pipeline)).items():
            others[case] |= {key for key in _differing(runs) if not key.startswith("method.")}
    labels: dict[Variant, str] = {}
    for method, of_method in partition(finished, lambda run: run.method).items():
        own = _usual(of_method, {key for key in _differing(of_method) if key.startswith("method.")})
        notes += _unnamed(method, own, short)
        for pipeline, runs in partition(of_method, lambda run: run.pipeline).items():
            other = _usual(runs, others[method, pipeline])
            notes += _unnamed(f"{pipeline}: {method}", other, short)
            usual = own | other
            for run in runs:
                values = zip(usual, run.values(list(usual)), strict=True)
                told = [f"{short[key]}={value}" for key, value in values if value != usual[key]]
                labels[run.variant] = " ".join([method, *told])
    return labels


def partition(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    parts: dict[Key, list[Item]] = defaultdict(list)
    for item in items:
        parts[key(item)].append(item)
    return dict(parts)


def text_of(value: Any) -> str:
    """A value as it is typed on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{text_of(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(text_of, value)) + "]"
    return str(value)


def natural_key(text: str) -> list[tuple[int, str]]:
    """Sorting key that puts rank=2 before rank=10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


def _differing(members: Sequence[ConfiguredRun]) -> set[str]:
    """The keys whose value is not the same in all members."""
    keys = {key for member in members for key in member.settings}
    return {key for key in keys if len({member.values([key]) for member in members}) > 1}


def _short_names(finished: Sequence[ConfiguredRun]) -> dict[str, str]:
    """For every dotted key its shortest ending that no other key shares."""
    endings = {key: _endings(key) for run in finished for key in run.settings}
    shared = Counter(ending for own in endings.values() for ending in own)
    return {key: next((ending for ending in own if shared[ending] == 1), key) for key, own in endings.items()}


def _endings(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[-length:]) for length in range(1, len(parts) + 1)]


def _usual(runs: Sequence[ConfiguredRun], keys: Iterable[str]) -> dict[str, str | None]:
    """By key, sorted: the default where a run has it, else what over half of the variants have, or None.

    A method's defaults are those of its YAML; any other key's is null.
    """
    variants = {run.variant: run for run in runs}.values()
    defaults = {f"method.{key}": text_of(value) for key, value in _method_defaults(runs[0].method).items()}
    usual: dict[str, str | None] = {}
    for key in sorted(keys):
        counts = Counter(variant.values([key])[0] for variant in variants)
        default = next((value for value in (defaults.get(key), "null") if value in counts), None)
        value, count = counts.most_common(1)[0]
        usual[key] = default or (value if 2 * count > len(variants) else None)
    return usual


def _method_defaults(name: str) -> dict[str, Any]:
    """A method's keys as its YAML sets them; nothing for a method whose YAML is not in ``conf/method``."""
    file = CONF / "method" / f"{name}.yaml"
    if not file.is_file():
        return {}
    own = yaml.safe_load(file.read_text(encoding="utf-8"))
    inherited = [_method_defaults(parent) for parent in own.pop("defaults", [])]
    return {key: value for keys in (*inherited, own) for key, value in keys.items()}


def _unnamed(who: str, usual: Mapping[str, str | None], short: Mapping[str, str]) -> list[str]:
    told = [f"{short[key]}={value}" for key, value in usual.items() if value is not None]
    return [f"{who}: where a label does not say otherwise, {' '.join(told)}"] if told else []
