"""One table, three writers: what a cell holds comes out of each of them."""

import csv
import re

from ogpsa.utils.table import Table, aligned, comma_separated, latex, markdown, table_of

SPECIAL = r"a_b & 5% < 6 | 50 ± 1 – {x} *y* `z` \ ~ ^ # $ 1 − 2 > 3"
TABLE = Table(["name", "score ↑"], [[SPECIAL, "1.0"], ["plain", "12.5"]], "A_title", align="lr", notes=["A *note*."])


def test_markdown_shows_every_cell_as_it_is() -> None:
    title, _, header, rule, special, plain, _, note, *_ = markdown(TABLE).splitlines()
    assert (title, header, rule, note) == ("## A_title", "| name | score ↑ |", "|---|---:|", "A *note*.")
    assert plain == "| plain | 12.5 |"
    # A bar would end the cell; what a backslash or an entity escapes is shown as it was written.
    first, second = re.split(r"(?<!\\)\|", special)[1:-1]
    assert re.sub(r"\\(.)", r"\1", first.replace("&lt;", "<")).strip() == SPECIAL
    assert second.strip() == "1.0"


def test_a_table_for_a_terminal_lines_up_and_escapes_nothing() -> None:
    lines = aligned(TABLE).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1] == f"|{'-' * (len(SPECIAL) + 2)}|{'-' * 8}:|"
    assert lines[2:] == [f"| {SPECIAL} |     1.0 |", f"| {'plain':<{len(SPECIAL)}} |    12.5 |"]


def test_latex_needs_no_package() -> None:
    text = latex([TABLE, TABLE])
    assert text.isascii()
    assert text.count(r"\begin{tabular}{lr}") == text.count(r"\end{tabular}") == 2
    assert r"\multicolumn{2}{l}{\textit{A\_title}} \\" in text
    assert r"a\_b \& 5\% $<$ 6 \textbar{} 50 $\pm$ 1 -- \{x\}" in text
    assert r"\textbackslash{} \textasciitilde{} \textasciicircum{} \# \$ 1 $-$ 2 $>$ 3 & 1.0 \\" in text


def test_comma_separated_values_keep_every_digit() -> None:
    records: list[dict[str, object]] = [{"a": 0.1 + 0.2, "b": None}, {"b": "x,y", "c": 1}]
    rows = list(csv.DictReader(comma_separated(records).splitlines()))
    assert [list(row.values()) for row in rows] == [["0.30000000000000004", "", ""], ["", "x,y", "1"]]
    assert list(rows[0]) == ["a", "b", "c"]


def test_a_table_of_lines_by_column() -> None:
    table = table_of([{"a": "1", "b": "2"}, {"a": "3", "b": "4"}], "t", ["n"])
    assert table == Table(["a", "b"], [["1", "2"], ["3", "4"]], "t", notes=["n"])
    assert table.alignment == "ll"
