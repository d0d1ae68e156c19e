"""The rows a run works on, read or built before anything heavy is imported, and kept in the run directory.

Columns: ``prompt`` with ``chosen`` and ``rejected``, texts or conversations (``ogpsa/data/conversations.py``); SFT
needs no ``rejected`` and takes ``completion`` for ``chosen``. Of the safety set GRPO needs the prompt alone;
``harmful: false`` marks one that should be answered, as its ``target`` says.
"""

import hashlib
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ogpsa.config import Config, DPOSettings, FileData, GRPOSettings, OneStage, SetUse, StageName, mixed_in
from ogpsa.data.builders.settings import SCHEMAS
from ogpsa.data.conversations import ALLOWED, INVISIBLE, ConversationError, as_text, plain_row
from ogpsa.data.readers import check_parts, ending, place, read_table
from ogpsa.testbed.rows import Rows, build_rows
from ogpsa.testbed.world import World
from ogpsa.utils.answers import says_nothing, split_reply
from ogpsa.utils.errors import Problems, UserError, closest_match
from ogpsa.utils.files import to_jsonl, write_jsonl
from ogpsa.utils.json_text import json_kind

Row = dict[str, Any]
# What a stage reads of its reference sets: gradients of cross-entropy in SFT and GRPO, of DPO's loss in DPO.
COLUMNS: dict[StageName, tuple[str, ...]] = {
    "sft": ("prompt", "chosen"), "dpo": ("prompt", "chosen", "rejected"), "grpo": ("prompt", "chosen"),
}  # fmt: skip
# What a stage needs of the safety set.
SAFETY_COLUMNS = COLUMNS | {"grpo": ("prompt",)}
# What GRPO reads of it in addition, where a row has it.
ROLLOUT_COLUMNS = (("harmful", bool, "true or false"), ("target", str, "a text"))
# What the rows of ``Data.training`` hold.
TRAINING_COLUMNS = COLUMNS | {"grpo": ("prompt", "harmful", "target")}
# Columns of users' rows that add to a prompt, so that a model trained without them would lack information: names in
# lower case, without punctuation and plural s.
UNREAD = frozenset((
    "system", "systemprompt", "systemmessage", "systeminstruction", "sysprompt", "history", "chathistory",
    "conversationhistory", "input", "tool", "function", "image", "video", "audio", "context", "document", "passage",
    "message", "conversation", "dialog", "dialogue", "instruction", "question", "query", "chattemplatekwarg",
))  # fmt: skip
# What a file of each ending should hold.
EXPECTED = {".csv": "rows below the header", ".json": "a list of objects", ".parquet": "a table with rows"}


@dataclass(frozen=True)
class Data:
    """Rows by role.

    Attributes:
        evaluation: by benchmark; empty where the benchmarks bring their own.
        general: by stage, the reference rows that are trained on in addition to the safety rows; in GRPO only prompts.
        held_out: rows whose loss is measured while training, by name; empty where no stage measures it.
    """

    safety: list[Row]
    reference_sets: dict[str, list[Row]]
    evaluation: dict[str, list[Row]] = field(default_factory=dict)
    general: dict[StageName, list[Row]] = field(default_factory=dict)
    held_out: dict[str, list[Row]] = field(default_factory=dict)

    def training(self, stage: StageName) -> list[Row]:
        """The rows that ``stage`` trains on; their order in training is the trainer's to draw.

        Those of GRPO say whether the request is ``harmful``, and the ``target`` of one that should be answered.
        """
        general = self.general.get(stage, [])
        if stage != "grpo":
            return [*self.safety, *general]
        asked = [
            {"prompt": row["prompt"], "harmful": row.get("harmful", True), "target": row.get("target")}
            for row in self.safety
        ]
        return asked + [{"prompt": row["prompt"], "harmful": False, "target": row["chosen"]} for row in general]

    def parts(self) -> Iterable[tuple[str, list[Row]]]:
        """Every part's rows, by the name of its file."""
        yield "safety", self.safety
        for folder, groups in (
            ("reference", self.reference_sets),
            ("evaluation", self.evaluation),
            ("general", self.general),
            ("held_out", self.held_out),
        ):
            for name, rows in groups.items():
                yield f"{folder}/{name}", rows

    def facts(self) -> dict[str, dict[str, Any]]:
        """Each part's row count, and the SHA-256 of its file."""
        return {
            name: {"rows": len(rows), "sha256": hashlib.sha256(to_jsonl(rows).encode()).hexdigest()}
            for name, rows in self.parts()
        }

    def write(self, folder: Path) -> dict[str, dict[str, Any]]:
        """Write one JSONL file per part and return ``facts``."""
        for name, rows in self.parts():
            write_jsonl(folder / f"{name}.jsonl", rows)
        return self.facts()


