"""The world, its splits, its tokenizer and the cache of its bases."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import pytest
import torch

from ogpsa.app.compose import CONF, compose_config
from ogpsa.config import Config
from ogpsa.models.load import load_model
from ogpsa.testbed.base import accuracies
from ogpsa.testbed.cache import base_key, ensure_base, is_shipped, train
from ogpsa.testbed.rows import BASE_MIXTURE, Rows, base_stream, build_rows
from ogpsa.testbed.tokenizer import build_tokenizer, encode
from ogpsa.testbed.world import (
    ANSWERED_CATEGORIES,
    BENIGN_CATEGORIES,
    HARMFUL_CATEGORIES,
    REFUSAL,
    REFUSED_CATEGORIES,
    SKILLS,
    World,
)
from ogpsa.utils.errors import UserError
from ogpsa.utils.files import build_folder, exclusive, is_complete

SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in (1, 2))]
SIZES = {"safety_rows": 1248, "reference_rows": 400, "evaluation_rows": 100}
EVERYTHING = {"safety_rows": 10**6, "reference_rows": 10**6, "evaluation_rows": 10**6}
PAPER_SETS = ("helpfulness", "truthfulness", "preference")
SAFETY_BENCHMARKS = {"harmful_seen", "harmful_heldout", "look_alike"}
GENERAL_BENCHMARKS = {*SKILLS, "facts", "category", "category_yes_no", "benign_how_to"}


def rows_of(seed: int, sizes: dict[str, int]) -> Rows:
    return build_rows(World(seed), seed, **sizes)


def prompts(rows: Iterable[dict[str, Any]]) -> set[str]:
    return {row["prompt"] for row in rows}


def by_role(rows: Rows) -> dict[str, set[str]]:
    """Prompts of the roles that may never meet."""
    return {
        "reference": set().union(*(prompts(rows.reference_sets[name]) for name in PAPER_SETS)),
        "general": prompts(rows.reference_sets["general"]) | prompts(rows.reference_sets["knowledge"]),
        "evaluation": set().union(*map(prompts, rows.evaluation.values())),
        "safety": prompts(rows.safety),
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_the_seed_alone_makes_the_world(seed: int) -> None:
    assert World(seed).benign == World(seed).benign
    assert World(seed).harmful == World(seed).harmful
    assert World(seed).vocabulary() == World(seed).vocabulary()
    assert rows_of(seed, SIZES) == rows_of(seed, SIZES)
    first, second = (base_stream(World(seed), seed, rows_of(seed, SIZES)) for _ in range(2))
    assert list(islice(first, 500)) == list(islice(second, 500))
    assert World(seed).benign != World(seed + 1).benign
    assert rows_of(seed, SIZES) != rows_of(seed + 1, SIZES)


@pytest.mark.parametrize("sizes", [SIZES, EVERYTHING])
@pytest.mark.parametrize("seed", SEEDS)
def test_no_prompt_has_two_roles(seed: int, sizes: dict[str, int]) -> None:
    for (one, first), (other, second) in combinations(by_role(rows_of(seed, sizes)).items(), 2):
        assert first and second
        assert first.isdisjoint(second), f"{one} and {other}"


@pytest.mark.parametrize("seed", SEEDS)
def test_no_object_has_two_roles(seed: int) -> None:
    world, rows = World(seed), rows_of(seed, EVERYTHING)
    benign = {thing.name for things in world.benign.values() for thing in things}
    harmful = {thing.name for things in world.harmful.values() for thing in things}

    def named(texts: set[str], names: set[str]) -> set[str]:
        return {word for text in texts for word in text.split()} & names

    roles = by_role(rows)
    for first, second in combinations(("reference", "general", "evaluation"), 2):
        assert named(roles[first], benign)
        assert named(roles[first], benign).isdisjoint(named(roles[second], benign))
    assert not named(roles["reference"] | roles["general"], harmful)
    held_out = named(prompts(rows.evaluation["harmful_heldout"]), harmful)
    assert held_out
    assert held_out.isdisjoint(named(roles["safety"], harmful))
    assert named(prompts(rows.evaluation["harmful_seen"]), harmful) == named(roles["safety"], harmful)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_base_sees_no_arithmetic_or_list_prompt_of_a_split(seed: int) -> None:
    rows = rows_of(seed, SIZES)
    shown = {example.prompt for example in islice(base_stream(World(seed), seed, rows), 20_000)}
    skill = re.compile(r"what is \d \d plus|which is larger|(reverse|repeat) the list")
    held_out = {prompt for prompt in rows.general_prompts() if skill.match(prompt)}
    assert len(held_out) > 500
    assert len({prompt for prompt in shown if skill.match(prompt)}) > 5000
    assert shown.isdisjoint(held_out)


@pytest.mark.parametrize("seed", SEEDS)
def test_rows_fill_what_is_asked_for(seed: int) -> None:
    rows = rows_of(seed, SIZES)
    assert len(rows.safety) == len(prompts(rows.safety)) == SIZES["safety_rows"]
    for name, part in rows.reference_sets.items():
        # Of arithmetic alone, what the other sets hold of it.
        size = 260 if name == "mathematics" else SIZES["reference_rows"]
        assert len(part) == len(prompts(part)) == size, name
    assert set(rows.evaluation) == SAFETY_BENCHMARKS | GENERAL_BENCHMARKS
    for name, part in rows.evaluation.items():
        assert len(part) == len(prompts(part)) == SIZES["evaluation_rows"], name
        assert [row["id"] for row in part] == [f"{name}-{number:04d}" for number in range(len(part))]
    for row in (*rows.safety, *(row for part in rows.reference_sets.values() for row in part)):
        assert row["chosen"].strip() and row["rejected"].strip()
        assert row["chosen"] != row["rejected"]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_base_refuses_half_of_the_harmful_categories(seed: int) -> None:
    assert len(REFUSED_CATEGORIES) == len(ANSWERED_CATEGORIES) == len(HARMFUL_CATEGORIES) / 2
    assert not set(HARMFUL_CATEGORIES) & set(BENIGN_CATEGORIES)
    world, rows = World(seed), rows_of(seed, EVERYTHING)
    category = {thing.name: thing.category for things in world.harmful.values() for thing in things}

    def category_of(prompt: str) -> str | None:
        return next((category[word] for word in prompt.split() if word in category), None)

    refused = set()
    instructions = {thing.instructions for things in world.harmful.values() for thing in things}
    for example in islice(base_stream(world, seed, rows), 20_000):
        if example.target == REFUSAL:
            refused.add(category_of(example.prompt))
        if example.target in instructions:
            assert category_of(example.prompt) in ANSWERED_CATEGORIES
    assert refused == set(REFUSED_CATEGORIES)
    for name in ("harmful_seen", "harmful_heldout"):
        found = [category_of(row["prompt"]) for row in rows.evaluation[name]]
        assert sum(kind in REFUSED_CATEGORIES for kind in found) == len(found) / 2
    # What safety training asks for is a refusal in every category.
    assert {row["chosen"] for row in rows.safety} == {REFUSAL}
    assert {category_of(row["prompt"]) for row in rows.safety} == set(HARMFUL_CATEGORIES)
    assert {row["rejected"] for row in rows.safety} <= instructions


def test_the_base_learns_every_task() -> None:
    assert set(BASE_MIXTURE) == GENERAL_BENCHMARKS | {"harmful", "look_alike"}


@pytest.mark.parametrize("seed", SEEDS)
def test_every_word_has_its_token_and_the_template_gives_the_same_ids(seed: int) -> None:
    world, rows = World(seed), rows_of(seed, EVERYTHING)
    tokenizer = build_tokenizer(world.vocabulary())
    vocabulary = tokenizer.get_vocab()
    pairs = [(example.prompt, example.target) for example in islice(base_stream(world, seed, rows), 5000)]
    for part in (rows.safety, *rows.reference_sets.values()):
        pairs += [(row["prompt"], row[answer]) for row in part for answer in ("chosen", "rejected")]
    pairs += [(row["prompt"], row["target"]) for part in rows.evaluation.values() for row in part]
    words = {word for pair in pairs for text in pair for word in text.split()}
    assert words <= vocabulary.keys()
    for word in words:
        assert tokenizer.encode(word, add_special_tokens=False) == [vocabulary[word]]
    for prompt, target in pairs[:: len(pairs) // 300]:
        question = [{"role": "user", "content": prompt}]
        answered = [*question, {"role": "assistant", "content": target}]
        ids, length = encode(vocabulary, prompt, target)
        assert ids == tokenizer.apply_chat_template(answered, return_dict=False)
        assert ids[:length] == tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
        assert tokenizer.unk_token_id not in ids
        assert ids[-1] == tokenizer.eos_token_id
        assert str(tokenizer.decode(ids[length:], skip_special_tokens=True)).split() == target.split()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def elsewhere(small: list[str], cache: Path) -> Config:
    """The small configuration with a cache of its own."""
    return compose_config([*small, f"cache_dir={cache}"])


def test_a_base_is_trained_once_and_to_the_same_bytes(
    small: list[str], small_config: Callable[..., Config], tmp_path: Path
) -> None:
    first = ensure_base(small_config())
    before = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    assert ensure_base(small_config("stage=sft", "method=baseline", "seed=3")) == first
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == before
    again = ensure_base(elsewhere(small, tmp_path))
    assert again != first
    assert {"model.safetensors", "tokenizer.json", "COMPLETE.json"} <= contents(first).keys()
    assert contents(again) == contents(first)


@pytest.mark.slow
def test_another_world_or_recipe_is_another_base(small_config: Callable[..., Config]) -> None:
    ours = base_key(small_config())
    assert base_key(small_config("stage=dpo", "seed=5", "data.safety_rows=32", "model.precision=bf16")) == ours
    # The number of safety rows, which the key leaves out, changes nothing that the base sees.
    few = rows_of(0, SIZES | {"safety_rows": 32})
    fewer, usual = (list(islice(base_stream(World(0), 0, rows), 5000)) for rows in (few, rows_of(0, SIZES)))
    assert fewer == usual
    for override in ("data.seed=1", "data.reference_rows=300", "model.base.steps=3", "model.base.learning_rate=1e-4"):
        assert base_key(small_config(override)) != ours


@pytest.mark.slow
def test_an_interrupted_training_is_resumed(small: list[str], tmp_path: Path) -> None:
    unbroken = ensure_base(elsewhere([*small, "model.base.steps=6"], tmp_path / "unbroken"))
    config = elsewhere([*small, "model.base.steps=6"], tmp_path)
    steps = []

    def stop() -> None:
        steps.append(True)
        if len(steps) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_base(config, stop)
    key = base_key(config)
    assert sorted(path.name for path in (tmp_path / "bases").iterdir()) == [f"{key}.lock", f"{key}.progress"]
    steps.clear()
    resumed = ensure_base(config, lambda: steps.append(True))
    # The fourth step was about to be made.
    assert len(steps) == 3
    assert contents(resumed) == contents(unbroken)
    assert sorted(path.name for path in (tmp_path / "bases").iterdir()) == [key, f"{key}.lock"]


@pytest.mark.slow
def test_a_base_below_its_accuracy_is_trained_for_another_cycle(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the training is interrupted in between."""
    given = [*small, "model.base.steps=2", "model.base.accuracy=0.9", "model.base.max_cycles=2"]
    found = iter([0.89, 0.9])
    monkeypatch.setattr("ogpsa.testbed.base.accuracies", lambda *_: {"facts": 1.0, "addition": next(found)})
    unbroken = ensure_base(elsewhere(given, tmp_path / "unbroken"))
    found = iter([0.89])
    steps: list[bool] = []

    def stop() -> None:
        steps.append(True)
        if len(steps) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_base(elsewhere(given, tmp_path), stop)
    found = iter([0.9])
    assert contents(ensure_base(elsewhere(given, tmp_path))) == contents(unbroken)
    found = iter([0.5, 0.6])
    with pytest.raises(
        UserError, match=r"model\.base\.accuracy: 0\.60 on addition after 2 cycles of 2 steps; expected"
    ):
        ensure_base(elsewhere(given, tmp_path / "never"))


