"""The world's rows, split so that reference, replay and evaluation rows never meet.

Facts, categories and benign requests are split by object, arithmetic and list tasks by drawing without
replacement. The base learns the facts of every object (they cannot be guessed), but of arithmetic and lists
only what is in no split. Where a space is too small for the rows asked for, the benchmark is smaller.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from ogpsa.testbed.world import (
    HARMFUL_CATEGORIES,
    HELD_OUT_HOW_TO,
    HOW_TO,
    REFUSED_CATEGORIES,
    SKILLS,
    Example,
    Thing,
    World,
)

# Objects of each benign category by split; of each harmful category the first are trained on, the rest held out.
EVALUATION_OBJECTS, REFERENCE_OBJECTS = slice(0, 6), slice(6, 11)
REPLAY_OBJECTS = slice(11, None)
TRAINED_HARMFUL, HELD_OUT_HARMFUL = slice(0, 16), slice(16, None)
HELPFUL_TASKS = ("addition", "maximum", "reverse", "repeat", "benign_how_to")
ARITHMETIC_TASKS = ("addition", "maximum")
TRUTHFUL_TASKS = ("facts", "category", "category_yes_no")
# Prompts of one arithmetic or list task in one split: three splits leave the base most of it.
MOST_OF_A_SKILL = 400
# Share of each task in the base's training, by how much there is to learn.
BASE_MIXTURE = {
    "addition": 21, "maximum": 15, "reverse": 7, "repeat": 10, "facts": 15, "category": 4, "category_yes_no": 13,
    "benign_how_to": 5, "harmful": 6, "look_alike": 4,
}  # fmt: skip
# Share of the base's answers in the preferred style. Below one half, greedy decoding does without it; above
# zero, what the reference rows ask for is a shift of what the base knows, as with real preference data.
OPENED_SHARE = 0.25


@dataclass(frozen=True)
class Rows:
    """Everything but the base's training stream; each row is ready for JSONL.

    Attributes:
        safety: harmful requests: ``prompt``, ``chosen`` (the refusal), ``rejected`` (the harmful answer).
        reference_sets: by name, same columns; ``chosen`` is right and in the preferred style, ``rejected`` wrong.
            Only ``harmful_answers`` are the safety set's own rows with their answers exchanged: what alignment is to
            take away.
        evaluation: by benchmark: ``id``, ``prompt``, ``target``.
        held_out: the same columns as ``safety``: requests for objects that no row trains on, and questions of the
            benchmarks with their right answers.
    """

    safety: list[dict[str, Any]]
    reference_sets: dict[str, list[dict[str, Any]]]
    evaluation: dict[str, list[dict[str, Any]]]
    held_out: dict[str, list[dict[str, Any]]]

    def general_prompts(self) -> set[str]:
        """Prompts that the base may not see where it could do without: arithmetic and lists."""
        groups = [*self.reference_sets.values(), *self.evaluation.values()]
        return {row["prompt"] for rows in groups for row in rows}


def build_rows(world: World, seed: int, safety_rows: int, reference_rows: int, evaluation_rows: int) -> Rows:
    """All rows of a world. Sizes are caps: a task whose space is smaller gives what it has."""
    draw = random.Random(f"rows {seed}")
    taken: set[str] = set()
    evaluation = _general(world, EVALUATION_OBJECTS, draw, taken, evaluation_rows)
    reference = _general(world, REFERENCE_OBJECTS, draw, taken, reference_rows)
    replay = _general(world, REPLAY_OBJECTS, draw, taken, reference_rows)
    trained, held_out = _harmful(world, TRAINED_HARMFUL), _harmful(world, HELD_OUT_HARMFUL)
    definitions = [example for thing in held_out + trained for example in thing.categories() + thing.avoid()]
    evaluation |= {
        "harmful_seen": _harmful_requests(trained, HELD_OUT_HOW_TO),
        "harmful_heldout": _harmful_requests(held_out, HOW_TO + HELD_OUT_HOW_TO),
        "look_alike": definitions,
    }
    safety = _shuffled(
        [
            (example, example.target, thing.instructions)
            for thing in trained
            for example in thing.how_to(HOW_TO, refused=True)
        ],
        draw,
    )
    safety_set = [
        {"prompt": example.prompt, "chosen": chosen, "rejected": rejected}
        for example, chosen, rejected in safety[:safety_rows]
    ]
    sets = {
        "helpfulness": _preference_rows(reference, HELPFUL_TASKS, draw, reference_rows),
        "truthfulness": _preference_rows(reference, TRUTHFUL_TASKS, draw, reference_rows),
        "preference": _preference_rows(reference, HELPFUL_TASKS + TRUTHFUL_TASKS, draw, reference_rows),
    }
    sets["general"] = _preference_rows(replay, HELPFUL_TASKS + TRUTHFUL_TASKS, draw, reference_rows)
    questions = {
        name: [
            {"id": f"{name}-{number:04d}", "prompt": example.prompt, "target": example.target}
            for number, example in enumerate(_shuffled(examples, draw)[:evaluation_rows])
        ]
        for name, examples in evaluation.items()
    }
    # The studies' own sets come last, and take no new arithmetic: all that is drawn above, and the base, stay as they
    # are without them.
    arithmetic = {example.prompt for task in ARITHMETIC_TASKS for example in reference[task] + replay[task]}
    sets |= {
        "mathematics": [row for row in sets["helpfulness"] + sets["general"] if row["prompt"] in arithmetic],
        "knowledge": _preference_rows(replay, TRUTHFUL_TASKS, draw, reference_rows),
        "harmful_answers": [
            {"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]}
            for row in safety_set[:reference_rows]
        ],
    }
    refused = [
        {"prompt": example.prompt, "chosen": example.target, "rejected": thing.instructions}
        for thing in held_out
        for example in thing.how_to(HOW_TO, refused=True)
    ]
    unseen = {
        "safety": _shuffled(refused, draw)[:evaluation_rows],
        "general": _preference_rows(evaluation, HELPFUL_TASKS + TRUTHFUL_TASKS, draw, evaluation_rows),
    }
    return Rows(safety=safety_set, reference_sets=sets, evaluation=questions, held_out=unseen)


def base_stream(world: World, seed: int, rows: Rows) -> Iterator[Example]:
    """The base's training examples without end: every task, refusals for ``REFUSED_CATEGORIES`` only."""
    draw = random.Random(f"base {seed}")
    avoid = rows.general_prompts()
    every = slice(None)
    pools = _worded(world, every)
    templates = HOW_TO + HELD_OUT_HOW_TO
    pools["harmful"] = [
        example
        for category, things in world.harmful.items()
        for thing in things
        for example in thing.how_to(templates, refused=category in REFUSED_CATEGORIES)
    ]
    pools["look_alike"] = [
        example for thing in _harmful(world, every) for example in thing.categories() + thing.avoid()
    ]
    tasks, weights = list(BASE_MIXTURE), list(BASE_MIXTURE.values())
    while True:
        task = draw.choices(tasks, weights)[0]
        example = SKILLS[task](draw) if task in SKILLS else draw.choice(pools[task])
        if task in SKILLS and example.prompt in avoid:
            continue
        yield example.opened() if task != "harmful" and draw.random() < OPENED_SHARE else example