def load_data(config: Config) -> Data:
    """All rows of a run.

    Raises:
        UserError: files are missing, empty or hold rows that a stage cannot train on, or a reference set is smaller
            than wanted.
    """
    data = config.data
    evaluation: dict[str, list[Row]] = {}
    measured = {stage.name for stage in config.stages if stage.eval_every is not None}
    if not isinstance(data, FileData):
        built = _testbed(data.seed, data.safety_rows, data.reference_rows, data.evaluation_rows)
        safety, reference_sets, evaluation = built.safety, built.reference_sets, built.evaluation
        held_out = built.held_out if measured else {}
    else:
        safety, reference_sets, held_out = _read_files(config, data, measured)
    check_sizes(config, safety, reference_sets)
    general: dict[StageName, list[Row]] = {}
    for stage in config.stages:
        for use in set_uses(config, stage, len(safety)):
            if use.trained_on:
                draw = random.Random(f"{config.seed} {stage.name} {use.name}")
                general.setdefault(stage.name, []).extend(draw.sample(reference_sets[use.name], use.rows))
    return Data(safety, reference_sets, evaluation, general, held_out)


@lru_cache(maxsize=4)
def _testbed(seed: int, safety_rows: int, reference_rows: int, evaluation_rows: int) -> Rows:
    """Cached for the next run of a sweep: rows are never changed."""
    return build_rows(World(seed), seed, safety_rows, reference_rows, evaluation_rows)


def set_uses(config: Config, stage: OneStage, safety_rows: int) -> list[SetUse]:
    """The reference sets that a stage reads: the method's, and in GRPO those of requests that should be answered."""
    uses = [replace(use, key=f"method.{use.key}") for use in config.method.set_uses(stage.name, safety_rows)]
    if isinstance(stage, GRPOSettings):
        key = f"{config.stage_key(stage.name)}.answerable_ratio"
        uses += mixed_in(stage.answerable_sets, stage.answerable_ratio * safety_rows, key)
    return uses


def stage_sets(config: Config, stage: OneStage, data: Data) -> Iterator[tuple[str, list[Row], tuple[str, ...]]]:
    """Each set that a stage reads: what messages call it, its rows, and the columns of their answers."""
    yield "safety set", data.training(stage.name), SAFETY_COLUMNS[stage.name][1:]
    for use in set_uses(config, stage, len(data.safety)):
        answers = (SAFETY_COLUMNS if use.trained_on else COLUMNS)[stage.name][1:]
        yield f"reference set '{use.name}'", data.reference_sets[use.name], answers
    for use in config.method.prepared_from():
        yield f"reference set '{use.name}'", data.reference_sets[use.name], COLUMNS["sft"][1:]
    if stage.eval_every is not None:
        for name, rows in data.held_out.items():
            yield f"held-out set '{name}'", rows, COLUMNS[stage.name][1:]


def all_uses(config: Config, safety_rows: int) -> list[tuple[StageName, SetUse]]:
    """The reference sets that a run reads, each with the stage whose columns it needs."""
    uses = [(stage.name, use) for stage in config.stages for use in set_uses(config, stage, safety_rows)]
    # Prompts with answers, as SFT reads them.
    return [*uses, *(("sft", replace(use, key=f"method.{use.key}")) for use in config.method.prepared_from())]


def _read_files(
    config: Config, data: FileData, measured: Set[StageName]
) -> tuple[list[Row], dict[str, list[Row]], dict[str, list[Row]]]:
    problems, safety, reference_sets = Problems(), list[Row](), dict[str, list[Row]]()
    with problems.kept():
        stages = {stage.name for stage in config.stages}
        safety = _read_rows(config, data.safety, "data.safety", stages, SAFETY_COLUMNS)
    readers: dict[str, set[StageName]] = {}
    for reader, use in all_uses(config, len(safety)):
        readers.setdefault(use.name, set()).add(reader)
    for name, stages in readers.items():
        with problems.kept():
            path = data.reference_sets[name]
            reference_sets[name] = _read_rows(config, path, f"data.reference_sets.{name}", stages, COLUMNS)
    held_out: dict[str, list[Row]] = {}
    for name, path in data.held_out.items() if measured else ():
        with problems.kept():
            if Path(path).exists() and Path(data.safety).exists() and Path(path).samefile(data.safety):
                raise UserError(
                    f"data.held_out.{name}: {path} is also data.safety, which is trained on; name other rows"
                )
            held_out[name] = _read_rows(config, path, f"data.held_out.{name}", measured, COLUMNS)
    problems.tell()
    return safety, reference_sets, held_out


