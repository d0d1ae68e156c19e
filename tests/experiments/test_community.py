"""``community/``: rows that others send in."""

import shlex
from pathlib import Path

import pytest
import yaml

from experiments.__main__ import parse
from experiments.community import FOLDER, TEMPLATE, Contribution, community_tables, contributions, read_contribution
from ogpsa.utils.errors import UserError
from ogpsa.utils.table import markdown


def test_every_row_has_its_form() -> None:
    rows = contributions()
    assert TEMPLATE.removesuffix(".yaml") not in rows
    assert all(isinstance(row, Contribution) for row in rows.values())


def test_the_template_is_a_row_whose_command_can_be_typed() -> None:
    row = read_contribution(FOLDER / TEMPLATE)
    python, flag, module, run, *words = shlex.split(row.command)
    assert (python, flag, module, run) == ("python", "-m", "experiments", "run")
    request = parse(words)
    assert (request.names, request.suite) == ([row.experiment], row.suite)


def test_a_row_is_shown_below_the_table_it_is_for(tmp_path: Path) -> None:
    row = yaml.safe_load((FOLDER / TEMPLATE).read_text(encoding="utf-8"))
    row |= {"who": "Ada", "scores": {"safety": {"mean": 91.25, "half_width": 0.5}, "utility": {"mean": 50.0}}}
    (tmp_path / "ada.yaml").write_text(yaml.safe_dump(row), encoding="utf-8")
    [table] = community_tables("table1", "paper", tmp_path)
    assert (
        "| Qwen2.5-7B-Instruct | SFT→DPO | OGPSA, N = 50 | 3 | 91.2 ± 0.5 | 50.0 ± – |  | Ada | 0123abc |"
        in markdown(table)
    )
    assert community_tables("table1", "testbed", tmp_path) == community_tables("rank", "paper", tmp_path) == []


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("experiment", "tabel1", "experiment: found 'tabel1'; allowed: "),
        ("suite", "papr", "suite: found 'papr'; allowed is "),
        ("scores", {"safety": {"mean": 0.9, "half": 1}}, "scores.safety.half: unknown key; allowed: "),
        ("scores", {"safety": {"mean": 101.0}}, "scores.safety.mean: found 101.0; allowed is "),
        ("seeds", 0, "seeds: found 0; allowed is "),
        ("link", "x", "link: unknown key; allowed: "),
    ],
)
def test_a_mistake_takes_one_line(key: str, value: object, line: str, tmp_path: Path) -> None:
    row = yaml.safe_load((FOLDER / TEMPLATE).read_text(encoding="utf-8")) | {key: value}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(row), encoding="utf-8")
    with pytest.raises(UserError) as error:
        contributions(tmp_path)
    [problem] = error.value.problems
    assert problem.startswith(f"{tmp_path / 'mine.yaml'}: {line}")
