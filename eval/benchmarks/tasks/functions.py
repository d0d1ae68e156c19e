"""Functions that the benchmarks' YAML files name by ``!function``: a task's rows, and its own metrics of an answer."""

import secrets
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.benchmarks.definition import read_rows
from ogpsa.utils.signals import deaf_children

if TYPE_CHECKING:
    from datasets import Dataset

# Seconds and bytes that one program may take; the published evaluation allows 3 seconds.
CODE_SECONDS = 3
CODE_BYTES = 4 * 2**30
# Runs the program that it reads from its input, and then says the word that it read before it: a program that merely
# ends, as with sys.exit(), has not passed.
RUNNER = f"""
import os, resource, sys
word, _, program = sys.stdin.read().partition("\\n")
said = os.dup(1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
resource.setrlimit(resource.RLIMIT_CPU, ({CODE_SECONDS}, {CODE_SECONDS}))
resource.setrlimit(resource.RLIMIT_AS, ({CODE_BYTES}, {CODE_BYTES}))
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
exec(compile(program, "program", "exec"), {{"__name__": "__main__"}})
os.write(said, word.encode())
"""


def lm_eval_dataset(rows: str, data_dir: str, **metadata: Any) -> dict[str, "Dataset"]:
    """A testbed benchmark's rows for lm-eval's own command line."""
    from datasets import Dataset

    return {"test": Dataset.from_list(read_rows(Path(data_dir) / rows))}


def ifeval_results(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether a response follows all of a prompt's instructions, strictly and loosely, and how many it follows."""
    import langdetect
    from lm_eval.tasks.ifeval.utils import process_results

    # Otherwise the language of a short response is a matter of chance.
    langdetect.DetectorFactory.seed = 0
    # A column of unequal objects comes back with every key; those that are not an instruction's own are null.
    arguments = [{key: value for key, value in given.items() if value is not None} for given in document["kwargs"]]
    found = process_results({**document, "kwargs": arguments}, results)
    return {
        "prompt_level_strict_acc": float(found["prompt_level_strict_acc"]),
        "prompt_level_loose_acc": float(found["prompt_level_loose_acc"]),
        "instructions": float(len(arguments)),
        "followed_strict": float(sum(found["inst_level_strict_acc"])),
        "followed_loose": float(sum(found["inst_level_loose_acc"])),
    }


def loss_results(document: Mapping[str, Any], results: Sequence[tuple[float, bool, int]]) -> dict[str, float]:
    """A text's loss in nats per token, from its log-likelihood and its number of tokens."""
    [(log_likelihood, _, tokens)] = results
    return {"loss": -log_likelihood / tokens}


def humaneval_results(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the completed function passes the problem's tests, run in a process of its own.

    That process has limits on time, memory and files, and is no sandbox.
    """
    # The response continues where the prompt's code block ends, and closes the block.
    completion = results[0].partition("```")[0]
    word = secrets.token_hex()
    program = f"{document['prompt']}{completion}\n{document['test']}\ncheck({document['entry_point']})\n"
    with tempfile.TemporaryDirectory() as folder:
        try:
            with deaf_children():
                finished = subprocess.run(
                    [sys.executable, "-I", "-c", RUNNER],
                    input=f"{word}\n{program}",
                    text=True,
                    cwd=folder,
                    env={},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    timeout=CODE_SECONDS + 2,
                    check=False,
                )
        except subprocess.TimeoutExpired:
            return {"pass_at_1": 0.0}
    return {"pass_at_1": float(finished.stdout == word)}
