"""Fetch the benchmarks' rows into a folder, on a node with a network.

python -m eval prefetch [eval=paper] [benchmarks=a,b] [data_dir=DIR] [task_dir=DIR] [prompts=true]

Writes <rows>.jsonl for each benchmark of eval=NAME (or of benchmarks=), NLTK's tokenizer where one needs it, with
prompts=true the published texts of the judges' prompts, and prefetch.json: what was fetched, from where and when.
What is there is not fetched again; what cannot be fetched is named, and the rest is fetched. Exit code 2 if anything
is missing at the end.
task_dir has benchmarks of your own, as eval.task_dir.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from eval.benchmarks.definition import Benchmark, find_benchmarks
from eval.benchmarks.prefetch import prefetch
from eval.judging.published import fetch_prompts, published_prompts
from ogpsa.utils.errors import EXIT_DONE, EXIT_USER_ERROR, UserError, closest_match, report
from ogpsa.utils.files import check_writable

KEYS = ("eval", "benchmarks", "data_dir", "task_dir", "prompts")


def main(arguments: Sequence[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return EXIT_DONE
    try:
        given = _parse(arguments)
        benchmarks, folder = _wanted(given)
        check_writable(folder, "data_dir")
        missing = prefetch(benchmarks, folder)
        if given.get("prompts") == "true":
            missing += fetch_prompts(folder / "prompts", published_prompts())
    except UserError as error:
        return report(error)
    for line in missing:
        print(f"missing: {line}", file=sys.stderr, flush=True)
    return EXIT_USER_ERROR if missing else EXIT_DONE


def _parse(arguments: Sequence[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not value:
            raise UserError(f"'{argument}': expected KEY=VALUE")
        if key not in KEYS:
            raise UserError(f"{key}: unknown key; allowed: {', '.join(KEYS)}{closest_match(key, KEYS)}")
        given[key] = value
    if given.get("prompts", "true") not in ("true", "false"):
        raise UserError(f"prompts: found '{given['prompts']}'; allowed: true, false")
    return given


def _wanted(given: dict[str, str]) -> tuple[list[Benchmark], Path]:
    """The benchmarks that have a source, and the folder."""
    from ogpsa.app.compose import compose_config

    settings = compose_config([f"eval={given.get('eval', 'paper')}"]).eval
    names = given["benchmarks"].split(",") if "benchmarks" in given else settings.benchmarks
    benchmarks = find_benchmarks(names, folder=given.get("task_dir", settings.task_dir))
    sourceless = [benchmark.name for benchmark in benchmarks if benchmark.source is None]
    if sourceless:
        raise UserError(f"benchmarks: nobody publishes the rows of {', '.join(sourceless)}")
    folder = given.get("data_dir", settings.data_dir)
    if folder is None:
        raise UserError(f"data_dir: eval={given['eval']} names no folder; give one")
    return benchmarks, Path(folder)
