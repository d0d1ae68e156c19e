"""Our evaluation against plain lm-eval on the same tasks, in turn: generation, and the options of a multiple choice.

Both have the same loaded model, rows and batch size, and must agree. Ours covers everything from the rows to the
verdicts on disk, plain lm-eval everything from the rows to the scores in memory.
"""

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate as plain_evaluate
from lm_eval.models.huggingface import HFLM

from benchmarks.architectures import architecture
from benchmarks.common import Row, in_turn, listed, parser, positive, run, seconds, write
from eval.benchmarks.definition import OWN_METRIC, Benchmark, find_benchmarks
from eval.benchmarks.sources import load_rows, sample_rows
from eval.evaluation import own_verdicts
from eval.generation.generate import LocalModel, generate, prepare, replies_by
from eval.generation.isolation import isolated_and_silent
from eval.generation.likelihoods import SharingLM
from eval.generation.questions import Answer, task_config
from ogpsa.models.generate import load_for_generation
from ogpsa.testbed.tokenizer import build_tokenizer
from ogpsa.testbed.world import World
from ogpsa.utils.files import write_jsonl

NOTES = (
    "ours over plain: ratio of the medians of rounds taken in turn; below 1, ours is faster. in processor time: the "
    "same of this process's time on the processors, which other work on the machine touches less.",
    "differing: rows whose response, or likeliest option, is not plain lm-eval's. nats apart: largest difference of "
    "an option's log-likelihood.",
)
RANDOM_NOTE = (
    "Random weights, prompts of the testbed's words. generation: as many tokens as the task allows, since random "
    "weights seldom end a response."
)
# More tokens than any batch here comes to.
TOKENS = 10**6


def main() -> None:
    command = parser(__doc__.splitlines()[0])
    command.add_argument("--model", default="llama_50m:2", help="architecture, name or name:layers")
    command.add_argument("--checkpoint", type=Path, help="a folder with a model, in place of random weights")
    command.add_argument("--data-dir", type=Path, default=Path("outputs/benchmarks"), help="its benchmarks' rows")
    command.add_argument("--benchmarks", type=listed, default="xstest_unsafe,piqa", help="what it is asked")
    command.add_argument("--max-new-tokens", type=positive, default=24, help="cap on its responses")
    command.add_argument("--rows", type=positive, default=500, help="rows of each task")
    command.add_argument("--batch-size", type=positive, default=32, help="rows of a forward pass")
    options = command.parse_args()
    device = torch.device(options.device)
    rounds = options.rounds or 5
    if options.smoke:
        options.model, options.rows, rounds = "smoke", 8, 1
    torch.manual_seed(0)
    if options.checkpoint:
        network, tokenizer = load_for_generation(options.checkpoint, {})
        asked = real_tasks(options.benchmarks, options.data_dir, options.rows, options.max_new_tokens)
    else:
        tokenizer = build_tokenizer(World(0).vocabulary())
        network = replace(architecture(options.model), vocabulary=len(tokenizer)).build(device).eval()
        rows = random_rows(options.rows)
        asked = {title: (benchmark, rows) for title, benchmark in tasks().items()}
    with isolated_and_silent():
        lm = HFLM(pretrained=network, tokenizer=tokenizer, batch_size=options.batch_size, add_bos_token=False)
        sharing = SharingLM(network, tokenizer, options.batch_size)
    model = LocalModel(sharing, options.batch_size, TOKENS, replies_by(sharing))
    table = []
    for title, (benchmark, rows) in asked.items():
        said: dict[str, list[Answer]] = {}
        with tempfile.TemporaryDirectory() as folder:
            works: dict[str, Callable[[], list[Answer]]] = {
                "plain": partial(plain, lm, benchmark, rows),
                "ours": partial(ours, model, benchmark, rows, Path(folder)),
            }
            times = in_turn({name: partial(_timed, work, said, name, device) for name, work in works.items()}, rounds)
        found = {name: median(wall for wall, _ in taken) for name, taken in times.items()}
        processor = {name: median(busy for _, busy in taken) for name, taken in times.items()}
        table.append(
            {"task": title, "rows": len(rows)}
            | {f"{name}_s": value for name, value in found.items()}
            | {"ours_over_plain": found["ours"] / found["plain"]}
            | {"in_processor_time": processor["ours"] / processor["plain"]}
            | _apart(said["plain"], said["ours"])
        )
    settings = {name: value for name, value in vars(options).items() if name != "out"} | {"rounds": rounds}
    settings["checkpoint"], settings["data_dir"] = (
        value and value.name for value in (options.checkpoint, options.data_dir)
    )
    name, notes = ("evaluation_real", NOTES) if options.checkpoint else ("evaluation", (*NOTES, RANDOM_NOTE))
    settings["model"] = settings["checkpoint"] or options.model
    write(name, options.out, device, settings, {f"Evaluation: {settings['model']}": table}, notes)


