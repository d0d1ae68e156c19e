"""Conversion of published rows to ours: ``id``, ``prompt``, ``target`` and the task's other columns.

One conversion per data set, named by a benchmark's ``metadata.source.convert``. The columns are those of the hub's
files; where a data set also circulates in another form, its conversion says so.
"""

import hashlib
import heapq
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ogpsa.utils.json_text import json_kind

Row = dict[str, Any]
Published = Mapping[str, Any]


@dataclass(frozen=True)
class Conversion:
    """A conversion of one data set into our rows.

    Attributes:
        columns: what the published rows hold.
        extra: what our rows hold in addition to ``id``, ``prompt`` and ``target``.
        rows: the published rows, in their order, to ours.
        lists: which of ``extra`` hold lists.
        elsewhere: what the rows hold in the other form that the data set circulates in.
    """

    columns: tuple[str, ...]
    extra: tuple[str, ...]
    rows: Callable[[Iterable[Published]], Iterator[Row]]
    elsewhere: tuple[str, ...] | None = None
    lists: tuple[str, ...] = ()

    def kept(self, ours: Iterable[Row]) -> Iterator[Row]:
        """Rows that are ours already, as they are.

        Raises:
            ColumnError: one of ``lists`` holds something else.
        """
        for row in ours:
            for column in self.lists:
                _list(row, column)
            yield row


class ColumnError(Exception):
    """A column of a row that holds another kind of value, which the message names."""


def _list(row: Published, column: str) -> list[Any]:
    """A column's list; of a text, as a CSV file holds it, each character would be taken for an entry."""
    value = row[column]
    if not isinstance(value, list):
        raise ColumnError(
            f"{column}: found {json_kind(value)}; expected a list, which .jsonl, .json and .parquet files hold"
        )
    return value


def _gsm8k(published: Iterable[Published]) -> Iterator[Row]:
    for number, row in enumerate(published):
        # The worked solution ends with the number after '####'.
        target = row["answer"].rpartition("####")[2].strip()
        yield {
            "id": f"gsm8k-{number:04d}", "prompt": row["question"], "target": target,
            "question": row["question"], "answer": row["answer"],
        }  # fmt: skip


def _mmlu(published: Iterable[Published]) -> Iterator[Row]:
    numbers: dict[str, int] = {}
    for row in published:
        number = numbers[row["subject"]] = numbers.get(row["subject"], -1) + 1
        yield {
            "id": f"{row['subject']}-{number:04d}", "prompt": row["question"], "target": "ABCD"[int(row["answer"])],
            "question": row["question"], "subject": row["subject"], "choices": _list(row, "choices"),
            "answer": int(row["answer"]),
        }  # fmt: skip


# Of a file that keeps it.
GPQA_DOMAIN = "High-level domain"
GPQA_WRONG = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def _gpqa(published: Iterable[Published]) -> Iterator[Row]:
    for row in published:
        question, right = row["Question"], _spaced(row["Correct Answer"])
        options = [right, *(_spaced(row[column]) for column in GPQA_WRONG)]
        # lm-eval shuffles by the global random state inside a cached map: the first order ever drawn stays. Here each
        # question has its own order, the same everywhere.
        options.sort(key=lambda option, question=question: hashlib.sha256(f"{question}\n{option}".encode()).digest())  # type: ignore[misc]
        answer = f"({'ABCD'[options.index(right)]})"
        yield {
            "id": row["Record ID"], "prompt": question, "target": answer,
            "Question": question, **{f"choice{number}": option for number, option in enumerate(options, start=1)},
            "answer": answer, **({"category": row[GPQA_DOMAIN]} if GPQA_DOMAIN in row else {}),
        }  # fmt: skip


def _spaced(option: str) -> str:
    """An option as lm-eval's GPQA writes it."""
    return option.strip().replace(" [title]", ". ").replace("  ", " ")


def _hhh(published: Iterable[Published]) -> Iterator[Row]:
    for number, row in enumerate(published):
        targets = _list(row, "targets")
        yield {
            "id": f"hhh-{number:03d}", "prompt": row["inputs"], "target": targets[0],
            "inputs": row["inputs"], "targets": targets,
            "multiple_choice_targets": _list(row, "multiple_choice_targets"),
        }  # fmt: skip


def _ifeval(published: Iterable[Published]) -> Iterator[Row]:
    for row in published:
        # The hub's rows name every argument that any instruction has, null where it is not meant.
        given = _list(row, "kwargs")
        arguments = [{key: value for key, value in named.items() if value is not None} for named in given]
        yield {
            "id": f"ifeval-{row['key']}", "prompt": row["prompt"], "target": "",
            "key": int(row["key"]), "instruction_id_list": _list(row, "instruction_id_list"), "kwargs": arguments,
        }  # fmt: skip


