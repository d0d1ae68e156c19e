"""From responses to verdicts, by whatever kind of judge.

Each reply of an endpoint is saved as soon as it arrives, with what was asked, under a hash of the request and the
model. A second call requests only what is missing, and a judge whose reading of replies has changed reads the kept
ones again.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from eval.benchmarks.definition import Benchmark
from eval.judging.answers import NO_ANSWER, Answer, find_answers, verdict_on_none
from eval.judging.judge import (
    Item,
    LocalJudge,
    PanelJudge,
    PromptJudge,
    ReadyJudge,
    RuleJudge,
    Verdict,
    judge_hash,
    judge_model,
    judge_prompt,
    load_judge,
    missing,
    panel_members,
)
from eval.judging.panel import majority
from eval.judging.prompts import fill, prompt_hash
from ogpsa.config import JudgeSettings
from ogpsa.utils.answers import split_reply
from ogpsa.utils.endpoint import CHARACTERS_PER_TOKEN, Budget, Completion, Endpoint
from ogpsa.utils.errors import UserError
from ogpsa.utils.journal import Journal
from ogpsa.utils.progress import Progress
from ogpsa.utils.refusal_rules import declines

STAMP = {"holds": "replies of judges"}
# Times that a verdict is asked for while the replies cannot be read.
ASKS = 2
SECTION = "eval.judge"

Record = dict[str, Any]
Requests = dict[str, list[dict[str, str]]]


@dataclass(frozen=True)
class Judgement:
    """A verdict, the prompt (16 hexadecimal digits) and the model it comes from; both None for a rule."""

    verdict: Verdict
    prompt_hash: str | None
    judge_model: str | None


@dataclass(frozen=True)
class Estimate:
    """Requests still to be made: calls, and tokens as characters / 4; ``tokens_out`` is the cap on all replies."""

    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def __add__(self, other: "Estimate") -> "Estimate":
        return Estimate(self.calls + other.calls, self.tokens_in + other.tokens_in, self.tokens_out + other.tokens_out)

    def __str__(self) -> str:
        return f"{self.calls} calls, about {self.tokens_in} tokens in, at most {self.tokens_out} out"


def check_judge(name: str, settings: JudgeSettings, section: str = SECTION, compares: bool = False) -> None:
    """Refuse a judge that cannot start, before anything is generated or paid for.

    Args:
        section: the endpoint's settings in the configuration, for messages.
        compares: whether there are two answers to compare, not one to judge.

    Raises:
        UserError: no such judge, one that compares two answers where there is one, no key or address for its endpoint,
            no readable prompt file, or no weights.
    """
    judge = load_judge(name, settings.dir)
    if judge.metric == "win_rate" and not compares:
        raise UserError(f"judge: '{name}' compares two answers, which python -m eval winrate asks; name another judge")
    if isinstance(judge, PromptJudge):
        judge_prompt(name, settings)
        Endpoint.of(section, settings, settings.model).check()
    elif isinstance(judge, LocalJudge):
        from eval.judging.weights import weights_folder

        weights_folder(name, settings)
    elif isinstance(judge, PanelJudge):
        _check_panel(name, judge, settings, section)


def _check_panel(name: str, panel: PanelJudge, settings: JudgeSettings, section: str) -> None:
    """Name every member that could not start: a majority of the others would be another instrument."""
    problems = []
    for member in panel_members(name, panel, settings):
        try:
            check_judge(member, settings, section)
        except UserError as error:
            problems += [
                f"{name}: its member {member} cannot judge: {problem}; name other members (eval.judge.members.{name})"
                for problem in error.problems
            ]
    if problems:
        raise UserError(*problems)


def responses_of(benchmark: Benchmark, answered: Sequence[Mapping[str, Any]]) -> dict[str, Item]:
    """The responses to judge in a benchmark's answered rows, by id; without options and without what was withheld.

    The judge is told the original request, not the text it was wrapped in.
    """
    stop = benchmark.task.get("generation_kwargs", {}).get("until", ())
    return {
        row["id"]: Item(
            id=row["id"],
            prompt=request_of(row),
            response=row["response"],
            target=row["target"],
            finish_reason=row.get("finish_reason"),
            in_thought=row.get("in_thought", False),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
        )
        for row in answered
        if "response" in row and not was_withheld(row)
    }


def request_of(row: Mapping[str, Any]) -> str:
    """The request of a row, without the text that a jailbreak wrapped it in."""
    return str(row.get("request") or row["prompt"])


def was_withheld(row: Mapping[str, Any]) -> bool:
    """Whether a server's filter kept the response back."""
    return row.get("finish_reason") == "content_filter"