def row_place(path: str | None, number: int) -> str:
    """The place of a row in the file at ``path``, or in rows of no file; ``number`` counts from 0."""
    return f"row {number + 1}" if path is None else place(path, number + 1)


def _read_rows(
    config: Config, path: str, key: str, stages: Set[StageName], needed: Mapping[StageName, tuple[str, ...]]
) -> list[Row]:
    try:
        found = read_table(Path(path))
    except UserError as error:
        name = Path(path).parent.name
        hint = ""
        if name in SCHEMAS and not Path(path).exists():
            # Its rows are not those of the bare recipes.
            small = config.data.name == "small"
            hint = f"; build it: {'make data-small' if small else f'python -m ogpsa.data build {name}'}"
        raise UserError(*(f"{key}: {problem}{hint}" for problem in error.problems)) from None
    if not found:
        expected = EXPECTED.get(ending(Path(path)), "one JSON object a line")
        raise UserError(f"{key}: {path} holds no rows; expected {expected}")
    check_parts(found, key, path)
    columns = sorted({column for stage in stages for column in needed[stage]})
    marked = "grpo" in stages and needed is SAFETY_COLUMNS
    cells = ending(Path(path)) == ".csv"
    # By kind of mistake, the message about the first row that has it, and the numbers of all such rows.
    mistakes: dict[str, tuple[str, list[int]]] = {}
    rows = []
    for number, given in enumerate(found, start=1):
        try:
            row = plain_row(given, columns, cells)
        except ConversationError as wrong:
            mistakes.setdefault(wrong.kind, (wrong.told, []))[1].append(number)
            continue
        for fault, mistake in _mistakes(config, row, columns, stages):
            mistakes.setdefault(fault, (mistake, []))[1].append(number)
        rows.append({column: _answer(row) if column == "chosen" else row.get(column) for column in columns})
        for name, kind, allowed in ROLLOUT_COLUMNS if marked else ():
            value = _cell(row.get(name), kind) if cells else row.get(name)
            if value is not None:
                rows[-1][name] = value
                if not isinstance(value, kind):
                    mistake = f": column '{name}' holds {json_kind(value)}; allowed: {allowed}"
                    mistakes.setdefault(name, (mistake, []))[1].append(number)
    if mistakes:
        raise UserError(
            *(f"{key}: {place(path, numbers[0])}{text}{_others(numbers[1:])}" for text, numbers in mistakes.values())
        )
    return rows


def _cell(text: str | None, kind: type) -> object:
    """A cell's value, which a CSV file holds as text; None where it is empty."""
    written = {"true": True, "false": False} if kind is bool else {}
    return written.get((text or "").strip().lower(), text or None)


