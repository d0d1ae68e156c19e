"""Evaluation beside plain lm-eval on the same tasks, in turn: generation, and the options of a multiple choice.

Both have the same loaded model and the same rows. Ours is everything from the rows to the verdicts on disk, plain
lm-eval everything from the rows to the scores in memory.
"""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate as plain_evaluate
from lm_eval.models.huggingface import HFLM

from benchmarks.architectures import architecture
from benchmarks.common import Row, in_turn, parser, positive, run, seconds, write
from eval.benchmarks.definition import OWN_METRIC, Benchmark, find_benchmarks
from eval.evaluation import own_verdicts
from eval.generation.generate import LocalModel, generate, prepare, replies_by
from eval.generation.isolation import isolated_and_silent
from eval.generation.questions import task_config
from ogpsa.testbed.tokenizer import build_tokenizer
from ogpsa.testbed.world import World
from ogpsa.utils.files import write_jsonl

NOTES = (
    "ours over plain: ratio of the medians of rounds taken in turn; below 1, ours is faster.",
    "Random weights, prompts of the testbed's words. generation: as many tokens as the task allows, since random "
    "weights seldom end a response.",
)


def main() -> None:
    command = parser(__doc__.splitlines()[0])
    command.add_argument("--model", default="llama_50m:2", help="architecture, name or name:layers")
    command.add_argument("--rows", type=positive, default=500, help="rows of each task")
    command.add_argument("--batch-size", type=positive, default=32, help="rows of a forward pass")
    options = command.parse_args()
    device = torch.device(options.device)
    rounds = options.rounds or 5
    if options.smoke:
        options.model, options.rows, rounds = "smoke", 8, 1
    torch.manual_seed(0)
    tokenizer = build_tokenizer(World(0).vocabulary())
    shape = replace(architecture(options.model), vocabulary=len(tokenizer))
    with isolated_and_silent():
        lm = HFLM(pretrained=shape.build(device).eval(), tokenizer=tokenizer, batch_size=options.batch_size)
    model = LocalModel(lm, options.batch_size, replies_by(lm))
    rows = random_rows(options.rows)
    table = []
    for title, benchmark in tasks().items():
        with tempfile.TemporaryDirectory() as folder:
            works = {
                "plain": partial(seconds, partial(plain, lm, benchmark, rows), device),
                "ours": partial(seconds, partial(ours, model, benchmark, rows, Path(folder)), device),
            }
            times = in_turn(works, rounds)
        found = {name: median(taken) for name, taken in times.items()}
        table.append(
            {"task": title, "rows": len(rows)}
            | {f"{name}_s": value for name, value in found.items()}
            | {"ours_over_plain": found["ours"] / found["plain"]}
        )
    settings = {name: value for name, value in vars(options).items() if name != "out"} | {"rounds": rounds}
    write("evaluation", options.out, device, settings, {f"Evaluation: {options.model}": table}, NOTES)


def tasks() -> dict[str, Benchmark]:
    """One task of each kind, scored by its own metric."""
    [facts] = find_benchmarks(["facts"])
    generation = replace(facts, judge=OWN_METRIC, metric="exact_match,answer")
    choice = {
        "task": "choice",
        "output_type": "multiple_choice",
        "num_fewshot": 0,
        "doc_to_text": "prompt",
        "doc_to_choice": ["yes", "no", "the hills", "the town"],
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    return {
        "generation": generation,
        "multiple choice": replace(generation, name="choice", metric="acc,none", task=choice),
    }


def random_rows(count: int) -> list[dict[str, Any]]:
    words = sorted(World(0).vocabulary())
    rows = []
    for number in range(count):
        length = int(torch.randint(4, 24, ()))
        prompt = " ".join(words[index] for index in torch.randint(len(words), (length,)).tolist())
        rows.append({"id": str(number), "prompt": prompt, "target": words[0], "answer": number % 4})
    return rows


def plain(lm: HFLM, benchmark: Benchmark, rows: Sequence[Mapping[str, Any]]) -> None:
    """lm-eval's own evaluation of a task."""
    with isolated_and_silent():
        task = ConfigurableTask(config=task_config(benchmark, rows))
        plain_evaluate(
            lm, {benchmark.name: task}, apply_chat_template=True, fewshot_as_multiturn=True, bootstrap_iters=0,
            log_samples=True,
        )  # fmt: skip


def ours(backend: LocalModel, benchmark: Benchmark, rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Ours: answers in a journal, then generations and verdicts on disk."""
    journal = folder / "journal"
    answers = generate(backend, prepare(backend, benchmark, rows), benchmark.name, journal, {}, lambda: None)
    answered: list[Row] = [{**row, **answer} for row, answer in zip(rows, answers, strict=True)]
    write_jsonl(folder / "generations.jsonl", answered)
    journal.unlink()
    write_jsonl(folder / "verdicts.jsonl", own_verdicts(benchmark, answered))


if __name__ == "__main__":
    sys.exit(run(main))
