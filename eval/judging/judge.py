"""Judges: one file each, whose name a benchmark's ``metadata.judge`` gives.

A judge's file declares ``JUDGE``: a rule, a prompt to an endpoint's model, or local weights. Its prompt and its data
lie beside it under the same name (``xstest_rubric.txt``, ``llama_guard.json``). Judges are found in ``judges/`` and
in the folder that ``eval.judge.dir`` names. A verdict without a value is counted as missing, never guessed.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from eval.benchmarks.definition import OWN_METRIC, Benchmark
from eval.benchmarks.own_files import defined_in, named_files
from eval.judging.prompts import PLACEHOLDERS, Message, prompt_messages
from ogpsa.config import JudgeSettings
from ogpsa.utils import answers, health, refusal_rules
from ogpsa.utils.endpoint import public_address
from ogpsa.utils.errors import UserError, closest_match
from ogpsa.utils.files import hash_file

ROOM = Path(__file__).parent
# Part of every judge: what finds the answer in a response, fills a prompt, reads a reply and loads weights, and the
# rules that say whether a reply declines to judge and what ``refused`` and ``faults`` hold.
SHARED = ("answers.py", "panel.py", "prompts.py", "replies.py", "weights.py")
READING = (*(Path(str(module.__file__)) for module in (answers, health, refusal_rules)), refusal_rules.RULES)

# Judges a batch of items.
ReadyJudge = Callable[[Sequence["Item"]], list["Verdict"]]
# ``loss``: nats per token, at least 0 and lower is better; the others are shares. ``win_rate``: that of the response
# over the target, which is another answer.
Metric = Literal["accuracy", "refusal_rate", "goodness", "loss", "win_rate"]
ParseStatus = Literal[
    "parsed", "unparsed", "refused_by_judge", "truncated", "out_of_range", "withheld", "empty", "unfinished", "tie"
]


@dataclass(frozen=True)
class Item:
    """One response to judge.

    Attributes:
        prompt: the original request, never the text that a jailbreak wrapped it in.
        response: all that the model wrote, its thoughts included; a judge is given the answer alone.
        finish_reason: why the response ended, as an endpoint says it; None: not known.
        in_thought: the prompt began a thought, so that the response begins within it.
        stop: texts that end an answer, but no thought.
    """

    id: str
    prompt: str
    response: str
    target: str
    finish_reason: str | None = None
    in_thought: bool = False
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """A judge's verdict on one response.

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
    """Asks an endpoint's model with the text (or messages) beside the judge's file, or of ``eval.judge.prompt_file``.

    The text has the placeholders ``{prompt}``, ``{response}`` and, with ``needs_target``, ``{target}``.

    Attributes:
        parse: reads the model's reply.
        max_tokens: cap on the reply.
        needs_prompt: the text has to have ``{prompt}``.
        published: where the published wording is, a text, or a Python file whose longest string is that wording.
    """

    metric: Metric
    parse: Callable[[str], Verdict]
    max_tokens: int
    needs_target: bool = False
    needs_prompt: bool = True
    published: str | None = None


@dataclass(frozen=True)
class LocalJudge:
    """Runs local weights on the input that they were trained on, the text beside the judge's file.

    Attributes:
        weights: hub id or folder; ``eval.judge.weights`` takes its place.
        open: loads the weights of the judge of this name.
        parameters: of ``weights``, for the pre-flight of a run that takes the judge as a reward; 0: not known.
        needs_prompt: as of a ``PromptJudge``.
        reads_as: the judge whose code reads the replies; empty: its own.
    """

    metric: Metric
    weights: str
    open: Callable[[str, JudgeSettings], ReadyJudge]
    parameters: float = 0.0
    needs_target: bool = False
    needs_prompt: bool = True
    reads_as: str = ""


@dataclass(frozen=True)
class PanelJudge:
    """The majority of several judges, each of which reads every response.

    Attributes:
        members: their names; ``eval.judge.members`` takes their place.
    """

    metric: Metric
    members: tuple[str, ...]
    needs_target: bool = False


Judge = RuleJudge | PromptJudge | LocalJudge | PanelJudge


def judge_files(folder: str | None = None) -> dict[str, Path]:
    """Every judge's file by the judge's name.

    Args:
        folder: the user's judges (``eval.judge.dir``), in addition to ours; a file that begins with ``_`` is skipped.

    Raises:
        UserError: the folder is not there, or holds a judge of a name that is taken.
    """
    return named_files("[!_]*.py", ROOM / "judges", folder, "eval.judge.dir")


def load_judge(name: str, folder: str | None = None) -> Judge:
    """The judge called ``name``, ours or one of ``folder``.

    Raises:
        UserError: it is unknown, or its file declares no ``JUDGE``.
    """
    files = judge_files(folder)
    if name not in files:
        raise UserError(f"judge: unknown judge '{name}'; allowed: {', '.join(files)}{closest_match(name, files)}")
    file = files[name]
    if file.parent == ROOM / "judges":
        judge: Judge = import_module(f"eval.judging.judges.{name}").JUDGE
        return judge
    own = defined_in(file, "JUDGE")
    if not isinstance(own, Judge):
        raise UserError(f"{file}: JUDGE is not a judge; expected a RuleJudge, PromptJudge, LocalJudge or PanelJudge")
    return own


