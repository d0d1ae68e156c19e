"""The testbed's base model: a small Llama trained from scratch on the world's general tasks."""

from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, get_cosine_schedule_with_warmup, set_seed

from ogpsa.config import BaseTraining
from ogpsa.testbed.rows import Rows, base_stream
from ogpsa.testbed.tokenizer import PAD, build_tokenizer, encode
from ogpsa.testbed.world import Example, World
from ogpsa.utils.files import write_atomically
from ogpsa.utils.progress import track

WARMUP_SHARE = 0.05
# Times that a training saves its progress.
SAVES = 10
FORWARD_PASSES = 3


def train_base(
    world: World,
    seed: int,
    rows: Rows,
    settings: BaseTraining,
    target: Path,
    progress: Path,
    safe_point: Callable[[], None],
) -> None:
    """Train the base and write weights and tokenizer to ``target``; ``safe_point`` may stop the training by raising.

    The same arguments give the same bytes with the same number of threads, also where a training that was stopped is
    resumed from the file ``progress``.
    """
    set_seed(seed)
    tokenizer = build_tokenizer(world.vocabulary())
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.hidden_size,
            intermediate_size=settings.hidden_size * 5 // 2,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.heads,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, int(WARMUP_SHARE * settings.steps), settings.steps)
    examples = base_stream(world, seed, rows)
    vocabulary = tokenizer.get_vocab()
    model.train()
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    done = _restore(parts, progress)
    for step in track(settings.steps, "training the testbed's base"):
        # Their draws advance the stream.
        drawn = list(islice(examples, settings.batch_size))
        if step < done:
            continue
        if step > done and step % max(1, settings.steps // SAVES) == 0:
            _save(parts, step, progress)
        safe_point()
        batches = list(_batches(vocabulary, drawn))
        answers = sum(int((labels != -100).sum()) for _, labels in batches)
        for tokens, labels in batches:
            logits = model(input_ids=tokens, attention_mask=(tokens != vocabulary[PAD]).long()).logits
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
            )
            (loss / answers).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _save(parts: dict[str, Any], step: int, file: Path) -> None:
    content = BytesIO()
    torch.save({"step": step} | {name: part.state_dict() for name, part in parts.items()}, content)
    write_atomically(file, content.getvalue())


def _restore(parts: dict[str, Any], file: Path) -> int:
    """Give each part its state back; returns the steps that were done."""
    if not file.is_file():
        return 0
    state = torch.load(file, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])


def _batches(vocabulary: dict[str, int], examples: list[Example]) -> Iterator[tuple[Tensor, Tensor]]:
    """Token ids and labels [rows, length], padded on the right, only answers carrying loss.

    Short and long rows go into separate forward passes, which saves a third of the padding.
    """
    rows = sorted(
        (encode(vocabulary, example.prompt, example.target) for example in examples), key=lambda row: len(row[0])
    )
    size = -(-len(rows) // FORWARD_PASSES)
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        tokens = torch.full((len(part), len(part[-1][0])), vocabulary[PAD])
        labels = torch.full_like(tokens, -100)
        for index, (ids, prompt) in enumerate(part):
            tokens[index, : len(ids)] = torch.tensor(ids)
            labels[index, prompt : len(ids)] = torch.tensor(ids[prompt:])
        yield tokens, labels
