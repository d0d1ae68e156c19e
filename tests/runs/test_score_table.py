from typing import Any

from ogpsa.runs.score_table import score_table, table


def scores(value: float, stderr: float | None = 0.026, **changes: Any) -> dict[str, Any]:
    entry = {"value": value, "stderr": stderr, "n": 100, "missing": 0, "metric": "accuracy", "group": "utility"}
    return {"safety": 0.5, "utility": value, "over_refusal": None, "benchmarks": {"facts": entry}} | changes


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_base_and_stages_stand_side_by_side() -> None:
    lines = table(scores(1.0, 0.0), {"sft": scores(0.4), "dpo": scores(0.75)}).splitlines()
    assert cells(lines[0]) == ["", "base", "after SFT", "after DPO", "n"]
    assert [cells(line) for line in lines[2:]] == [
        ["safety ↑", "0.50", "0.50", "0.50", ""],
        ["utility ↑", "1.00", "0.40", "0.75", ""],
        ["over-refusal ↓", "–", "–", "–", ""],
        ["facts (accuracy)", "1.00 ± 0.00", "0.40 ± 0.03", "0.75 ± 0.03", "100"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_what_a_column_lacks_is_a_dash() -> None:
    lines = score_table({"a": scores(0.5, None), "b": scores(0.5, benchmarks={})}).splitlines()
    assert cells(lines[-1]) == ["facts (accuracy)", "0.50", "–", "100"]
