"""Judges, one file each; a file's name is the name that a benchmark's ``metadata.judge`` gives.

A judge file declares ``JUDGE``: a rule, a prompt to an endpoint's model, or local weights. Its data lie beside it
under the same name (``refusal_match.json``, ``xstest_rubric.txt``). A verdict without a value is counted as missing,
never guessed.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Literal

from eval.judging.judges._prompts import Message, prompt_messages
from ogpsa.config import JudgeSettings
from ogpsa.utils.endpoint import public_address
from ogpsa.utils.errors import UserError, closest_match

FOLDER = Path(__file__).parent

Metric = Literal["accuracy", "refusal_rate", "goodness"]
ParseStatus = Literal["parsed", "unparsed", "refused_by_judge", "truncated", "out_of_range", "withheld"]


@dataclass(frozen=True)
class Item:
    """One response to judge. ``prompt`` is the original request, never the text that a jailbreak wrapped it in."""

    id: str
    prompt: str
    response: str
    target: str


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one response.

    Attributes:
        label: the judge's own word, ``unparsed`` where there is no value.
        value: between 0 and 1, as the judge's metric counts it; None where no verdict could be read.
        parse_status: ``parsed``, or why there is no value.
        detail: whatever else the judge said.
    """

    label: str
    value: float | None
    parse_status: ParseStatus = "parsed"
    detail: Mapping[str, Any] = field(default_factory=dict)


def missing(status: ParseStatus, **detail: Any) -> Verdict:
    """A verdict that could not be read."""
    return Verdict("unparsed", None, status, detail)


@dataclass(frozen=True)
class RuleJudge:
    """Decides by a rule, at no cost."""

    metric: Metric
    rule: Callable[[Item], Verdict]
    needs_target: bool = False


@dataclass(frozen=True)
class PromptJudge:
    """Asks an endpoint's model.

    Attributes:
        prompt: our own wording, with the placeholders ``{prompt}``, ``{response}`` and, with ``needs_target``,
            ``{target}``; ``eval.judge.prompt_file`` takes its place.
        parse: reads the model's reply.
        max_tokens: cap on the reply.
    """

    metric: Metric
    prompt: str
    parse: Callable[[str], Verdict]
    max_tokens: int
    needs_target: bool = False


@dataclass(frozen=True)
class LocalJudge:
    """Runs local weights. ``open`` loads them and returns what judges a batch of items; ``prompt`` is their input's."""

    metric: Metric
    prompt: str
    open: Callable[[JudgeSettings], Callable[[Sequence[Item]], list[Verdict]]]
    needs_target: bool = False


Judge = RuleJudge | PromptJudge | LocalJudge


def judge_names() -> list[str]:
    return sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_"))


def load_judge(name: str) -> Judge:
    """The judge called ``name``.

    Raises:
        UserError: there is none.
    """
    if name not in judge_names():
        allowed = judge_names()
        raise UserError(f"judge: '{name}' is no judge; allowed: {', '.join(allowed)}{closest_match(name, allowed)}")
    judge: Judge = import_module(f"{__name__}.{name}").JUDGE
    return judge


def own_prompt(name: str) -> str:
    """The text beside a judge's file: our wording, or for weights the input that they were trained on."""
    return (FOLDER / f"{name}.txt").read_text(encoding="utf-8")


def judge_prompt(name: str, settings: JudgeSettings) -> tuple[Message, ...]:
    """The messages of a judge that reads a prompt, placeholders in place: its own, or ``eval.judge.prompt_file``'s.

    Raises:
        UserError: the file cannot be read as a prompt.
    """
    judge = load_judge(name)
    assert isinstance(judge, PromptJudge | LocalJudge)
    return prompt_messages(judge.prompt, settings.prompt_file.model_dump().get(name), name, judge.needs_target)


def judge_model(name: str, settings: JudgeSettings) -> str | None:
    """The endpoint's model and where it is, or the hub id or folder of the weights; None for a rule."""
    judge = load_judge(name)
    if isinstance(judge, PromptJudge):
        return f"{settings.model} at {public_address(settings.base_url)}"
    return str(settings.weights.model_dump()[name]) if isinstance(judge, LocalJudge) else None


def judge_hash(name: str, settings: JudgeSettings) -> str:
    """Sixteen hexadecimal digits over a judge's code, data, prompt and model: when they move, it judges again.

    A folder of weights counts by its content, a hub id by its name, an endpoint's model by its name and address.
    ``refusal_match`` is part of every judge: it says whether a reply declines to judge, and what ``refused`` holds.
    """
    digest = hashlib.sha256()
    for path in sorted({*FOLDER.glob(f"{name}.*"), *FOLDER.glob("refusal_match.*"), *FOLDER.glob("_*.py")}):
        digest.update(f"{path.name}\n".encode() + path.read_bytes())
    judge = load_judge(name)
    if isinstance(judge, PromptJudge):
        digest.update(json.dumps([judge_model(name, settings), judge_prompt(name, settings)]).encode())
    elif isinstance(judge, LocalJudge):
        weights = str(settings.weights.model_dump()[name])
        digest.update(_weights_hash(Path(weights)).encode() if Path(weights).is_dir() else weights.encode())
    return digest.hexdigest()[:16]


def _weights_hash(folder: Path) -> str:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return "".join(_file_hash(path, path.stat().st_size, path.stat().st_mtime_ns) for path in files)


@cache
def _file_hash(path: Path, size: int, modified: int) -> str:
    """Of a file as it is now; weights of many gigabytes are read once a process."""
    with path.open("rb") as handle:
        return f"{path.name}:{hashlib.file_digest(handle, 'sha256').hexdigest()}\n"