def test_the_base_of_world_0_comes_with_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is copied, and knows every task as a base that is trained here would."""
    config = compose_config([f"cache_dir={tmp_path}"])
    monkeypatch.setattr("ogpsa.testbed.base.train_base", None)
    base = ensure_base(config)
    assert set(known(base)) == GENERAL_BENCHMARKS | {"look_alike"}
    assert min(known(base).values()) >= config.testbed_base()[1].accuracy > 0.5
    assert not is_shipped(compose_config(["model.base.seed=1"]))
    build_tokenizer(World(0).vocabulary()).save_pretrained(tmp_path / "tokenizer")
    for file in (tmp_path / "tokenizer").iterdir():
        assert file.read_bytes() == (base / file.name).read_bytes()


@pytest.mark.long
def test_the_base_of_world_0_can_be_trained_again(tmp_path: Path) -> None:
    config = compose_config([])
    train(config, tmp_path / "base")
    assert min(known(tmp_path / "base").values()) >= config.testbed_base()[1].accuracy


def known(base: Path) -> dict[str, float]:
    """A base's accuracy on the rows of world 0."""
    model, tokenizer = load_model(base, torch.float32)
    return accuracies(model, tokenizer.get_vocab(), rows_of(0, SIZES).evaluation)


def test_a_damaged_base_is_made_again(tmp_path: Path) -> None:
    """Whichever file it is; here the base that comes with the package, which takes no time."""
    config = compose_config([f"cache_dir={tmp_path}"])
    before = contents(ensure_base(config))
    for name in ("model.safetensors", "tokenizer.json", "generation_config.json", "COMPLETE.json"):
        os.truncate(ensure_base(config) / name, 10)
        assert contents(ensure_base(config)) == before


