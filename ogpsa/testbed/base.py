"""The testbed's base model: a small Llama trained from scratch on the world's general tasks until it knows them."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from ogpsa.config import BaseTraining
from ogpsa.testbed.rows import Rows, base_stream
from ogpsa.testbed.tokenizer import PAD, build_tokenizer, encode
from ogpsa.testbed.world import Example, World
from ogpsa.utils.errors import UserError
from ogpsa.utils.files import write_atomically
from ogpsa.utils.progress import track

log = logging.getLogger(__name__)
WARMUP_SHARE = 0.05
# Times that a cycle saves its progress.
SAVES = 10
FORWARD_PASSES = 3


def train_base(
    world: World, rows: Rows, settings: BaseTraining, target: Path, progress: Path, safe_point: Callable[[], None]
) -> dict[str, float]:
    """Train the base and write weights and tokenizer to ``target``; ``safe_point`` may stop the training by raising.

    The same arguments give the same bytes on the same kind of processor, also where a training that was stopped is
    resumed from the file ``progress``.

    The bar is read on the benchmarks' own rows: it decides which bases are admitted, for every method alike.

    Returns:
        ``accuracies`` on the rows of every task that has right answers.

    Raises:
        UserError: a task is below ``settings.accuracy`` after the last cycle.
    """
    set_seed(settings.seed)
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
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer}
    cycles, steps = settings.max_cycles, settings.steps
    examples = base_stream(world, settings.seed, rows)
    vocabulary = tokenizer.get_vocab()
    done = _restore(parts, progress)
    for cycle in range(cycles):
        for step in track(steps, f"training the testbed's base, cycle {cycle + 1} of at most {cycles}"):
            # Their draws advance the stream.
            drawn = list(islice(examples, settings.batch_size))
            if cycle * steps + step < done:
                continue
            if cycle * steps + step > done and step % max(1, steps // SAVES) == 0:
                _save(parts, cycle * steps + step, progress)
            safe_point()
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * _share_of_peak(step, steps)
            _take_step(model, optimizer, vocabulary, drawn)
        if done >= (cycle + 1) * steps:  # it was below, before the training was stopped
            continue
        found = accuracies(model, vocabulary, rows.evaluation)
        lowest = min(found, key=lambda task: found[task])
        if found[lowest] >= settings.accuracy:
            break
        log.info("the base's accuracy is %.2f on %s after cycle %d", found[lowest], lowest, cycle + 1)
    else:
        raise UserError(
            f"model.base.accuracy: {found[lowest]:.2f} on {lowest} after {cycles} cycles of {steps} steps; expected at "
            f"least {settings.accuracy:g}; raise model.base.steps or max_cycles, or lower the accuracy"
        )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return found


def accuracies(
    model: LlamaForCausalLM, vocabulary: Mapping[str, int], rows: Mapping[str, Sequence[Mapping[str, str]]]
) -> dict[str, float]:
    """Share of each task's rows whose right answer is the greedy one, in [0, 1]; tasks without targets are left out."""
    found = {}
    for task, members in rows.items():
        if not all(row["target"] for row in members):
            continue
        examples = [Example(row["prompt"], row["target"]) for row in members]
        right = 0
        for tokens, labels in _batches(vocabulary, examples):
            with torch.no_grad():
                greedy = model(input_ids=tokens, attention_mask=(tokens != vocabulary[PAD]).long()).logits.argmax(-1)
            wrong = (greedy[:, :-1] != labels[:, 1:]) & (labels[:, 1:] != -100)
            right += int((~wrong.any(dim=1)).sum())
        found[task] = right / len(examples)
    return found


def _share_of_peak(step: int, steps: int) -> float:
    """The learning rate of a cycle: a linear warm-up, then a cosine to zero."""
    warmup = int(WARMUP_SHARE * steps)
    if step < warmup:
        return step / warmup
    return (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def _take_step(
    model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, vocabulary: Mapping[str, int], drawn: list[Example]
) -> None:
    batches = list(_batches(vocabulary, drawn))
    answers = sum(int((labels != -100).sum()) for _, labels in batches)
    for tokens, labels in batches:
        logits = model(input_ids=tokens, attention_mask=(tokens != vocabulary[PAD]).long()).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
        (loss / answers).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


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


def _batches(vocabulary: Mapping[str, int], examples: list[Example]) -> Iterator[tuple[Tensor, Tensor]]:
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
