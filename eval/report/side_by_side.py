"""Two checkpoints' answers side by side, with filters, on one self-contained page: ``python -m eval side-by-side A B``.

A and B are folders of evaluations, or directories of finished runs, whose last evaluation is taken. The page holds all
items that both were asked. It opens without a network, its security policy lets no script run but its own, and all text
of models and data is inserted as text; what may be harmful is folded away.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.report.page import render_page
from eval.report.sections import TITLES
from eval.scores.alike import add_sides, check_items, differing, shared_benchmarks
from eval.scores.artefacts import Artefacts, open_evaluation
from eval.scores.flips import Pair, find_pairs
from ogpsa.utils.command_line import Parser
from ogpsa.utils.errors import EXIT_DONE, Problems, UserError
from ogpsa.utils.files import check_writable, write_atomically

DEFAULT_FILE = Path("side_by_side.html")


def build(a: Artefacts, b: Artefacts) -> str:
    """The page.

    Raises:
        UserError: the two share no benchmark with verdicts, were not asked or judged the same, or a file is damaged.
    """
    names = [name for name in shared_benchmarks(a, b) if a.verdicts(name) and b.verdicts(name)]
    problems = Problems()
    for name in names:
        with problems.kept():
            check_items(a, b, name)
            if told := differing(a.instrument(name), b.instrument(name)):
                raise UserError(f"{name}: not asked and judged alike: {'; '.join(told)}")
    problems.tell()
    pairs = find_pairs(a, b, names)
    if not pairs:
        raise UserError(f"{a.folder} and {b.folder}: no item was judged in both")
    # A "<" could close the element that holds the data.
    data = json.dumps([_item(a, pair) for pair in pairs], ensure_ascii=False).replace("<", "\\u003c")
    return render_page("side_by_side.html.jinja", "side_by_side.js", a=a.folder, b=b.folder, data=data)


def _item(a: Artefacts, pair: Pair) -> dict[str, Any]:
    # Only questions with right answers are sure to be harmless.
    return {
        **asdict(pair),
        "group": TITLES[a.group(pair.benchmark)],
        "folded": a.benchmarks[pair.benchmark]["metric"] not in ("accuracy", "loss"),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, print its path, and return the exit code."""
    parser = Parser(
        prog="python -m eval side-by-side",
        description="One page with the answers of two checkpoints to the same items, and filters.",
    )
    add_sides(parser)
    parser.add_argument("--out", metavar="FILE", type=Path, default=DEFAULT_FILE, help="default: %(default)s")
    options = parser.parse_args(arguments)
    page = build(open_evaluation(options.a), open_evaluation(options.b))
    check_writable(options.out.parent, "--out")
    write_atomically(options.out, page)
    print(options.out)
    return EXIT_DONE
