"""The benchmarks there are, and where their rows come from.

python -m eval benchmarks [data_dir=DIR] [task_dir=DIR]

Prints each benchmark with its number of rows as published, licence, whether it is gated, its judge and its source, and
the file that data_dir (outputs/benchmarks) holds of it. task_dir has benchmarks of your own, as eval.task_dir.
"""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from eval.benchmarks.definition import OWN_METRIC, TASKS, Benchmark, find_benchmarks
from eval.benchmarks.own_files import named_files
from eval.benchmarks.sources import BUILT_HERE, MADE_HERE, rows_file
from ogpsa.utils.command_line import Keys, path, read_pairs
from ogpsa.utils.errors import EXIT_DONE
from ogpsa.utils.table import Table, aligned

KEYS: Keys = {"data_dir": path, "task_dir": path}
COLUMNS = ("benchmark", "rows", "licence", "gated", "judge", "source", "file")


def main(arguments: Sequence[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return EXIT_DONE
    given = read_pairs(arguments, KEYS)
    own = str(given["task_dir"]) if "task_dir" in given else None
    found = find_benchmarks(named_files("[!_]*.yaml", TASKS, own, "task_dir"), folder=own)
    print(listing(found, given.get("data_dir", Path("outputs/benchmarks"))), end="")
    return EXIT_DONE


def listing(benchmarks: Sequence[Benchmark], folder: Path) -> str:
    """A table of one line per benchmark; ``folder`` may hold their rows."""
    return aligned(Table(COLUMNS, [_line(benchmark, folder) for benchmark in benchmarks], align="lrlllll"))


def _line(benchmark: Benchmark, folder: Path) -> list[str]:
    source = benchmark.source
    judge = f"lm-eval's {benchmark.metric}" if benchmark.judge == OWN_METRIC else benchmark.judge
    if source is None:
        return [benchmark.name, "–", "–", "", judge, "the testbed's world, or your own file", ""]
    hub = {BUILT_HERE: "python -m ogpsa.data build", MADE_HERE: "python -m eval attacks"}.get(source.hub, source.hub)
    address = urlsplit(hub)
    # Of an address the host and the repository.
    place = "/".join([address.netloc, *address.path.split("/")[1:3]]) if address.netloc else hub
    split = f"({source.split})" if hub != source.hub else source.split
    parts = (place, *(() if address.netloc else (source.config, split)))
    where = " ".join(part for part in parts if part)
    count = "–" if source.count is None else str(source.count)
    file = rows_file(benchmark, folder)
    gated = "gated" if source.gated else ""
    return [benchmark.name, count, source.licence, gated, judge, where, file.name if file else ""]