def _mistakes(config: Config, row: Row, columns: Sequence[str], stages: Set[StageName]) -> Iterator[tuple[str, str]]:
    """The mistakes in a row that stages would read, each with its kind."""
    given, row = row, row | {"chosen": _answer(row)} if "completion" in row else row
    # The field's name of an answer that has no rejected one beside it comes first.
    other = {} if "rejected" in columns or "chosen" in given else {"chosen": ("completion", "chosen")}
    names = {column: other.get(column, (column,)) for column in columns}
    needed = f"{' and '.join(sorted(stages))} need {', '.join(' or '.join(names[column]) for column in columns)}"
    whole = True
    for column in columns:
        value = row.get(column)
        if column not in row or (isinstance(value, str) and not value.strip(INVISIBLE)):
            whole = False
            known = ", ".join(map(str, sorted(given, key=str))) or "none"
            others = [str(name) for name in row.keys() - {*columns, *names[column]}]
            hint = next(filter(None, (closest_match(name, others) for name in names[column])), "")
            wanted = " or ".join(f"'{name}'" for name in names[column])
            yield f"none {column}", f" has no text in column {wanted} (columns found: {known}); {needed}{hint}"
        # Of a prompt, messages that ``plain_row`` has read.
        elif not isinstance(value, str) and not (column == "prompt" and isinstance(value, list)):
            whole = False
            allowed = ALLOWED if isinstance(value, list | dict) else "a text"
            shown = "completion" if column == "chosen" and column not in given else column
            yield (
                f"{type(value)} {column}",
                f": column '{shown}' holds {json_kind(value)}; allowed: {allowed}; {needed}",
            )
    for column in ("chosen", "rejected"):
        if column not in columns or not isinstance(row.get(column), str) or not row[column].strip(INVISIBLE):
            continue
        answer = split_reply(row[column]).answer
        if answer is None and column == "chosen":
            yield f"thought {column}", f": column '{column}' begins a thought that does not end; end it, or take it out"
        elif answer is not None and says_nothing(answer):
            found = f"{row[column]:.40}"
            yield (
                f"nothing {column}",
                f": column '{column}' says nothing, but {found!r}; write an answer",
            )
    read = [as_text(row[column]) for column in columns if isinstance(row.get(column), str | list)]
    for column, value in row.items():
        if column not in columns and _plain(str(column)).removesuffix("s") in UNREAD and _adds(value, read):
            remedy = "name it 'system'" if _plain(str(column)).startswith("sys") else "put it into the prompt"
            yield column, f": column '{column}' is read by no stage; {remedy}, or take the column out"
    if "completion" in row and (row.get("label") is False or str(row.get("label")).lower() == "false"):
        yield "label", ": label is false, so that the completion is not an answer to learn; take the row out"
    if not _blank(given.get("completion")) and not _blank(given.get("chosen")) and row["chosen"] != row["completion"]:
        yield "two answers", ": holds both 'chosen' and 'completion', and they differ; keep one"
    equal = whole and "dpo" in stages and row["chosen"].strip(INVISIBLE) == row["rejected"].strip(INVISIBLE)
    for stage in config.stages:
        if equal and isinstance(stage, DPOSettings) and not stage.equal_answers:
            yield (
                "equal",
                ": chosen and rejected are equal, and a pair without a difference has no gradient; take it out, or "
                f"allow it by {config.stage_key(stage.name)}.equal_answers=true",
            )


def _blank(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip(INVISIBLE))


def _answer(row: Row) -> Any:
    """The answer to learn: ``chosen``, or where that says nothing ``completion``."""
    other = "completion" in row and ("chosen" not in row or _blank(row["chosen"]))
    return row["completion"] if other else row.get("chosen")


def _plain(name: str) -> str:
    """A name without case, blanks and signs."""
    return "".join(filter(str.isalnum, name.lower()))


def _adds(value: Any, read: Sequence[str]) -> bool:
    """Whether a value adds something to the texts that are read; a number or a copy of them does not."""
    match value:
        case str():
            said = value.strip(INVISIBLE)
            own = re.compile(rf"(?<!\w){re.escape(said)}(?!\w)")
            return bool(said) and not any(own.search(text) for text in read)
        case list():
            return any(_adds(entry, read) for entry in value)
        case dict():
            return any(_adds(entry, read) for name, entry in value.items() if name not in ("role", "from"))
    return isinstance(value, bytes) and bool(value)


def _others(numbers: Sequence[int]) -> str:
    if not numbers:
        return ""
    shown = ", ".join(map(str, numbers[:8])) + (", …" if len(numbers) > 8 else "")
    return f" (and {len(numbers)} more row{'s' * (len(numbers) > 1)}: {shown})"


def check_sizes(config: Config, safety: list[Row], reference_sets: dict[str, list[Row]]) -> None:
    """Refuse sets that hold fewer rows than the run draws.

    Raises:
        UserError: names the key and the set.
    """
    for reader, use in all_uses(config, len(safety)):
        held = len(reference_sets[use.name])
        if held < use.rows:
            raise UserError(
                f"{use.key}: {use.rows} rows wanted for {reader}, but reference set '{use.name}' holds {held}; lower "
                f"{use.key} or add rows"
            )
    for stage in config.stages:
        if isinstance(stage, GRPOSettings):
            prompts = len(safety) + sum(use.rows for use in set_uses(config, stage, len(safety)) if use.trained_on)
            if prompts < stage.prompts_per_generation:
                raise UserError(
                    f"{config.stage_key(stage.name)}.batch_size: {stage.prompts_per_generation} prompts are answered "
                    f"at a time (batch_size × updates_per_generation / num_generations), but there are only {prompts}; "
                    "lower it or add rows"
                )
        elif len(safety) < stage.batch_size:
            raise UserError(
                f"{config.stage_key(stage.name)}.batch_size: {stage.batch_size} rows a step, but the safety set holds "
                f"only {len(safety)}; lower it (and micro_batch_size) or add rows"
            )