def check_judge_settings(settings: JudgeSettings) -> None:
    """Refuse a prompt, weights or members for a judge that is unknown, or that has none.

    Raises:
        UserError: one line per name.
    """
    judges = {name: load_judge(name, settings.dir) for name in judge_files(settings.dir)}
    problems = []
    for key, given, kind, what in (
        ("prompt_file", settings.prompt_file, PromptJudge, "a prompt to an endpoint"),
        ("weights", settings.weights, LocalJudge, "local weights"),
        ("members", settings.members, PanelJudge, "members"),
    ):
        allowed = [name for name, judge in judges.items() if isinstance(judge, kind)]
        problems += [
            f"eval.judge.{key}.{name}: '{name}' is not a judge with {what}; allowed: {', '.join(allowed)}"
            f"{closest_match(name, allowed)}"
            for name in given
            if name not in allowed
        ]
    if problems:
        raise UserError(*problems)
    for name in settings.members:
        if isinstance(panel := judges[name], PanelJudge):
            panel_members(name, panel, settings)


def panel_members(name: str, panel: PanelJudge, settings: JudgeSettings) -> dict[str, Judge]:
    """The judges of the panel called ``name``, by their names.

    Raises:
        UserError: fewer than two, one twice, a panel, or one that is unknown or judges something else.
    """
    names, key = settings.members.get(name, panel.members), f"eval.judge.members.{name}"
    if len(set(names)) < max(2, len(names)):
        raise UserError(f"{key}: found {', '.join(names) or 'none'}; a panel has at least two members, each once")
    members = {member: load_judge(member, settings.dir) for member in names}
    for member, judge in members.items():
        if isinstance(judge, PanelJudge) or judge.metric != panel.metric:
            what = "is a panel itself" if isinstance(judge, PanelJudge) else f"is scored by {judge.metric}"
            raise UserError(f"{key}: '{member}' {what}; {name} takes single judges scored by {panel.metric}")
    return members


def endpoint_judges(name: str, settings: JudgeSettings) -> int:
    """Number of models behind endpoints that the judge called ``name`` asks about each response."""
    judge = load_judge(name, settings.dir)
    judges = panel_members(name, judge, settings).values() if isinstance(judge, PanelJudge) else [judge]
    return sum(isinstance(one, PromptJudge) for one in judges)


def judge_prompt(name: str, settings: JudgeSettings) -> tuple[Message, ...]:
    """The messages of a judge that reads a prompt, placeholders in place: its own, or ``eval.judge.prompt_file``'s.

    Raises:
        UserError: the file cannot be read as a prompt.
    """
    file, judge = judge_files(settings.dir)[name], load_judge(name, settings.dir)
    messages = file.with_suffix(".json")
    file = messages if messages.is_file() else file.with_suffix(".txt")
    optional = [] if isinstance(judge, RuleJudge | PanelJudge) or judge.needs_prompt else ["prompt"]
    optional += [] if judge.needs_target else ["target"]
    needed = [text for text in PLACEHOLDERS if text not in optional]
    if given := settings.prompt_file.get(name):
        return prompt_messages(Path(given), f"eval.judge.prompt_file.{name}", needed)
    return prompt_messages(file, f"judge {name}", needed)


def judge_weights(name: str, settings: JudgeSettings) -> str:
    """Hub id or folder of the weights of the judge called ``name``; the empty text for a judge without weights."""
    judge = load_judge(name, settings.dir)
    return settings.weights.get(name, judge.weights) if isinstance(judge, LocalJudge) else ""


def judge_model(name: str, settings: JudgeSettings) -> str | None:
    """The endpoint's model and where it is, or the hub id or folder of the weights; None for a rule.

    Of a panel, its members.
    """
    judge = load_judge(name, settings.dir)
    if isinstance(judge, PanelJudge):
        return ", ".join(panel_members(name, judge, settings))
    if isinstance(judge, PromptJudge):
        return f"{settings.model} at {public_address(settings.base_url)}"
    return judge_weights(name, settings) or None


def judge_hash(name: str, settings: JudgeSettings) -> str:
    """Sixteen hexadecimal digits over a judge's code, data, prompt and model: when they move, it judges again.

    A folder of weights counts by its content, a hub id by its name, an endpoint's model by its name and address; a
    panel by its members.
    """
    digest = hashlib.sha256()
    files, judge = judge_files(settings.dir), load_judge(name, settings.dir)
    other = {files[judge.reads_as]} if isinstance(judge, LocalJudge) and judge.reads_as else set()
    own = files[name].parent.glob(f"{name}.*")
    for path in sorted({*own, *other, *(ROOM / shared for shared in SHARED), *READING}):
        digest.update(f"{path.name}\n".encode() + path.read_bytes())
    if isinstance(judge, PanelJudge):
        for member in panel_members(name, judge, settings):
            digest.update(judge_hash(member, settings).encode())
    elif isinstance(judge, PromptJudge):
        digest.update(json.dumps([judge_model(name, settings), judge_prompt(name, settings)]).encode())
    elif weights := judge_weights(name, settings):
        digest.update(_weights_hash(Path(weights)).encode() if Path(weights).is_dir() else weights.encode())
    return digest.hexdigest()[:16]


def verdict_hash(benchmark: Benchmark, settings: JudgeSettings) -> str:
    """The hash of whatever judges a benchmark: its judge's, or its own metric's."""
    if benchmark.judge == OWN_METRIC:
        return f"{benchmark.task_hash} {reading_hash()}"
    return judge_hash(benchmark.judge, settings)


def reading_hash() -> str:
    """Sixteen hexadecimal digits over the code that finds the answer in a response."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in (*READING, ROOM / "answers.py"))).hexdigest()[:16]


def _weights_hash(folder: Path) -> str:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return "".join(f"{path.name}:{hash_file(path)}\n" for path in files)
