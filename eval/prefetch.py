"""Fetch the benchmarks' rows into a folder, on a node with a network.

python -m eval prefetch [eval=paper] [benchmarks=a,b] [data_dir=DIR] [task_dir=DIR] [prompts=true]

Writes <rows>.jsonl for each benchmark of eval=NAME (or of benchmarks=), NLTK's tokenizer where one needs it, with
prompts=true the published texts of the judges' prompts, and prefetch.json: what was fetched, from where and when.
Existing files are not fetched again; what cannot be fetched is named, and the rest is fetched. Exit code 2 if anything
is missing at the end.
task_dir has benchmarks of your own, as eval.task_dir.
"""

import sys
from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.benchmarks.definition import Benchmark, find_benchmarks
from eval.benchmarks.prefetch import prefetch
from eval.judging.published import fetch_prompts, published_prompts
from ogpsa.utils.command_line import Keys, path, read_pairs, yes_or_no
from ogpsa.utils.errors import EXIT_DONE, EXIT_USER_ERROR, UserError
from ogpsa.utils.files import check_writable, exclusive


def main(arguments: Sequence[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return EXIT_DONE
    given = read_pairs(arguments, KEYS)
    benchmarks, folder = _wanted(given)
    check_writable(folder, "data_dir")
    with exclusive(folder / ".prefetch.lock", f"another process fetches into {folder}"):
        missing = prefetch(benchmarks, folder)
        if given.get("prompts"):
            missing += fetch_prompts(folder / "prompts", published_prompts())
    for line in missing:
        print(f"missing: {line}", file=sys.stderr, flush=True)
    return EXIT_USER_ERROR if missing else EXIT_DONE


def _filled(text: str) -> str:
    if not text:
        raise ArgumentTypeError("found no value; expected KEY=VALUE")
    return text


KEYS: Keys = {"eval": _filled, "benchmarks": _filled, "data_dir": path, "task_dir": path, "prompts": yes_or_no}


def _wanted(given: dict[str, Any]) -> tuple[list[Benchmark], Path]:
    """The benchmarks that have a source, and the folder."""
    from ogpsa.app.compose import compose_config

    settings = compose_config([f"eval={given.get('eval', 'paper')}"]).eval
    names = given["benchmarks"].split(",") if "benchmarks" in given else settings.benchmarks
    own = str(given["task_dir"]) if "task_dir" in given else settings.task_dir
    benchmarks = find_benchmarks(names, folder=own)
    sourceless = [benchmark.name for benchmark in benchmarks if benchmark.source is None]
    if sourceless:
        raise UserError(f"benchmarks: nobody publishes the rows of {', '.join(sourceless)}")
    folder = given.get("data_dir", settings.data_dir)
    if folder is None:
        raise UserError(f"data_dir: eval={given['eval']} names no folder; give one")
    return benchmarks, Path(folder)