def open_journal(path: Path) -> Journal:
    """The journal of replies and verdicts at ``path``."""
    return Journal(path, STAMP)


def judge_responses(
    name: str,
    items: Sequence[Item],
    settings: JudgeSettings,
    journal: Journal,
    label: str,
    safe_point: Callable[[], None] = lambda: None,
    budget: Budget | None = None,
    section: str = SECTION,
    opened: Callable[[str], ReadyJudge] | None = None,
) -> list[Judgement]:
    """The verdicts of the judge called ``name``, in the order of ``items``.

    The judge is given the answers alone, without thoughts; a response without an answer is not judged. Equal items are
    judged once. A reply that cannot be read is asked for again, ``ASKS`` times in all (fewer, if ``settings.attempts``
    is less), however often this is called.

    Args:
        journal: where finished replies and verdicts of models are kept (``open_journal``); a rule writes none.
        label: what the progress is called.
        safe_point: called after each reply or batch, where the work may stop; what it raises ends the judging; finished
            verdicts stay.
        budget: the cap on calls, where several calls share one; otherwise ``settings.max_calls`` for this one.
        section: the endpoint's settings in the configuration, for messages.
        opened: a judge by its weights, of its name, where the caller keeps it in memory (``opener``); otherwise it is
            loaded if it is needed.

    Raises:
        UserError: as ``check_judge`` and ``Endpoint.complete``, or a verdict's value is not a number between 0 and 1.
    """
    judge = load_judge(name, settings.dir)
    if isinstance(judge, PanelJudge):
        return _judge_by_panel(name, judge, items, settings, journal, label, safe_point, budget, section, opened)
    answers = find_answers(items)
    answered = _answered(items, answers)
    if isinstance(judge, RuleJudge):
        judged = [Judgement(_returned(name, judge.rule(item)), None, None) for item in answered]
    elif isinstance(judge, LocalJudge):
        ready = partial(opened, name) if opened else partial(judge.open, name, settings)
        judged = _judge_by_weights(name, ready, answered, settings, journal, label, safe_point)
    else:
        budget = budget or Budget(settings.max_calls)
        endpoint = Endpoint.of(section, settings, settings.model, budget)
        judged = _judge_by_endpoint(name, judge, answered, settings, journal, label, safe_point, endpoint)
    verdicts = iter(_checked(name, answered, judged))
    wording = None if isinstance(judge, RuleJudge) else prompt_hash(judge_prompt(name, settings))
    model = judge_model(name, settings)
    return [
        Judgement(verdict_on_none(answer.none, judge.metric), wording, model) if answer.none else next(verdicts)
        for answer in answers
    ]


def opener(settings: JudgeSettings, opened: dict[str, ReadyJudge]) -> Callable[[str], ReadyJudge]:
    """Loads a judge by its weights, of its name, and keeps it in ``opened`` under its hash."""

    def ready(name: str) -> ReadyJudge:
        judge, key = load_judge(name, settings.dir), judge_hash(name, settings)
        if key not in opened and isinstance(judge, LocalJudge):
            opened[key] = judge.open(name, settings)
        return opened[key]

    return ready


