"""One self-contained page from finished runs or evaluations: ``python -m eval report DIR``.

The page opens without a network and holds nothing from elsewhere: its security policy lets no script run but its own,
and loads nothing. All text from models and data is escaped; what may be harmful is folded away. Finished runs are
grouped as ``python -m eval pareto`` groups them; evaluations outside finished runs follow, those on the same items with
the same judges together.
"""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.report.scatter import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, interval_text, plot, signed
from eval.report.sections import TITLES, Chart, Example, Section, category_rows, charts, examples_of, find_sections
from eval.scores.aggregate import AVERAGES
from eval.scores.statistics import RESAMPLES
from ogpsa.utils.command_line import Parser, whole_number
from ogpsa.utils.errors import EXIT_DONE
from ogpsa.utils.files import check_writable, write_atomically

PAGE = Path(__file__).with_name("page_files")
EXAMPLES = 3


def build(directory: Path, resamples: int = RESAMPLES, examples: int = EXAMPLES) -> str:
    """The page about everything below ``directory``; it depends on the content alone.

    Raises:
        UserError: there is no finished run and no evaluation, or what is there is damaged.
    """
    sections, notes = find_sections(directory, resamples)
    return _page(directory, sections, notes, resamples, examples)


def render_page(template: str, script: str, **values: Any) -> str:
    """A template of ``page_files`` with the style, and a script that its security policy names by hash."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"interval": interval_text, "signed": signed}
    code = (PAGE / script).read_text(encoding="utf-8")
    return environment.get_template(template).render(
        style=(PAGE / "style.css").read_text(encoding="utf-8"),
        script=code,
        script_hash=base64.b64encode(hashlib.sha256(code.encode()).digest()).decode(),
        **values,
    )


def _page(directory: Path, sections: Sequence[Section], notes: Sequence[str], resamples: int, examples: int) -> str:
    return render_page(
        "page.html.jinja",
        "script.js",
        name=directory.resolve().name,
        sections=[
            {
                "section": section,
                "plot": plot(section),
                "charts": _by_group(found),
                "categories": category_rows(section, [chart.name for chart in found if not chart.parts]),
                "examples": _examples(section, found, examples),
            }
            for section in sections
            for found in [charts(section)]
        ],
        notes=notes,
        resamples=resamples,
        titles=TITLES,
        averages=AVERAGES,
        frame={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT, "top": TOP}
        | {"bottom": HEIGHT - BOTTOM},
    )


def _by_group(found: Sequence[Chart]) -> dict[str, list[Chart]]:
    return {title: members for title in TITLES.values() if (members := [one for one in found if one.group == title])}


def _examples(section: Section, found: Sequence[Chart], number: int) -> list[tuple[Chart, list[Example]]]:
    pairs = [(chart, examples_of(section, chart.name, number)) for chart in found if not chart.parts]
    return [(chart, examples) for chart, examples in pairs if examples]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, print its path, and return the exit code."""
    parser = Parser(
        prog="python -m eval report",
        description="One self-contained page from the finished runs and the evaluations in a directory.",
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="searched for run directories and evaluations")
    parser.add_argument("--out", metavar="FILE", type=Path, help="default: DIR/report.html")
    parser.add_argument(
        "--examples", metavar="N", type=whole_number(0), default=EXAMPLES, help="a benchmark; default: %(default)s"
    )
    options = parser.parse_args(arguments)
    out = options.out or options.directory / "report.html"
    page = build(options.directory, examples=options.examples)
    check_writable(out.parent, "--out")
    write_atomically(out, page)
    print(out)
    return EXIT_DONE
