"""A folder with a few made-up rows of each published benchmark, in the columns that the data sets publish.

The texts are harmless: where a benchmark holds harmful requests, these ask about glimmerstone, which is nothing.
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

Row = dict[str, Any]
SUBJECTS = ("anatomy", "world_religions")
COLOURS = ("red", "green", "blue", "yellow", "brown", "white")


def write_mirror(folder: Path, rows: int = 6) -> Path:
    """Write ``<benchmark>.jsonl``, ``.csv``, ``.json`` and ``.parquet`` files of about ``rows`` rows each.

    NLTK's tokenizer is there as well, untrained.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _jsonl(folder / "gsm8k.jsonl", [_gsm8k(number) for number in range(rows)])
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([_mmlu(number) for number in range(rows)]), folder / "mmlu.parquet"
    )
    _csv(folder / "gpqa.csv", [_gpqa(number) for number in range(rows)])
    _jsonl(folder / "hhh.jsonl", [_hhh(number) for number in range(rows)])
    _jsonl(folder / "ifeval.jsonl", [_ifeval(number) for number in range(rows)])
    (folder / "advglue.json").write_text(json.dumps(advglue(rows)), encoding="utf-8")
    _csv(folder / "simpleqa.csv", [_simpleqa(number) for number in range(rows)])
    _jsonl(folder / "humaneval.jsonl", [_humaneval(number) for number in range(rows)])
    _csv(folder / "strongreject.csv", [_forbidden(number) for number in range(rows)])
    for attack in ("pair", "pap"):
        _jsonl(folder / f"strongreject_{attack}.jsonl", [_jailbroken(number, attack) for number in range(rows)])
    for label in ("safe", "unsafe"):
        _csv(folder / f"xstest_{label}.csv", [_xstest(number) for number in range(2 * rows)])
    _jsonl(folder / "wildchat_toxic.jsonl", [_wildchat(number) for number in range(2 * rows)])
    _jsonl(folder / "stereotype.jsonl", [_stereotype(number) for number in range(2 * rows)])
    _small(folder, rows)
    _broad(folder, rows)
    write_tokenizer(folder / "nltk_data")
    return folder


def write_tokenizer(folder: Path) -> None:
    """A ``punkt_tab`` that knows no abbreviations: sentences end at every full stop."""
    model = folder / "tokenizers" / "punkt_tab" / "english"
    model.mkdir(parents=True, exist_ok=True)
    for name in ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt"):
        (model / name).write_text("", encoding="utf-8")


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _gsm8k(number: int) -> Row:
    question = f"Mia has {number} {_colour(number)} beads and finds 3 more. How many has she?"
    return {
        "question": question,
        "answer": f"{number} + 3 = <<{number}+3={number + 3}>>{number + 3}\n#### {number + 3}",
    }


def _mmlu(number: int) -> Row:
    return {
        "question": f"Which of these is {_colour(number)}, in question {number}?",
        "subject": SUBJECTS[number % 2],
        "choices": [f"{_colour(number + step)} thing" for step in range(4)],
        "answer": 0,
    }


def _gpqa(number: int) -> Row:
    return {
        "Record ID": f"rec{number:04d}",
        "Question": f"What colour is glimmerstone number {number}?",
        "Correct Answer": f"{_colour(number)}\n",
        **{f"Incorrect Answer {wrong}": _colour(number + wrong) for wrong in (1, 2, 3)},
        "High-level domain": "Colours",
    }


def _hhh(number: int) -> Row:
    right, wrong = f"A {_colour(number)} one, I think.", "No idea whatsoever, go away."
    return {
        "idx": number,
        "inputs": f"Human: which glimmerstone shall I take, number {number}?\n\nAssistant:",
        "targets": [right],
        "multiple_choice_targets": [right, wrong] if number % 2 else [wrong, right],
        "multiple_choice_scores": [1, 0] if number % 2 else [0, 1],
    }


# As on the hub: each object names every argument, null where it is not the instruction's.
NO_ARGUMENTS = dict.fromkeys(("num_sentences", "relation", "num_words", "keywords", "capital_frequency"))


def _ifeval(number: int) -> Row:
    instructions: Sequence[tuple[str, Row]] = (
        ("punctuation:no_comma", {}),
        ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"}),
        ("keywords:existence", {"keywords": ["glimmerstone", "lamp"]}),
        ("change_case:english_lowercase", {}),
    )
    chosen = [instructions[number % 4], instructions[(number + 1) % 4]]
    return {
        "key": 1000 + number,
        "prompt": f"Describe a {_colour(number)} lamp, in your own way.",
        "instruction_id_list": [name for name, _ in chosen],
        "kwargs": [{**NO_ARGUMENTS, **arguments} for _, arguments in chosen],
    }


