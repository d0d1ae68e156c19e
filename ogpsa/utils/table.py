"""A table and its writers: Markdown, LaTeX and comma-separated values; and plain columns for a terminal."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "±": r"$\pm$", "×": r"$\times$", "Δ": r"$\Delta$", "<": "$<$", ">": "$>$", "|": r"\textbar{}",
    "–": "--", "−": "$-$",
    "→": r"$\rightarrow$", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
}  # fmt: skip
MARKDOWN = {"<": "&lt;", **{character: f"\\{character}" for character in "\\|*`"}}


@dataclass(frozen=True)
class Table:
    """Cells as plain text, a line per row; the writers escape them.

    Attributes:
        align: ``l`` or ``r`` per column; all to the left where it is empty.
        notes: paragraphs below the table, written into Markdown as they are.
    """

    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    title: str = ""
    align: str = ""
    notes: Sequence[str] = ()

    @property
    def alignment(self) -> str:
        return self.align or "l" * len(self.header)


def table_of(lines: Sequence[Mapping[str, str]], title: str, notes: Sequence[str] = ()) -> Table:
    """A table of at least one line, each of them a cell by column, all with the same columns."""
    return Table(list(lines[0]), [list(line.values()) for line in lines], title, notes=notes)


def markdown(table: Table) -> str:
    """The title as a heading of the second level, the table and its notes, each followed by an empty line."""
    rule = "".join(f"|{'---:' if side == 'r' else '---'}" for side in table.alignment)
    lines = [f"## {escape_markdown(table.title)}", ""] if table.title else []
    lines += [_row(table.header), f"{rule}|", *(_row(map(escape_markdown, line)) for line in table.lines), ""]
    return "\n".join([*lines, *(part for note in table.notes for part in (note, ""))]) + "\n"


def aligned(table: Table) -> str:
    """The table in Markdown for a terminal: its columns line up and nothing is escaped; without title and notes."""
    cells = [table.header, *table.lines]
    sides = table.alignment
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = [
        f"{'-' * (width + 1)}:" if side == "r" else "-" * (width + 2) for width, side in zip(widths, sides, strict=True)
    ]
    text = [
        _row(
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(line, widths, sides, strict=True)
        )
        for line in cells
    ]
    return "\n".join([text[0], f"|{'|'.join(rule)}|", *text[1:]])


def in_columns(lines: Sequence[Mapping[str, str]], side: Literal["<", ">"] = "<") -> list[str]:
    """Plain lines for a terminal, the names first; ``lines``: at least one, each a cell by column, all with the same
    columns.

    Args:
        side: the cells stand to the left (``<``) or to the right of their columns.
    """
    widths = {name: max(len(name), *(len(line[name]) for line in lines)) for name in lines[0]}
    return [
        "  ".join(f"{line[name]:{side}{width}}" for name, width in widths.items()).rstrip()
        for line in ({name: name for name in widths}, *lines)
    ]


def latex(tables: Sequence[Table]) -> str:
    """One plain ``tabular`` per table, its notes below; they need no package."""
    lines: list[str] = []
    for table in tables:
        columns = len(table.header)
        lines += [rf"\begin{{tabular}}{{{table.alignment}}}", r"\hline"]
        lines += [rf"\multicolumn{{{columns}}}{{l}}{{\textit{{{escape_latex(table.title)}}}}} \\", r"\hline"]
        lines += [" & ".join(map(escape_latex, table.header)) + r" \\", r"\hline"]
        lines += [" & ".join(map(escape_latex, line)) + r" \\" for line in table.lines]
        lines += [r"\hline", r"\end{tabular}", "", *(part for note in table.notes for part in (escape_latex(note), ""))]
    return "\n".join(lines)


def comma_separated(records: Sequence[Mapping[str, object]]) -> str:
    """A line per record with all columns of any of them: numbers in full precision, empty where there is none."""
    text = io.StringIO()
    columns = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def escape_markdown(text: str) -> str:
    return "".join(MARKDOWN.get(character, character) for character in text)


def escape_latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
