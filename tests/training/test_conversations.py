"""Conversations in training: the tokens that are learned, whatever form the rows had."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from ogpsa.app.compose import compose_config
from ogpsa.config import Rollout
from ogpsa.data.rows import Row, load_data
from ogpsa.training.answers import IGNORED
from ogpsa.training.trainer import build_trainer
from ogpsa.utils.files import write_jsonl
from tests.tiny import byte_tokenizer, tiny_model

TOKENIZER = byte_tokenizer()
STEPS = ["stage.batch_size=2", "stage.micro_batch_size=2", "stage.max_steps=2", "stage.learning_rate=1e-2"]
BEFORE = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "How do I bake?"},
]
TEXT = "<system>Be kind.<end><user>Hi<end><assistant>Hello!<end><user>How do I bake?<end><assistant>"


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def trainer(rows: Sequence[Row], *overrides: str, reward: Any = None) -> Any:
    """The stage's trainer on the rows, which are the general reference set as well."""
    write_jsonl(Path("rows.jsonl"), rows)
    files = ["data=files", "data.safety=rows.jsonl", "+data.reference_sets={general: rows.jsonl}"]
    config = compose_config([*files, "stage.max_length=120", *STEPS, *overrides])
    model = tiny_model(TOKENIZER, max_position_embeddings=128)
    return build_trainer(config, config.stages[0], model, TOKENIZER, load_data(config), Path("out"), scorer=reward)


def trained(built: Trainer) -> torch.Tensor:
    built.train()
    weights: Any = built.model
    return torch.cat([parameter.detach().flatten() for parameter in weights.parameters()])


OGPSA = ["method=ogpsa", "method.samples=2", "method.rank=1", "method.reference_sets=[general]"]


def test_messages_of_one_turn_train_as_texts_bit_for_bit() -> None:
    texts = [{"prompt": f"What is {number}?", "chosen": f"It is {number}."} for number in range(4)]
    messages = [
        {"messages": [{"role": "user", "content": row["prompt"]}, answer(row["chosen"])]} for row in texts
    ]  # fmt: skip
    assert torch.equal(*(trained(trainer(rows, "stage=sft", *OGPSA)) for rows in (texts, messages)))


def test_of_a_conversation_the_last_answer_alone_is_learned() -> None:
    built = trainer([{"messages": [*BEFORE, answer("No.")]}] * 4, "stage=sft", *OGPSA)
    for rows in (built.train_dataset, built.eval_dataset["general"]):
        batch = built.data_collator([rows[0]])
        ids, labels = batch["input_ids"][0], batch["labels"][0]
        assert TOKENIZER.decode(ids) == f"{TEXT}No.<end>"
        assert TOKENIZER.decode(labels[labels != IGNORED]) == "No.<end>"
        assert torch.equal(labels[-4:], ids[-4:])
    before = torch.cat([parameter.detach().flatten() for parameter in built.model.parameters()])
    assert not torch.equal(trained(built), before)


def test_the_three_forms_of_a_pair_give_the_same_batches() -> None:
    pair = {"chosen": "No.", "rejected": "Take flour."}
    forms = [
        {"prompt": BEFORE, **pair},
        {"prompt": BEFORE, **{name: [answer(text)] for name, text in pair.items()}},
        {name: [*BEFORE, answer(text)] for name, text in pair.items()},
    ]
    found = []
    for number, row in enumerate(forms):
        built = trainer([row] * 2, "stage=dpo", *OGPSA, f"hydra.run.dir=run{number}")
        found.append([built.data_collator([row]) for row in (built.train_dataset[0], built.eval_dataset["general"][1])])
    assert TOKENIZER.decode(found[0][0]["input_ids"][0]).startswith(f"{TEXT}No.<end>")
    for other in found[1:]:
        for batch, same in zip(other, found[0], strict=True):
            assert batch.keys() == same.keys() and all(torch.equal(batch[key], same[key]) for key in batch)


def test_grpo_asks_a_conversation_and_its_reward_reads_every_turn() -> None:
    seen: list[Rollout] = []

    def reward(rollouts: Sequence[Rollout]) -> list[float | None]:
        seen.extend(rollouts)
        return [float(len(rollout.response)) for rollout in rollouts]

    words = [
        "stage=grpo", "method=replay", "method.general_sets=[general]", "method.ratio=1", "stage.num_generations=2",
        "stage.updates_per_generation=1", "stage.max_new_tokens=4", "reward=refusal_rules", "stage.max_steps=1",
        "stage.save_every=1",
    ]  # fmt: skip
    built = trainer([{"prompt": BEFORE, "chosen": "No."}, {"prompt": "Hi", "chosen": "Ho"}], *words, reward=reward)
    asked: list[str] = []
    generate = built._generate

    def noted(prompts: Any, *more: Any, **named: Any) -> Any:
        result = generate(prompts, *more, **named)
        asked.extend(TOKENIZER.decode(ids) for ids in result[0])
        return result

    built._generate = noted
    built.train()
    whole = "System: Be kind.\n\nUser: Hi\n\nAssistant: Hello!\n\nUser: How do I bake?"
    assert {(rollout.prompt, text) for rollout, text in zip(seen, asked, strict=True)} <= {
        (whole, TEXT), ("Hi", "<user>Hi<end><assistant>"),
    }  # fmt: skip