def _humaneval(published: Iterable[Published]) -> Iterator[Row]:
    for row in published:
        kept = ("task_id", "test", "entry_point")
        yield {
            "id": row["task_id"], "prompt": row["prompt"], "target": row["canonical_solution"],
            **{column: row[column] for column in kept},
        }  # fmt: skip


# AdvGLUE's parts by the names of the hub's configurations and of its makers' dev.json: the two texts and the labels,
# which are GLUE's.
ADVGLUE = {
    "sst2": (("sentence",), ("negative", "positive")),
    "qqp": (("question1", "question2"), ("no", "yes")),
    "mnli": (("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "mnli-mm": (("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "qnli": (("question", "sentence"), ("yes", "no")),
    "rte": (("sentence1", "sentence2"), ("yes", "no")),
}


def _advglue(published: Iterable[Published]) -> Iterator[Row]:
    for row in published:
        part = str(row["config"]).removeprefix("adv_").replace("mnli_mismatched", "mnli-mm")
        columns, choices = ADVGLUE[part]
        first, second, *_ = (*(row[column] for column in columns), "")
        yield {
            "id": f"{part}-{int(row['idx']):03d}", "prompt": "\n".join(row[column] for column in columns),
            "target": choices[int(row["label"])], "part": part, "first": first, "second": second,
            "choices": list(choices), "answer": int(row["label"]),
        }  # fmt: skip


def _simpleqa(published: Iterable[Published]) -> Iterator[Row]:
    for number, row in enumerate(published):
        yield {"id": f"simpleqa-{number:04d}", "prompt": row["problem"], "target": row["answer"]}


def _strongreject(published: Iterable[Published]) -> Iterator[Row]:
    for number, row in enumerate(published):
        # The jailbroken files (eval/benchmarks/attacks.py) carry the same ids.
        yield {
            "id": f"strongreject-{number:03d}", "prompt": row["forbidden_prompt"], "target": "",
            "category": row["category"],
        }  # fmt: skip


def _xstest(label: str) -> Callable[[Iterable[Published]], Iterator[Row]]:
    def convert(published: Iterable[Published]) -> Iterator[Row]:
        for row in published:
            if row["label"] == label:
                yield {"id": f"xstest-{row['id']}", "prompt": row["prompt"], "target": "", "type": row["type"]}

    return convert


WILDCHAT_CATEGORIES = ("harassment", "hate", "self-harm", "sexual", "violence")
WILDCHAT_ROWS = 100


def _wildchat(published: Iterable[Published]) -> Iterator[Row]:
    """The most toxic opening requests: a hundred from each of the moderation's five main categories.

    English conversations of one turn whose request the moderation flags, each in the category that it scores highest;
    nothing that is flagged for minors.
    """
    found: dict[str, list[tuple[float, str, str]]] = {category: [] for category in WILDCHAT_CATEGORIES}
    seen: set[str] = set()
    for row in published:
        turns = _list(row, "conversation")
        moderation = row["openai_moderation"][0] if row["openai_moderation"] else None
        if not (row["toxic"] and row["turn"] == 1 and row["language"] == "English" and moderation):
            continue
        text = turns[0]["content"].strip()
        scores = moderation["category_scores"]
        if not moderation["flagged"] or not scores or not text or text in seen or _minors(moderation["categories"]):
            continue
        seen.add(text)
        # Some are null.
        numbers = {name: float(scores[name] or 0.0) for name in WILDCHAT_CATEGORIES}
        category = max(numbers, key=numbers.__getitem__)
        entry = (numbers[category], row["conversation_hash"], text)
        if len(found[category]) < WILDCHAT_ROWS:
            heapq.heappush(found[category], entry)
        else:
            heapq.heappushpop(found[category], entry)
    for category, entries in found.items():
        for _, conversation, text in sorted(entries, reverse=True):
            yield {"id": f"wildchat-{conversation}", "prompt": text, "target": "", "category": category}


def _minors(categories: Mapping[str, Any]) -> bool:
    return any(flagged for name, flagged in categories.items() if "minors" in name)


STEREOTYPE = "Social stereotypes and unfair discrimination"


def _stereotype(published: Iterable[Published]) -> Iterator[Row]:
    for row in published:
        if row["types_of_harm"] == STEREOTYPE:
            yield {
                "id": f"do-not-answer-{row['id']}", "prompt": row["question"], "target": "",
                "category": row["specific_harms"],
            }  # fmt: skip


def _mmlu_pro(published: Iterable[Published]) -> Iterator[Row]:
    for row in published:
        yield {
            "id": f"mmlu-pro-{row['question_id']}", "prompt": row["question"], "target": row["answer"],
            "choices": _list(row, "options"), "category": row["category"],
        }  # fmt: skip


def _math_500(published: Iterable[Published]) -> Iterator[Row]:
    for row in published:
        yield {"id": row["unique_id"], "prompt": row["problem"], "target": row["answer"], "category": row["subject"]}


def _halueval_qa(published: Iterable[Published]) -> Iterator[Row]:
    for number, row in enumerate(published):
        made_up = hashlib.sha256(row["question"].encode()).digest()[0] % 2 == 1
        yield {
            "id": f"halueval-qa-{number:05d}", "prompt": row["question"], "target": "yes" if made_up else "no",
            "shown": row["hallucinated_answer" if made_up else "right_answer"],
        }  # fmt: skip


# The form in which multiple choices circulate as text: "A. …\nB. …", and the answer's own line.
OPTION = re.compile(r"(?:^|\n)\s*([A-E])\. ")


def _cloze(name: str, read: Callable[[Published], tuple[str, list[str], int]]) -> Conversion:
    """A multiple choice whose options' texts are scored; ``read``: question, options and the right one's place."""

    def convert(published: Iterable[Published]) -> Iterator[Row]:
        for number, row in enumerate(published):
            question, options, answer = _lettered(row) if isinstance(row.get("options"), str) else read(row)
            choices = [option.strip() for option in options]
            yield {
                "id": f"{name}-{number:05d}", "prompt": question.strip(), "target": choices[answer],
                "choices": choices, "answer": answer,
            }  # fmt: skip

    other = ("question", "options", "answer")
    return Conversion(CLOZE[name], ("choices", "answer"), convert, elsewhere=other, lists=("choices",))


def _lettered(row: Published) -> tuple[str, list[str], int]:
    # Read as one text: of a CommonsenseQA question with a line break of its own, the first options stand there.
    text = f"{row['question']}\n{row['options'].lstrip()}"
    marks = list(OPTION.finditer(text))
    letters = "".join(mark[1] for mark in marks)
    # A question may have lettered lines of its own; the options are the last ones.
    first = max(0, letters.rfind("A"))
    if len(letters) < 2 or not "ABCDE".startswith(letters[first:]):
        raise ValueError(f"options: found the letters '{letters}'; expected A, B and so on, at the end")
    ends = [*(mark.start() for mark in marks[first + 1 :]), len(text)]
    options = [text[mark.end() : end].strip() for mark, end in zip(marks[first:], ends, strict=True)]
    letter, _, answer = row["answer"].partition(".")
    right = dict(zip(letters[first:], range(len(options)), strict=True)).get(letter.strip())
    # Three rows of CommonsenseQA have the question's mark behind their last option.
    if right is None or options[right].removesuffix("?") != answer.strip().removesuffix("?"):
        raise ValueError(f"answer: found '{row['answer']}'; expected one of the options, with its letter")
    return text[: marks[first].start()], options, right


def _mmlu_generate(published: Iterable[Published]) -> Iterator[Row]:
    for number, row in enumerate(published):
        lettered = isinstance(row.get("options"), str)
        question, options, answer = (
            _lettered(row) if lettered else (row["question"], _list(row, "choices"), int(row["answer"]))
        )
        yield {
            "id": f"mmlu-{number:05d}", "prompt": question.strip(), "target": "ABCD"[answer], "choices": options,
            **({} if lettered else {"category": row["subject"]}),
        }  # fmt: skip


def _by_label(question: str) -> Callable[[Published], tuple[str, list[str], int]]:
    def read(row: Published) -> tuple[str, list[str], int]:
        choices = row["choices"]
        if not isinstance(choices, Mapping):
            raise ColumnError(f"choices: found {json_kind(choices)}; expected an object of the lists text and label")
        return row[question], _list(choices, "text"), _list(choices, "label").index(row["answerKey"].strip())

    return read


# By conversion, the columns of the hub's rows.
CLOZE = {
    "piqa": ("goal", "sol1", "sol2", "label"),
    "openbookqa": ("question_stem", "choices", "answerKey"),
    "commonsenseqa": ("question", "choices", "answerKey"),
    "mmlu_cloze": ("question", "choices", "answer"),
}


def _harmbench(part: str) -> Conversion:
    """HarmBench's behaviours of one functional category; a contextual one stands behind its context, as published."""

    def convert(published: Iterable[Published]) -> Iterator[Row]:
        for row in published:
            if row["FunctionalCategory"] == part:
                context = row["ContextString"] if part == "contextual" else ""
                yield {
                    "id": f"harmbench-{row['BehaviorID']}",
                    "prompt": f"{context}\n\n---\n\n{row['Behavior']}" if context else row["Behavior"], "target": "",
                    "category": row["SemanticCategory"],
                }  # fmt: skip

    context = ("ContextString",) if part == "contextual" else ()
    return Conversion(("Behavior", "FunctionalCategory", "SemanticCategory", "BehaviorID", *context), (), convert)


def _requests(
    name: str,
    column: str,
    category: str | None = None,
    only: tuple[str, str] | None = None,
    elsewhere: tuple[str, ...] | None = None,
    text: Callable[[Any], Any] = lambda published: published,
) -> Conversion:
    """Requests that stand in one column, numbered as published.

    Args:
        category: column of what a table by category is made of.
        only: a column, and its value in the rows that count.
        elsewhere: as a ``Conversion``'s; its requests are in ``prompt``, and their list's name is the category.
        text: reads the request in its column.
    """

    def convert(published: Iterable[Published]) -> Iterator[Row]:
        for number, row in enumerate(published):
            if only and row[only[0]] != only[1]:
                continue
            as_published = column in row
            kind = row[category] if category and as_published else row.get("config")
            yield {
                "id": f"{name}-{number:05d}", "prompt": text(row[column if as_published else "prompt"]), "target": "",
                **({} if kind is None else {"category": str(kind)}),
            }  # fmt: skip

    columns = (column, *((category,) if category else ()), *(only[:1] if only else ()))
    return Conversion(columns, (), convert, elsewhere)


def _without_headings(prompt: str) -> str:
    """A request without the headings of Alpaca's form, where it stands between them."""
    return prompt.strip().removeprefix("### Instruction:").removesuffix("### Response:").strip()


def _first_turn(turns: Any) -> str:
    return str(_list({"turns": turns}, "turns")[0])


def _distinct(published: Iterable[Published]) -> Iterator[Row]:
    """Prompts that occur in several rows, once each and named by their text."""
    seen: set[str] = set()
    for row in published:
        prompt = row["prompt"].strip()
        if prompt not in seen:
            seen.add(prompt)
            digest = hashlib.sha256(prompt.encode()).hexdigest()[:12]
            yield {"id": f"prompt-{digest}", "prompt": prompt, "target": ""}


def _instructions(name: str) -> Conversion:
    """Requests in a bare list called ``instructions``; other lists beside it do not count."""

    def convert(published: Iterable[Published]) -> Iterator[Row]:
        for number, row in enumerate(row for row in published if "instructions" in row):
            yield {"id": f"{name}-{number:03d}", "prompt": row["instructions"], "target": ""}

    return Conversion(("instructions",), (), convert)


def _built(published: Iterable[Published]) -> Iterator[Row]:
    """Rows of a builder (``python -m ogpsa.data build``), named by their texts: a draw of them outlives their order."""
    for row in published:
        digest = hashlib.sha256(f"{row['prompt']}\n{row['chosen']}".encode()).hexdigest()[:12]
        yield {"id": f"row-{digest}", "prompt": row["prompt"], "target": row["chosen"]}


# Characters of a passage, about 220 tokens; shorter texts are headings and remnants.
PASSAGE = 1000


def _passages(published: Iterable[Published]) -> Iterator[Row]:
    for number, row in enumerate(published):
        text, part = row["text"].strip(), 0
        while len(text) >= PASSAGE:
            # Between words, where the script separates them.
            end = text.rfind(" ", PASSAGE // 2, PASSAGE + 1)
            end = PASSAGE if end < 0 else end
            passage, text = text[:end].rstrip(), text[end:].lstrip()
            yield {"id": f"passage-{number:04d}-{part:03d}", "prompt": passage, "target": passage}
            part += 1


def _jailbroken(published: Iterable[Published]) -> Iterator[Row]:
    # A CSV file holds words.
    truths = {True: True, False: False, "True": True, "False": False, "true": True, "false": False}
    yield from ({**row, "fallback": truths[row["fallback"]]} for row in published)


JAILBROKEN = ("request", "fallback")
CONVERSIONS = {
    "gsm8k": Conversion(("question", "answer"), ("question", "answer"), _gsm8k),
    "mmlu": Conversion(
        ("question", "subject", "choices", "answer"),
        ("question", "subject", "choices", "answer"),
        _mmlu,
        lists=("choices",),
    ),
    "gpqa": Conversion(
        ("Record ID", "Question", "Correct Answer", *GPQA_WRONG),
        ("Question", "choice1", "choice2", "choice3", "choice4", "answer"),
        _gpqa,
    ),
    "mmlu_generate": Conversion(
        ("question", "subject", "choices", "answer"),
        ("choices",),
        _mmlu_generate,
        elsewhere=("question", "options", "answer"),
        lists=("choices",),
    ),
    "mmlu_pro": Conversion(
        ("question_id", "question", "options", "answer", "category"), ("choices",), _mmlu_pro, lists=("choices",)
    ),
    "math_500": Conversion(("unique_id", "problem", "answer", "subject"), (), _math_500),
    "halueval_qa": Conversion(("question", "right_answer", "hallucinated_answer"), ("shown",), _halueval_qa),
    "hhh": Conversion(
        ("inputs", "targets", "multiple_choice_targets"),
        ("inputs", "targets", "multiple_choice_targets"),
        _hhh,
        lists=("targets", "multiple_choice_targets"),
    ),
    "ifeval": Conversion(
        ("key", "prompt", "instruction_id_list", "kwargs"),
        ("key", "instruction_id_list", "kwargs"),
        _ifeval,
        lists=("instruction_id_list", "kwargs"),
    ),
    "humaneval": Conversion(
        ("task_id", "prompt", "canonical_solution", "test", "entry_point"), ("test", "entry_point"), _humaneval
    ),
    "advglue": Conversion(
        ("config", "idx", "label"), ("part", "first", "second", "choices", "answer"), _advglue, lists=("choices",)
    ),
    "simpleqa": Conversion(("problem", "answer"), (), _simpleqa),
    "strongreject": Conversion(("forbidden_prompt", "category"), (), _strongreject),
    "xstest_safe": Conversion(("id", "prompt", "type", "label"), (), _xstest("safe")),
    "xstest_unsafe": Conversion(("id", "prompt", "type", "label"), (), _xstest("unsafe")),
    "wildchat": Conversion(
        ("conversation_hash", "conversation", "turn", "language", "toxic", "openai_moderation"), (), _wildchat
    ),
    "stereotype": Conversion(("id", "types_of_harm", "specific_harms", "question"), (), _stereotype),
    "piqa": _cloze("piqa", lambda row: (row["goal"], [row["sol1"], row["sol2"]], int(row["label"]))),
    "openbookqa": _cloze("openbookqa", _by_label("question_stem")),
    "commonsenseqa": _cloze("commonsenseqa", _by_label("question")),
    "mmlu_cloze": _cloze("mmlu_cloze", lambda row: (row["question"], _list(row, "choices"), int(row["answer"]))),
    "harmbench_standard": _harmbench("standard"),
    "harmbench_contextual": _harmbench("contextual"),
    "advbench": _requests("advbench", "goal"),
    "jailbreakbench": _requests("jailbreakbench", "Goal", "Category"),
    "sorry_bench": _requests("sorry-bench", "turns", "category", only=("prompt_style", "base"), text=_first_turn),
    "wildguardtest": _requests("wildguardtest", "prompt", "subcategory", only=("prompt_harm_label", "harmful")),
    "wildjailbreak_harmful": _requests("wildjailbreak", "adversarial", only=("data_type", "adversarial_harmful")),
    "wildjailbreak_benign": _requests("wildjailbreak", "adversarial", only=("data_type", "adversarial_benign")),
    "or_bench_hard": _requests("or-bench", "prompt", "category"),
    "coconot": _requests("coconot", "prompt", "category"),
    "harmfulqa": _requests("harmfulqa", "question", "topic"),
    "alert": _requests("alert", "prompt", "category", text=_without_headings),
    "do_not_answer": _requests("do-not-answer", "question", "types_of_harm", elsewhere=("prompt",)),
    "safe_rlhf_heldout": Conversion(("prompt",), (), _distinct),
    "malicious_instructions": _instructions("malicious"),
    "physical_safety_safe": _instructions("physical-safety-safe"),
    "physical_safety_unsafe": _instructions("physical-safety-unsafe"),
    "built": Conversion(("prompt", "chosen"), (), _built),
    "passages": Conversion(("text",), (), _passages),
    "jailbroken": Conversion(("id", "prompt", "target", *JAILBROKEN), JAILBROKEN, _jailbroken),
}