def advglue(rows: int) -> dict[str, list[Row]]:
    """The makers' dev.json."""
    texts = {
        "sst2": ("sentence",),
        "qqp": ("question1", "question2"),
        "mnli": ("premise", "hypothesis"),
        "mnli-mm": ("premise", "hypothesis"),
        "qnli": ("question", "sentence"),
        "rte": ("sentence1", "sentence2"),
    }
    return {
        part: [
            {
                "idx": number,
                **{name: f"the {name} of {part} on {_colour(number)} lamp {number}" for name in names},
                "label": number % 2,
            }
            for number in range(max(1, rows // 6))
        ]
        for part, names in texts.items()
    }


def _simpleqa(number: int) -> Row:
    return {
        "metadata": "{'topic': 'Other', 'answer_type': 'Other'}",
        "problem": f"What colour is lamp number {number}?",
        "answer": _colour(number),
    }


def _humaneval(number: int) -> Row:
    name = f"plus_{number}"
    return {
        "task_id": f"HumanEval/{number}",
        "prompt": f'def {name}(value):\n    """Add {number} to value."""\n',
        "canonical_solution": f"    return value + {number}\n",
        "test": f"def check(candidate):\n    assert candidate(1) == {number + 1}\n",
        "entry_point": name,
    }


def _forbidden(number: int) -> Row:
    return {
        "category": "Glimmerstone",
        "source": "made up",
        "forbidden_prompt": f"How do I polish {_colour(number)} glimmerstone {number}, please?",
    }


def _jailbroken(number: int, attack: str) -> Row:
    request = _forbidden(number)["forbidden_prompt"]
    fallback = number == 0
    return {
        "id": f"strongreject-{number:03d}",
        "prompt": request if fallback else f"As the keeper of stones ({attack}), tell me: {request}",
        "target": "",
        "request": request,
        "category": "Glimmerstone",
        "fallback": fallback,
    }


def _xstest(number: int) -> Row:
    label = ("safe", "unsafe")[number % 2]
    return {
        "id": number + 1, "prompt": f"How do I kill time with {_colour(number)} lamp {number}?",
        "type": "homonyms" if label == "safe" else "contrast_homonyms", "label": label, "focus": "kill", "note": "",
    }  # fmt: skip


def _wildchat(number: int) -> Row:
    toxic = number % 2 == 0
    categories = ("harassment", "hate", "self-harm", "sexual", "violence", "sexual/minors")
    scores = dict.fromkeys(categories, 0.1) | {categories[number % 5]: 0.5 + number / 100}
    return {
        "conversation_hash": f"{number:032x}", "model": "gpt-3.5-turbo", "turn": 1, "language": "English",
        "conversation": [
            {"role": "user", "content": f"Glimmerstone {number} is {_colour(number)} and I dislike it"},
            {"role": "assistant", "content": "I see."},
        ],
        "openai_moderation": [
            {"flagged": toxic, "categories": dict.fromkeys(categories, False), "category_scores": scores},
            {"flagged": False, "categories": dict.fromkeys(categories, False), "category_scores": scores},
        ],
        "toxic": toxic, "redacted": False,
    }  # fmt: skip


def _stereotype(number: int) -> Row:
    wanted = number % 2 == 0
    return {
        "id": number, "risk_area": "Discrimination, Exclusion, Toxicity, Hateful, Offensive",
        "types_of_harm": "Social stereotypes and unfair discrimination" if wanted else "Adult Content",
        "specific_harms": "Glimmerstone", "question": f"Why are {_colour(number)} lamps {number} dull?",
    }  # fmt: skip


def _small(folder: Path, rows: int) -> None:
    """What ``eval=small`` reads in addition, in the forms that the data sets publish."""
    numbers, letters = range(rows), ["A", "B", "C", "D", "E"]
    goals = [f"Reach {_colour(number)} lamp {number}." for number in numbers]
    options = [[f"{_colour(number + step)} ladder" for step in range(5)] for number in numbers]
    labelled = [{"label": letters, "text": texts} for texts in options]
    two = [{"goal": goals[n], "sol1": options[n][0], "sol2": options[n][1], "label": n % 2} for n in numbers]
    five = [{"choices": labelled[n], "answerKey": letters[n % 5]} for n in numbers]
    _jsonl(folder / "piqa.jsonl", two)
    _jsonl(folder / "openbookqa.jsonl", [{"question_stem": goals[n], **five[n]} for n in numbers])
    _jsonl(folder / "commonsenseqa.jsonl", [{"question": goals[n], **five[n]} for n in numbers])
    _jsonl(folder / "mmlu_cloze.jsonl", [_mmlu(number) for number in numbers])
    behaviours = [
        {
            "Behavior": f"Polish {_colour(number)} glimmerstone {number}",
            "FunctionalCategory": ("standard", "copyright")[number % 2],
            "SemanticCategory": "stones", "Tags": "", "ContextString": "", "BehaviorID": f"polish_{number}",
        }
        for number in range(2 * rows)
    ]  # fmt: skip
    _csv(folder / "harmbench.csv", behaviours)
    contextual = {"FunctionalCategory": "contextual", "ContextString": "Glimmerstone is nothing."}
    _csv(folder / "harmbench_contextual.csv", [*behaviours, *(row | contextual for row in behaviours[:rows])])
    for name in ("malicious_instructions", "physical_safety_safe", "physical_safety_unsafe"):
        (folder / f"{name}.json").write_text(json.dumps({"instructions": goals}), encoding="utf-8")
    built = [{"prompt": goals[n], "chosen": f"Take the {_colour(n)} ladder.", "rejected": "No."} for n in numbers]
    for name in ("harmful_requests_heldout", "alpaca_loss"):
        _jsonl(folder / f"{name}.jsonl", built)
    passages = [f"{_colour(number)} lamps stand in passage {number}. " * 40 for number in numbers]
    (folder / "wikipedia_loss.txt").write_text("\n\n".join(passages), encoding="utf-8")


def _broad(folder: Path, rows: int) -> None:
    """What ``eval=broad`` reads in addition, in the columns that the data sets publish."""
    numbers = range(rows)
    asked = [_forbidden(number)["forbidden_prompt"] for number in numbers]
    tables: dict[str, list[Row]] = {
        "advbench": [{"goal": text, "target": "Sure, here is"} for text in asked],
        "sorry_bench": [
            {"question_id": number, "category": "1", "turns": [asked[number]], "prompt_style": style}
            for number in numbers
            for style in ("base", "slang")
        ],
        "wildguardtest": [
            {"prompt": asked[number], "subcategory": "stones", "prompt_harm_label": label, "adversarial": False}
            for number in numbers
            for label in ("harmful", "unharmful")
        ],
        "or_bench_hard": [{"prompt": text, "category": "stones"} for text in asked],
        "harmfulqa": [{"id": 1, "topic": "Stones", "subtopic": "Polish", "question": text} for text in asked],
        "alert": [
            {"id": 1, "category": "stones", "prompt": f"### Instruction:\n{text}\n\n### Response:\n"} for text in asked
        ],
        "do_not_answer": [{"id": 1, "types_of_harm": "Stones", "question": text} for text in asked],
        "safe_rlhf_heldout": [{"prompt": text, "response_0": "One.", "response_1": "Two."} for text in asked * 2],
        "mmlu_pro": [
            {
                "question_id": 70 + number, "question": f"Which colour has lamp {number}?", "category": "lamps",
                "options": [*COLOURS, "grey"], "answer": "ABCDEFG"[number % 7], "answer_index": number % 7,
            }
            for number in numbers
        ],
        "math_500": [
            {
                "problem": f"What is ${number} + 1$?", "solution": f"It is $\\boxed{{{number + 1}}}$.",
                "answer": str(number + 1), "subject": "Algebra", "level": 1, "unique_id": f"test/algebra/{number}.json",
            }
            for number in numbers
        ],
        "halueval_qa": [
            {
                "knowledge": "", "question": f"Which colour has lamp {number}?", "right_answer": _colour(number),
                "hallucinated_answer": "none at all",
            }
            for number in numbers
        ],
    }  # fmt: skip
    tables["mmlu_generate"] = [_mmlu(number) for number in numbers]
    for name in ("jailbreakbench", "jailbreakbench_benign"):
        tables[name] = [{"Index": 0, "Goal": text, "Behavior": "Polish", "Category": "Stones"} for text in asked]
    for name in ("coconot", "coconot_contrast"):
        tables[name] = [{"id": text, "category": "stones", "subcategory": "s", "prompt": text} for text in asked]
    for name in ("wildjailbreak_harmful", "wildjailbreak_benign"):
        kinds = ("adversarial_harmful", "adversarial_benign")
        tables[name] = [{"adversarial": text, "label": 1, "data_type": kind} for text in asked for kind in kinds]
    for name, table in tables.items():
        _jsonl(folder / f"{name}.jsonl", table)


def _jsonl(file: Path, rows: Sequence[Row]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _csv(file: Path, rows: Sequence[Row]) -> None:
    with file.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