def _judge_by_panel(
    name: str,
    panel: PanelJudge,
    items: Sequence[Item],
    settings: JudgeSettings,
    journal: Journal,
    label: str,
    safe_point: Callable[[], None],
    budget: Budget | None,
    section: str,
    opened: Callable[[str], ReadyJudge] | None,
) -> list[Judgement]:
    budget = budget or Budget(settings.max_calls)
    verdicts: dict[str, list[Verdict]] = {}
    for member in panel_members(name, panel, settings):
        by = f"{label} by {member}"
        judged = judge_responses(member, items, settings, journal, by, safe_point, budget, section, opened)
        verdicts[member] = [one.verdict for one in judged]
        silent = [one for one in verdicts[member] if one.value is None and one.parse_status not in NO_ANSWER]
        if silent:
            print(
                f"{by}: no verdict on {len(silent)} of {len(items)}; the others decide where they are more than half",
                file=sys.stderr,
            )
    model = judge_model(name, settings)
    found = zip(*verdicts.values(), strict=True)
    return [Judgement(majority(dict(zip(verdicts, said, strict=True)), panel), None, model) for said in found]


def _answered(items: Sequence[Item], answers: Sequence[Answer]) -> list[Item]:
    """The items that have an answer, which replaces their response."""
    found = zip(items, answers, strict=True)
    return [replace(item, response=answer.text) for item, answer in found if answer.none is None]


def _checked(name: str, items: Sequence[Item], judgements: list[Judgement]) -> list[Judgement]:
    """The judgements, whose values are what scores are means of."""
    for item, judged in zip(items, judgements, strict=True):
        check_value(f"judge {name}: row '{item.id}'", judged.verdict.value)
    return judgements


def _returned(name: str, found: object) -> Verdict:
    """What the judge called ``name``, perhaps the user's own, returned.

    Raises:
        UserError: it is no verdict.
    """
    if not isinstance(found, Verdict):
        raise UserError(f"judge {name}: returned {found!r}; expected a Verdict")
    return found


def check_value(place: str, value: object) -> None:
    """Refuse a verdict's value that no score can be made of; ``place`` names whose it is.

    Raises:
        UserError: it is neither None nor a number between 0 and 1.
    """
    if value is not None and not (isinstance(value, bool | int | float) and 0 <= value <= 1):
        raise UserError(
            f"{place}: the value is {value!r}; allowed: a number between 0 and 1, or None where none can be read"
        )


def estimate(name: str, items: Sequence[Item], settings: JudgeSettings, journal: Journal) -> Estimate:
    """The requests that ``judge_responses`` with the same arguments would make; none for a rule or local weights.

    Replies that turn out unreadable, which are asked for again, are not foreseen.
    """
    judge = load_judge(name, settings.dir)
    if isinstance(judge, PanelJudge):
        members = panel_members(name, judge, settings)
        return sum((estimate(member, items, settings, journal) for member in members), Estimate())
    if not isinstance(judge, PromptJudge):
        return Estimate()
    requests = _requests(name, judge, _answered(items, find_answers(items)), settings)[1]
    return _estimate(judge, _pending(judge, requests, journal, min(ASKS, settings.attempts)))


def print_total(estimates: Iterable[Estimate], budget: Budget, key: str = "eval.judge.max_calls") -> None:
    """Report the requests to be made in all, and their cap under this key; nothing if there are none."""
    total = sum(estimates, Estimate())
    if total.calls:
        cap = "no cap" if budget.max_calls is None else f"the cap leaves {budget.left:.0f}"
        print(f"judging in all: {total}; {cap} ({key})", file=sys.stderr, flush=True)