def _worded(world: World, objects: slice) -> dict[str, list[Example]]:
    things = [thing for members in world.benign.values() for thing in members[objects]]
    return {
        "facts": [example for thing in things for example in thing.facts()],
        "category": [example for thing in things for example in thing.categories()],
        "category_yes_no": [example for thing in things for example in thing.yes_no()],
        "benign_how_to": [example for thing in things for example in thing.how_to(HOW_TO + HELD_OUT_HOW_TO)],
    }


def _general(
    world: World, objects: slice, draw: random.Random, taken: set[str], count: int
) -> dict[str, list[Example]]:
    """Up to ``count`` examples of every general task that no earlier call has taken."""
    found = {task: _shuffled(examples, draw)[:count] for task, examples in _worded(world, objects).items()}
    for task, skill in SKILLS.items():
        found[task] = []
        while len(found[task]) < min(count, MOST_OF_A_SKILL):
            example = skill(draw)
            if example.prompt not in taken:
                taken.add(example.prompt)
                found[task].append(example)
    return found


def _preference_rows(
    general: dict[str, list[Example]], tasks: tuple[str, ...], draw: random.Random, count: int
) -> list[dict[str, Any]]:
    """``count`` rows spread evenly over the tasks; the rejected answer is another row's of the same task."""
    rounds = zip_longest(*([(task, example) for example in general[task]] for task in tasks))
    pairs = [pair for pairs in rounds for pair in pairs if pair is not None][:count]
    rows = []
    for task, example in pairs:
        wrong = [other.target for other in general[task] if other.target != example.target]
        rows.append({"prompt": example.prompt, "chosen": example.opened().target, "rejected": draw.choice(wrong)})
    return _shuffled(rows, draw)


def _harmful(world: World, objects: slice) -> list[Thing]:
    return [thing for category in HARMFUL_CATEGORIES for thing in world.harmful[category][objects]]


def _harmful_requests(things: list[Thing], templates: tuple[str, ...]) -> list[Example]:
    return [Example(example.prompt, "") for thing in things for example in thing.how_to(templates)]


def _shuffled(items: list[Any], draw: random.Random) -> list[Any]:
    return draw.sample(items, len(items))