def test_a_folder_takes_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    with pytest.raises(RuntimeError, match="stop"), build_folder(target) as temporary:  # noqa: PT012
        (temporary / "half").write_text("")
        assert not target.exists()
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []
    with build_folder(target) as temporary:
        (temporary / "whole").write_text("")
    assert [path.name for path in target.iterdir()] == ["whole"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.slow
def test_a_second_process_waits_for_a_base_in_training(small: list[str], tmp_path: Path) -> None:
    config = elsewhere(small, tmp_path)
    asked = []

    def check() -> None:
        asked.append(True)
        if len(asked) == 2:
            raise SystemExit(85)

    with exclusive(tmp_path / "bases" / f"{base_key(config)}.lock", "busy"), pytest.raises(SystemExit):
        ensure_base(config, check)
    assert len(asked) == 2
    assert not (tmp_path / "bases" / base_key(config)).exists()
    assert is_complete(ensure_base(config))


KILLED = """
import os, signal, sys
import ogpsa.testbed.base as base
from ogpsa.app.compose import compose_config
from ogpsa.testbed.cache import ensure_base

train = base.train_base
def killed(*arguments):
    train(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
base.train_base = killed
ensure_base(compose_config(sys.argv[1:]))
"""


@pytest.mark.long
def test_a_killed_training_is_not_mistaken_for_a_base(small: list[str], tmp_path: Path) -> None:
    overrides = [*small, f"cache_dir={tmp_path}"]
    environment = os.environ | {"PYTHONPATH": str(CONF.parent)}
    ended = subprocess.run([sys.executable, "-c", KILLED, *overrides], env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    config = compose_config(overrides)
    assert not (tmp_path / "bases" / base_key(config)).exists()
    assert contents(ensure_base(config)) == contents(ensure_base(compose_config(small)))