def _timed(
    work: Callable[[], list[Answer]], said: dict[str, list[Answer]], name: str, device: torch.device
) -> tuple[float, float]:
    """Seconds on the clock, and of this process on the processors."""

    def noted() -> None:
        said[name] = work()

    start = process_time()
    return seconds(noted, device), process_time() - start


def _apart(plainly: Sequence[Answer], ourselves: Sequence[Answer]) -> Row:
    """Distance between two sets of answers to the same rows."""
    pairs = list(zip(plainly, ourselves, strict=True))
    if "response" in plainly[0]:
        return {"differing": sum(one["response"] != other["response"] for one, other in pairs), "nats_apart": None}
    likelihoods = [(one["options"], other["options"]) for one, other in pairs]
    return {
        "differing": sum(one.index(max(one)) != other.index(max(other)) for one, other in likelihoods),
        "nats_apart": max(abs(a - b) for one, other in likelihoods for a, b in zip(one, other, strict=True)),
    }


def real_tasks(names: Sequence[str], folder: Path, count: int, cap: int) -> dict[str, tuple[Benchmark, list[Row]]]:
    """Published benchmarks with their rows; a response is held against the target, as no judge is timed here."""
    asked = {}
    for benchmark in find_benchmarks(names, max_new_tokens=cap):
        rows = [dict(row) for row in sample_rows(load_rows(benchmark, folder), count, 0)]
        if benchmark.generates:
            metric = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
            task = {**benchmark.task, "metric_list": [metric]}
            benchmark = replace(benchmark, judge=OWN_METRIC, metric="exact_match,none", task=task)
        asked[benchmark.name] = (benchmark, rows)
    return asked


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


def plain(lm: HFLM, benchmark: Benchmark, rows: Sequence[Mapping[str, Any]]) -> list[Answer]:
    """lm-eval's own evaluation of a task."""
    chat = not benchmark.plain_text
    with isolated_and_silent():
        task = ConfigurableTask(config=task_config(benchmark, rows))
        results = plain_evaluate(
            lm, {benchmark.name: task}, apply_chat_template=chat, fewshot_as_multiturn=chat, bootstrap_iters=0,
            log_samples=True,
        )  # fmt: skip
    samples = {sample["doc_id"]: sample["resps"] for sample in results["samples"][benchmark.name]}
    answers = [samples[number] for number in range(len(rows))]
    if benchmark.generates:
        return [{"response": answer[0][0]} for answer in answers]
    return [{"options": [value for ((value, _),) in answer]} for answer in answers]


def ours(backend: LocalModel, benchmark: Benchmark, rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Answer]:
    """Ours: answers in a journal, then generations and verdicts on disk."""
    journal = folder / "journal"
    answers = generate(backend, prepare(backend, benchmark, rows), benchmark.name, journal, {}, lambda: None)
    answered: list[Row] = [{**row, **answer} for row, answer in zip(rows, answers, strict=True)]
    write_jsonl(folder / "generations.jsonl", answered)
    journal.unlink()
    write_jsonl(folder / "verdicts.jsonl", own_verdicts(benchmark, answered))
    return answers


if __name__ == "__main__":
    sys.exit(run(main))