def _estimate(judge: PromptJudge, requests: Requests) -> Estimate:
    characters = sum(len(message["content"]) for messages in requests.values() for message in messages)
    return Estimate(len(requests), characters // CHARACTERS_PER_TOKEN, len(requests) * judge.max_tokens)


def _pending(judge: PromptJudge, requests: Requests, kept: Journal, asks: int) -> Requests:
    """Requests without a readable reply that were asked fewer than ``asks`` times."""
    found = {}
    for key, messages in requests.items():
        replies = kept.pieces.get(key, [])
        if len(replies) < asks and not (replies and _read(judge, replies[-1]).value is not None):
            found[key] = messages
    return found


def _requests(
    name: str, judge: PromptJudge, items: Sequence[Item], settings: JudgeSettings
) -> tuple[list[str], Requests]:
    """Each item's key, and the messages of each key."""
    template, model = judge_prompt(name, settings), judge_model(name, settings)
    keys, requests = [], {}
    for item in items:
        messages = fill(template, item.prompt, item.response, item.target if judge.needs_target else "")
        key = _hash([model, judge.max_tokens, messages])
        keys.append(key)
        requests[key] = messages
    return keys, requests


def _judge_by_endpoint(
    name: str,
    judge: PromptJudge,
    items: Sequence[Item],
    settings: JudgeSettings,
    kept: Journal,
    label: str,
    safe_point: Callable[[], None],
    endpoint: Endpoint,
) -> list[Judgement]:
    keys, requests = _requests(name, judge, items, settings)
    for asks in range(1, min(ASKS, settings.attempts) + 1):
        pending = _pending(judge, requests, kept, asks)
        if pending:
            expected = _estimate(judge, pending)
            again = "" if asks == 1 else " for replies that could not be read"
            cap = f"; the cap leaves {endpoint.budget.left:.0f}" if endpoint.budget.left < len(pending) else ""
            print(f"{label}: {name} by {settings.model}: {expected}{again}{cap}", file=sys.stderr, flush=True)
            _ask(judge, pending, endpoint, kept, label, safe_point)
    wording, model = prompt_hash(judge_prompt(name, settings)), judge_model(name, settings)
    return [Judgement(_read(judge, kept.pieces[key][-1]), wording, model) for key in keys]


def _ask(
    judge: PromptJudge,
    requests: Requests,
    endpoint: Endpoint,
    kept: Journal,
    label: str,
    safe_point: Callable[[], None],
) -> None:
    """Ask once for each of ``requests`` and keep every reply as it comes in."""
    keys, finished = list(requests), count(1)
    progress = Progress(len(keys), label)

    def done(index: int, reply: Completion) -> None:
        key = keys[index]
        kept.keep({key: [*kept.pieces.get(key, []), {"asked": requests[key], **asdict(reply)}]})
        progress.show(next(finished))
        safe_point()

    endpoint.complete(list(requests.values()), done, max_tokens=judge.max_tokens)


def _read(judge: PromptJudge, reply: Record) -> Verdict:
    """The verdict in a model's whole reply; a reply that was cut gives none, whatever it holds."""
    text, finish_reason = reply["text"], reply["finish_reason"]
    said = split_reply(text).answer
    if finish_reason == "length" or said is None:
        verdict = missing("truncated")
    elif finish_reason in ("content_filter", "refusal"):
        verdict = missing("refused_by_judge")
    else:
        verdict = judge.parse(said)
        if verdict.parse_status == "unparsed" and declines(said):
            verdict = missing("refused_by_judge")
    return replace(verdict, detail={**verdict.detail, "reply": text, "finish_reason": finish_reason})


def _judge_by_weights(
    name: str,
    opened: Callable[[], ReadyJudge],
    items: Sequence[Item],
    settings: JudgeSettings,
    kept: Journal,
    label: str,
    safe_point: Callable[[], None],
) -> list[Judgement]:
    identity = judge_hash(name, settings)
    keys = [_hash([identity, item.prompt, item.response, item.target]) for item in items]
    pending = [(key, item) for key, item in dict(zip(keys, items, strict=True)).items() if key not in kept.pieces]
    if pending:
        verdicts_of = opened()
        progress = Progress(len(pending), label)
        with progress:
            for start in range(0, len(pending), settings.batch_size):
                batch = pending[start : start + settings.batch_size]
                verdicts = verdicts_of([item for _, item in batch])
                found = zip(batch, verdicts, strict=True)
                kept.keep({key: {"asked": _shown(item), **asdict(verdict)} for (key, item), verdict in found})
                progress.show(start + len(batch))
                safe_point()
    wording, model = prompt_hash(judge_prompt(name, settings)), judge_model(name, settings)
    return [Judgement(_verdict(kept.pieces[key]), wording, model) for key in keys]


def _shown(item: Item) -> dict[str, str]:
    return {"prompt": item.prompt, "response": item.response, "target": item.target}


def _verdict(piece: Record) -> Verdict:
    """The verdict of a journal's piece, without what was asked."""
    return Verdict(**{name: value for name, value in piece.items() if name != "asked"})


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]
