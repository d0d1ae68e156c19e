"""``python -m experiments report``: tables from made-up runs whose numbers can be worked out by hand."""

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread
from matplotlib.lines import Line2D
from safetensors.torch import save_file

from eval.scores.finished import read_finished
from eval.scores.statistics import AtSafety, Paired, Summary, holm, paired_t, utility_at_safety
from experiments.__main__ import main
from experiments.comparisons import (
    at_levels,
    compare,
    compare_at_equal_distance,
    compare_at_equal_safety,
    directions,
    equal_safety,
)
from experiments.costs import Cost, StageCost, costs
from experiments.distance import Displacement, displacement_of, relative_distance
from experiments.execute import tasks_of
from experiments.figures import draw, draw_over_refusal
from experiments.kept import RESULTS, read_kept, record_of, usable_here
from experiments.outcomes import publication, published, read_rows, rival
from experiments.paper_tables import level_tables
from experiments.report import report
from experiments.rows import ROWS, Experiment, ExperimentSettings, Point, points, row_model
from ogpsa.config import Config
from ogpsa.preflight.report import stage_shapes
from ogpsa.runs.inputs import folder_digest, model_digests
from ogpsa.utils.by_name import names_in
from ogpsa.utils.errors import EXIT_DONE, UserError
from ogpsa.utils.files import mark_complete

BASELINE, OGPSA, LORA = (f"table1/qwen2_5_7b_sft_{name}" for name in ("baseline", "ogpsa", "lora"))
# The half-width of a 95% t-interval of 1, 2, 3 times a standard deviation of 1: t(0.975, 2) / √3.
THREE = 4.302652729749464 / 3**0.5


def experiment(
    rows: Sequence[str], *grids: dict[str, Any], suite: str = "testbed", name: str = "table1", **settings: Any
) -> Experiment:
    given = {"title": "made up", "label": "{method}", "reference": "table1/*_baseline", "figure": "none"}
    given |= settings | {"rows": list(rows), "suites": {suite: list(grids) or [{"seeds": 3}]}}
    return Experiment(name, ExperimentSettings.model_validate(given), tuple(rows))


def scores_of(
    config: Config, safety: float, utility: float, benchmarks: dict[str, float], over_refusal: float = 0.25
) -> dict[str, Any]:
    values = dict.fromkeys(config.eval.safety, safety) | dict.fromkeys(config.eval.utility, utility) | benchmarks
    averages = {"safety": safety, "utility": utility, "over_refusal": over_refusal}
    return averages | {"benchmarks": {name: {"value": value} for name, value in values.items()}}


def write_run(
    folder: Path,
    point: Point,
    safety: float,
    utility: float,
    benchmarks: dict[str, float] | None = None,
    history: Sequence[dict[str, float]] = (),
    over_refusal: float = 0.25,
) -> None:
    """A finished run of a base with safety 0.5 and utility 0.8."""
    directory = folder / point.config.run_name()
    directory.mkdir(parents=True)
    result = scores_of(point.config, safety, utility, benchmarks or {}, over_refusal)
    stages = {stage.name: result for stage in point.config.stages}
    averages = {name: value for name, value in result.items() if name != "benchmarks"}
    metrics = averages | {"base": scores_of(point.config, 0.5, 0.8, {}), "stages": stages}
    (directory / "metrics.json").write_text(json.dumps(metrics))
    for number, stage in enumerate(point.config.stages, start=1):
        (directory / f"{number:02d}-{stage.name}").mkdir()
        text = "".join(json.dumps(line) + "\n" for line in history)
        (directory / f"{number:02d}-{stage.name}" / "history.jsonl").write_text(text)


def write_provenance(directory: Path, model: str) -> None:
    """That the run began with ``model``."""
    provenance = {"sessions": [], "rests_on": {"model/model.safetensors": model, "code/eval": "any"}}
    (directory / "provenance.json").write_text(json.dumps(provenance))


def write_weights(folder: Path, numbers: list[float]) -> None:
    folder.mkdir(exist_ok=True)
    save_file({"weight": torch.tensor(numbers, dtype=torch.float64)}, folder / "model.safetensors")


def lines_of(markdown: str, title: str) -> list[dict[str, str]]:
    """The table below a heading, by column."""
    part = markdown.partition(f"## {title}\n\n")[2].partition("\n\n")[0].splitlines()
    header, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in part)
    return [dict(zip(header, line, strict=True)) for line in lines]


def written(table: Experiment, suite: str, given: Sequence[Point], folder: Path) -> Path:
    """Where the report of ``folder``'s runs lies."""
    out = folder / "report"
    paths = report(table, suite, given, folder, out)
    assert sorted(paths) == sorted(out.iterdir())
    return out


def test_paired_t_by_hand() -> None:
    """With two degrees of freedom, p = 1 - t / √(t² + 2); t of 1, 2, 3 is 2 √3."""
    found = paired_t([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert found.difference == Summary(3, 2.0, pytest.approx(THREE))
    assert found.p == pytest.approx(1 - (12 / 14) ** 0.5)
    assert paired_t([0.3, 0.1], [0.3, 0.1]) == Paired(Summary(2, 0.0, 0.0), None)
    assert paired_t([0.3, 0.3], [0.2, 0.2]).p is None
    assert paired_t([1.0], [0.5]) == Paired(Summary(1, 0.5, None), None)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("safety", "expected"),
    [
        (80.0, AtSafety(60.0, False)),
        (77.5, AtSafety(65.0, False)),
        (70.0, AtSafety(80.0, False)),
        (60.0, AtSafety(80.0, True)),
        (90.0 + 1e-12, AtSafety(50.0, False)),
        (90.1, None),
    ],
)
def test_utility_at_safety_by_hand(safety: float, expected: AtSafety | None) -> None:
    # The last two are dominated.
    found = utility_at_safety([(90.0, 50.0), (70.0, 80.0), (80.0, 60.0), (60.0, 70.0), (79.0, 55.0)], safety)
    assert (found is None) == (expected is None)
    if found and expected:
        assert (found.utility, found.safer) == (pytest.approx(expected.utility), expected.safer)


def test_published_numbers_are_of_rows_that_exist() -> None:
    rows = {path.relative_to(ROWS).with_suffix("").as_posix() for path in ROWS.rglob("*.yaml")}
    models = {"qwen2_5_7b", "llama3_1_8b", "llama3_8b", ""}
    rivals = {rival(entry.model or "", entry.method) for entry in published().values() if entry.method}
    assert {name for name, _ in published()} <= rows | models | rivals
    assert sum(entry.tag == "fig" for entry in published().values()) == 2 * (3 * 5 + 1)
    gains = [published()[f"table1/{model}_sft_dpo_{method}", "gain"].value
             for model in ("qwen2_5_7b", "llama3_1_8b") for method in ("baseline", "ogpsa")]  # fmt: skip
    assert gains == [33.98, 42.74, 19.74, 32.98]


def test_nothing_has_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = experiment(["table1/qwen2_5_7b_sft_dpo_baseline", "table1/qwen2_5_7b_sft_dpo_ogpsa"], suite="paper")
    out = written(table, "paper", points(table, "paper"), tmp_path / "none")
    text = (out / "table1.md").read_text()
    assert capsys.readouterr().out == text
    assert "nothing has run" in text
    untuned, naive, ogpsa = lines_of(text, "qwen2_5_7b")
    assert (untuned["published safety"], untuned["safety ↑"]) == ("55.78 [fig]", "")
    assert (naive["row"], naive["seeds"], naive["utility ↑"]) == ("naive tuning", "0/3", "not run")
    assert ogpsa["published utility"] == "55.05 [fig]"
    assert ogpsa["published gain"] == "42.74 [abs v2]"
    assert ogpsa["Δ utility"] == ""
    by_benchmark = lines_of(text, "qwen2_5_7b, benchmark by benchmark")
    assert [line["simpleqa"] for line in by_benchmark] == ["", "not run; 0.53 [abs v1]", "not run; 3.03 [abs v1]"]
    assert [line["stereotype"] for line in by_benchmark] == ["96.74 [app]", "not run", "not run"]
    with (out / "table1.csv").open() as handle:
        records = list(csv.DictReader(handle))
    assert [record["safety"] for record in records] == ["", ""]
    assert [record["safety_published"] for record in records] == ["88.37", "87.82"]


@pytest.mark.parametrize("change", ["model=qwen2_5_0_5b", "eval=quick"])
def test_what_is_published_is_of_its_own_model_and_benchmarks(change: str, tmp_path: Path) -> None:
    table = experiment(["table1/qwen2_5_7b_sft_dpo_ogpsa"], {"seeds": 1}, suite="paper")
    given = points(table, "paper", overrides=[change])
    write_run(tmp_path, given[0], 0.9, 0.6)
    text = (written(table, "paper", given, tmp_path) / "table1.md").read_text()
    group = "qwen2_5_0_5b in the place of qwen2_5_7b" if change.startswith("model") else "qwen2_5_7b"
    _, ogpsa = lines_of(text, group)
    assert ogpsa["published utility"] == "55.05 [fig]"
    assert "none is shown" in text and "benchmark by benchmark" not in text


def test_attack_success_stands_beside_nspos(tmp_path: Path) -> None:
    table = experiment(["nspo/llama3_8b_nspo_paper"], {"seeds": 1}, suite="paper", name="nspo", attack_success=True)
    (point,) = points(table, "paper")
    write_run(tmp_path, point, 0.9, 0.6, {"sorry_bench": 0.8})
    out = written(table, "paper", [point], tmp_path)
    untuned, ours, *rivals = lines_of((out / "nspo.md").read_text(), "llama3_8b, benchmark by benchmark")
    # 100 less the safety score, which is 50 of the untuned model.
    assert untuned["attack_success/sorry_bench"] == "50.0; 34.15 [nspo]"
    assert ours["attack_success/sorry_bench"] == "20.0; 16.81 [nspo]"
    assert "no difference is taken" in (out / "nspo.md").read_text()
    assert ours["attack_success/jailbreakbench"] == "10.0" and ours["mmlu"] == "60.0"
    assert {line["row"]: line["attack_success/alert"] for line in rivals} == {
        "SafeRLHF (published)": "13.66 [nspo]", "W-DOOR (published)": "1.86 [nspo]", "BFPO (published)": "7.22 [nspo]",
    }  # fmt: skip
    with (out / "nspo.csv").open() as handle:
        (record,) = csv.DictReader(handle)
    assert record["attack_success/sorry_bench_published"] == "16.81"
    assert (float(record["safety"]), float(record["attack_success/advbench"])) == (90, pytest.approx(10))


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    table = experiment(["table1/qwen2_5_7b_sft_dpo_ogpsa"], {"seeds": 1}, suite="paper")
    (point,) = points(table, "paper")
    write_run(tmp_path, point, 0.88, 1 / 3, {"simpleqa": 0.04})
    out = written(table, "paper", [point], tmp_path)
    text = (out / "table1.md").read_text()
    _, line = lines_of(text, "qwen2_5_7b")
    assert (line["seeds"], line["safety ↑"], line["published safety"]) == ("1", "88.0", "87.82 [fig], +0.2")
    assert line["published utility"] == "55.05 [fig], -21.7"
    assert "Δ utility" not in line
    assert lines_of(text, "qwen2_5_7b, benchmark by benchmark")[1]["simpleqa"] == "4.0; 3.03 [abs v1], +1.0"
    assert "no difference is taken" not in text
    with (out / "table1.csv").open() as handle:
        (record,) = csv.DictReader(handle)
    assert float(record["utility"]) == 100 * (1 / 3)
    assert record["utility_half_width"] == ""


def test_seeds_intervals_and_paired_differences(tmp_path: Path) -> None:
    """Utility 60, 70, 80 and 61, 72, 83; safety 90 always; a third method has run once of three."""
    table = experiment([BASELINE, OGPSA, LORA])
    given = points(table, "testbed")
    for point in given:
        if point.row == LORA and point.seed:
            continue
        utility = 0.6 + 0.1 * point.seed + (0.01 * (point.seed + 1) if point.row == OGPSA else 0.0)
        write_run(tmp_path, point, 0.9, utility)
    out = written(table, "testbed", given, tmp_path)
    text = (out / "table1.md").read_text()
    untuned, naive, lora, ogpsa = lines_of(text, "world 0 in the place of qwen2_5_7b")
    assert (untuned["safety ↑"], untuned["utility ↑"]) == ("50.0", "80.0")
    assert (naive["seeds"], naive["utility ↑"]) == ("3", f"70.0 ± {10 * THREE:.1f}")
    # Two safety benchmarks gain 80%, seven of utility lose 12.5% in the mean.
    assert naive["average gain ↑"].startswith(f"{(2 * 80 - 7 * 12.5) / 9:.1f} ± ")
    assert (lora["row"], lora["seeds"], lora["Δ utility"]) == ("LoRA", "1/3", "0.0 (n = 1)")
    # Safety is the same everywhere, and LoRA has one pair: nothing to test but OGPSA's utility.
    p = 1 - (12 / 14) ** 0.5
    assert ogpsa["Δ utility"] == f"+2.0 ± {THREE:.1f} ({p:.3f}; n = 3; not worse)"
    assert ogpsa["Δ safety"] == "0.0 ± – (–; n = 3)"
    # Another model's numbers are shown with their source, and no difference.
    assert (ogpsa["published safety"], naive["published utility"]) == ("83.12 [fig]", "53.68 [fig]")
    assert "none is shown" in text
    latex = (out / "table1.tex").read_text()
    assert r"world 0 in the place of qwen2\_5\_7b" in latex
    assert rf"70.0 $\pm$ {10 * THREE:.1f}" in latex
    assert r"95\% t-interval" in latex
    details = json.loads((out / "table1.json").read_text())
    assert len(details["runs"]) == 7
    assert [one["p"] for one in details["comparisons"]] == [None, pytest.approx(p), *[None] * 4]


def test_an_ablation_is_also_compared_with_the_usual_setting(tmp_path: Path) -> None:
    table = experiment([BASELINE, OGPSA, LORA], usual=OGPSA)
    utilities = {BASELINE: [0.5, 0.5, 0.5], OGPSA: [0.5, 0.6, 0.7], LORA: [0.51, 0.62, 0.73]}
    given = points(table, "testbed")
    for point in given:
        write_run(tmp_path, point, 0.9, utilities[point.row][point.seed])
    text = (written(table, "testbed", given, tmp_path) / "table1.md").read_text()
    _, naive, lora, ogpsa = lines_of(text, "world 0 in the place of qwen2_5_7b")
    # Of 1, 2, 3 the mean is 2, and of the one comparison p is not raised.
    p = 1 - (12 / 14) ** 0.5
    assert lora["Δ utility to OGPSA"] == f"+2.0 ± {THREE:.1f} ({p:.3f}; n = 3; not worse)"
    assert (naive["Δ utility to OGPSA"], ogpsa["Δ utility to OGPSA"]) == ("", "")
    assert "Δ: difference to naive tuning of the same pipeline, or to OGPSA, paired by seed" in text


def test_equal_safety_by_hand(tmp_path: Path) -> None:
    """Naive tuning is at safety 90 and utility 60; OGPSA's front reaches 65 + seed there, and LoRA is never as safe."""
    table = experiment([BASELINE, OGPSA, LORA], {"seeds": 2, "strengths": [1.0, 0.5]}, usual=OGPSA)
    given = points(table, "testbed")
    fronts = {
        BASELINE: {1.0: (0.9, 0.6), 0.5: (0.8, 0.7)},
        OGPSA: {1.0: (0.95, 0.6), 0.5: (0.85, 0.7)},
        LORA: {1.0: (0.85, 0.6), 0.5: (0.8, 0.7)},
    }
    for point in given:
        safety, utility = fronts[point.row][point.strength]
        write_run(tmp_path, point, safety, utility + (0.01 * point.seed if point.row == OGPSA else 0.0))
    rows = read_rows(table, "testbed", given, tmp_path)
    naive, lora, ogpsa = equal_safety(table, rows)
    assert naive.found == pytest.approx({0: 60.0, 1: 60.0})
    assert lora.utility == {0: None, 1: None}
    assert ogpsa.found == pytest.approx({0: 65.0, 1: 66.0})
    comparison, over_refusal = compare_at_equal_safety(table, [naive, lora, ogpsa])
    assert (over_refusal.row, over_refusal.paired.difference.mean) == (OGPSA, 0.0)
    assert (comparison.row, comparison.against) == (OGPSA, BASELINE)
    assert comparison.paired.difference.mean == pytest.approx(5.5)
    text = (written(table, "testbed", given, tmp_path) / "table1.md").read_text()
    lines = lines_of(text, "world 0 in the place of qwen2_5_7b: utility at equal safety")
    cells = [
        (line["utility at S"].partition(" ±")[0], line["seeds with a number"], line["no overlap"]) for line in lines
    ]
    assert cells == [("60.0", "2/2", "0"), ("no overlap", "0/2", "2"), ("65.5", "2/2", "0")]
    assert lines[0]["OGPSA minus it"].startswith("+5.5 ± ")
    # As utility and over-refusal are corrected, each by itself.
    assert text.count("corrected by Holm over the column (in all tables of this page)") == 2
    strengths = lines_of(text, "world 0 in the place of qwen2_5_7b: by strength")
    assert strengths[0]["× 0.5"] == "80.0 ± –, 70.0 ± –, 25.0 ± –"
    # Without the reference's row there is no safety to compare at.
    assert equal_safety(table, [lora.row, ogpsa.row]) == []


def test_the_row_that_others_are_compared_with_is_named(tmp_path: Path) -> None:
    table = experiment([BASELINE, OGPSA, LORA], {"seeds": 2, "strengths": [1.0, 0.5]}, usual=LORA)
    given = points(table, "testbed")
    for point in given:
        write_run(tmp_path, point, 0.9 if point.strength == 1.0 else 0.8, 0.6)
    text = (written(table, "testbed", given, tmp_path) / "table1.md").read_text()
    lines = lines_of(text, "world 0 in the place of qwen2_5_7b: utility at equal safety")
    assert {"LoRA minus it", "LoRA's over-refusal minus its"} <= lines[0].keys() and "OGPSA minus it" not in text


@pytest.mark.slow
def test_fronts_are_of_the_seeds_that_all_rows_have(tmp_path: Path) -> None:
    """Seed 1 is harder for all; LoRA, which has not run on it, would else be alone on the front."""
    table = experiment([BASELINE, OGPSA, LORA], {"seeds": 2, "strengths": [1.0, 2.0]}, figure="front")
    given = points(table, "testbed")
    safety = {BASELINE: 0.9, OGPSA: 0.95, LORA: 0.85}
    for point in given:
        # At twice the rates OGPSA has not run on seed 0.
        if (point.row, point.seed) == (LORA, 1) or (point.row, point.seed, point.strength) == (OGPSA, 0, 2.0):
            continue
        write_run(tmp_path, point, safety[point.row] - 0.3 * point.seed, 0.75 - 0.01 * point.strength)
    out = written(table, "testbed", given, tmp_path)
    text = (out / "table1.md").read_text()
    found = {line["row"]: line for line in lines_of(text, "world 0 in the place of qwen2_5_7b: the Pareto front")}
    assert {name: line["on the front by means"] for name, line in found.items()} == {
        "naive tuning": "no", "LoRA": "no", "OGPSA": "yes",
    }  # fmt: skip
    assert found["OGPSA"]["at any strength"] == "× 1" and found["OGPSA"]["in seeds"] == "1 of 1"
    strengths = {line["row"]: line for line in lines_of(text, "world 0 in the place of qwen2_5_7b: by strength")}
    assert strengths["LoRA"]["× 1"].endswith(" (1/2)") and strengths["naive tuning"]["× 1"].endswith("25.0 ± –")


SMALL = [f"small/sft_{name}" for name in ("baseline", "replay", "merge")]


def test_over_refusal_at_a_level_of_safety_by_hand(tmp_path: Path) -> None:
    """From the untuned (0, 0) naive tuning refuses half as much at 40 and all at 100; replay less; merging is no safer.

    The highest safety that all reach in both seeds is merging's, 60 in seed 0.
    """
    level = {"safety": "harmful_seen", "over_refusal": "look_alike", "at": [80]}
    table = experiment(SMALL, {"seeds": 2, "strengths": [1.0, 2.0]}, suite="check", figure="front", levels=[level],
                       label="{row}", reference=SMALL[0])  # fmt: skip
    given = points(table, "check")
    harmful = {"baseline": (0.4, 1.0), "replay": (0.4, 1.0), "merge": (0.3, 0.6)}
    harmless = {"baseline": (0.2, 1.0), "replay": (0.2, 0.5), "merge": (0.1, 0.3)}
    for point in given:
        name, place = point.row.partition("_")[2], int(point.strength) - 1
        extra = 0.1 * (name == "merge") * point.seed
        values = {"harmful_seen": harmful[name][place] + extra, "look_alike": harmless[name][place]}
        write_run(tmp_path, point, harmful[name][place] + extra, 0.7, values)
        path = tmp_path / point.config.run_name() / "metrics.json"
        metrics = json.loads(path.read_text())
        metrics["base"]["benchmarks"] |= {"harmful_seen": {"value": 0.0}, "look_alike": {"value": 0.0}}
        for part in (metrics["base"], *metrics["stages"].values()):
            part["benchmarks"]["some_loss"] = {"value": 1.75, "metric": "loss"}
        path.write_text(json.dumps(metrics))
    rows = read_rows(table, "check", given, tmp_path)
    found = {(one.row.name, one.level): one for one in at_levels(table, rows)}
    naive, replay, merge = (found[name, 80] for name in SMALL)
    # Two thirds of the way from 40 to 100.
    assert naive.found == pytest.approx(dict.fromkeys((0, 1), 20 + 80 * 2 / 3))
    assert replay.found == pytest.approx(dict.fromkeys((0, 1), 20 + 30 * 2 / 3))
    assert merge.found == {} and merge.against is None
    assert replay.against is not None and replay.against.paired.difference.mean == pytest.approx(-50 * 2 / 3)
    assert found[SMALL[2], 60].common
    assert found[SMALL[2], 60].found[0] == pytest.approx(30)
    assert rows[0].results[0].scores["some_loss"] == 1.75
    text = (written(table, "check", given, tmp_path) / "table1.md").read_text()
    group = text.partition(": look_alike at a level of harmful_seen")[0].rpartition("## ")[2]
    cells = [line["look_alike refused"] for line in lines_of(text, f"{group}: look_alike at a level of harmful_seen")]
    assert cells[:3] == ["73.3 ± –", "40.0 ± –", "not reached"]
    first = lines_of(text, f"{group}: safety against over-refusal")[1]
    assert (first["learning rates"], first["over-refusal ↓"], first["balanced ↑"]) == (
        "× 1",
        "25.0 ± –",
        "57.5 ± –",
    )


def test_a_level_is_read_within_a_seed_and_tested_within_a_pipeline(tmp_path: Path) -> None:
    """The untuned model refuses 0 of the harmless in seed 0, 20 in seed 1; at 40, rows are half of the way to 80."""
    level = {"safety": "harmful_seen", "over_refusal": "look_alike", "at": [40]}
    rows = [f"small/{stage}_{name}" for stage in ("sft", "dpo") for name in ("baseline", "replay")]
    table = experiment(rows, {"seeds": 2, "strengths": [1.0, 2.0]}, suite="check", reference="small/*_baseline",
                       levels=[level])  # fmt: skip
    given = points(table, "check")
    for point in given:
        harmless = 0.4 if point.row.endswith("baseline") else 0.2 + 0.1 * point.seed
        write_run(tmp_path, point, 0.8, 0.7, {"harmful_seen": 0.8, "look_alike": harmless})
        path = tmp_path / point.config.run_name() / "metrics.json"
        metrics = json.loads(path.read_text())
        metrics["base"]["benchmarks"] |= {"harmful_seen": {"value": 0.0}, "look_alike": {"value": 0.2 * point.seed}}
        path.write_text(json.dumps(metrics))
    levels = at_levels(table, read_rows(table, "check", given, tmp_path))
    found = {one.row.name: one for one in levels if not one.common}
    for naive, replay in (rows[:2], rows[2:]):
        assert found[naive].found == pytest.approx({0: 20.0, 1: 30.0})
        assert found[replay].found == pytest.approx({0: 10.0, 1: 25.0})
        against = found[replay].against
        # Of one comparison at the level, p is not raised: the note names the family.
        assert against is not None and against.p == against.paired.p is not None
    assert "corrected by Holm over the pipeline's rows at that level" in level_tables(levels)[-1].notes[0]


def test_equal_distance_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Naive tuning loses 10 points for each percent it moves from the untuned 80; OGPSA, 1.5% away, is 5 above."""
    moved = {(BASELINE, 1.0): 0.02, (BASELINE, 0.5): 0.01, (OGPSA, 1.0): 0.015}
    table = experiment(
        [BASELINE, OGPSA], {"seeds": 2}, {"rows": [BASELINE], "seeds": 2, "strengths": [0.5]}, distance=True
    )
    given = points(table, "testbed")
    write_weights(tmp_path / "untuned", [1.0, 0.0, 0.0])

    def displacement_of(config: Config, directory: Path) -> Displacement:
        return Displacement(tmp_path / "untuned", directory)

    monkeypatch.setattr("experiments.outcomes.displacement_of", displacement_of)
    for point in given:
        distance = moved[point.row, point.strength]
        write_run(tmp_path, point, 0.9, {0.02: 0.6, 0.01: 0.7, 0.015: 0.7}[distance])
        # OGPSA goes half to the side.
        way = [distance, 0.0] if point.row == BASELINE else [distance * 0.6, distance * 0.8]
        write_weights(tmp_path / point.config.run_name(), [1.0, *way])
    (comparison,) = compare_at_equal_distance(read_rows(table, "testbed", given, tmp_path))
    assert (comparison.row, comparison.against) == (OGPSA, BASELINE)
    assert comparison.paired.difference.mean == pytest.approx(5.0)
    text = (written(table, "testbed", given, tmp_path) / "table1.md").read_text()
    _, naive, ogpsa = lines_of(text, "world 0 in the place of qwen2_5_7b")
    assert (naive["moved"], ogpsa["moved"]) == ("2.0 ± –", "1.5 ± –")
    assert (naive["direction"], ogpsa["direction"]) == ("", "0.60 ± –")
    assert (naive["Δ at equal distance"], ogpsa["Δ at equal distance"]) == ("", "+5.0 ± – (–; n = 2)")
    # Beyond what naive tuning has moved there is nothing to compare with.
    for point in given:
        if point.row == OGPSA:
            write_weights(tmp_path / point.config.run_name(), [1.0, 0.03, 0.0])
    assert compare_at_equal_distance(read_rows(table, "testbed", given, tmp_path)) == []


def test_of_several_rows_of_naive_tuning_the_first_is_what_others_are_compared_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With KL it is a row like any other, and what it did not run at is read for the others all the same."""
    rows = ["rl/grpo", "rl/kl", "rl/ogpsa"]
    farthest = {"rows": ["rl/grpo", "rl/ogpsa"], "seeds": 2, "strengths": [4.0]}
    grids = {"seeds": 2, "strengths": [1.0, 2.0]}, farthest
    table = experiment(rows, *grids, name="rl", label="{row}", reference="rl/grpo", distance=True)
    given = points(table, "testbed")
    write_weights(tmp_path / "untuned", [1.0, 0.0, 0.0])
    monkeypatch.setattr(
        "experiments.outcomes.displacement_of", lambda _, directory: Displacement(tmp_path / "untuned", directory)
    )
    for point in given:
        # OGPSA becomes as safe as the others at four times the rate.
        safety = 0.9 if point.row != "rl/ogpsa" or point.strength == 4 else 0.7
        write_run(tmp_path, point, safety, 0.6)
        write_weights(tmp_path / point.config.run_name(), [1.0, 0.01 * point.strength, 0.0])
    found = read_rows(table, "testbed", given, tmp_path)
    assert [(one.row, one.against) for one in compare_at_equal_distance(found)] == [
        ("rl/kl", "rl/grpo"), ("rl/ogpsa", "rl/grpo"),
    ]  # fmt: skip
    assert set(directions(found)) == {"rl/kl", "rl/ogpsa"}
    at = {one.row.name: one.found for one in equal_safety(table, found)}
    assert at == {row: dict.fromkeys(range(2), pytest.approx(60.0)) for row in rows}


def test_distance_of_a_model_that_lies_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor that only one of the two files holds, as one tied to another, does not count."""
    (point,) = points(experiment([SMALL[0]], {"seeds": 1}, suite="check"), "check")
    folders = {name: tmp_path / name for name in ("untuned", "tuned")}
    for name, folder in folders.items():
        folder.mkdir()
        numbers = [3.0, 4.0] if name == "untuned" else [3.0, 4.5]
        tied = {"head": torch.ones(2)} if name == "tuned" else {}
        save_file({"weight": torch.tensor(numbers), **tied}, folder / "model.safetensors")
    monkeypatch.setattr("experiments.distance.checkpoints", lambda directory: [folders["tuned"]])

    def config(path: str) -> Config:
        return point.config.model_copy(update={"model": point.config.model.model_copy(update={"path": path})})

    displacement = displacement_of(config(str(folders["untuned"])), tmp_path)
    assert displacement == Displacement(folders["untuned"], folders["tuned"])
    assert relative_distance(displacement) == pytest.approx(0.1)
    assert displacement_of(config("nobody/nothing"), tmp_path) is None
    # Of a run that began with other weights than lie there now, nothing is known.
    for began_with, expected in ((folders["untuned"], displacement), (folders["tuned"], None)):
        (tmp_path / "provenance.json").write_text(json.dumps({"rests_on": model_digests(began_with)}))
        assert displacement_of(config(str(folders["untuned"])), tmp_path) == expected


def test_front_membership_by_hand(tmp_path: Path) -> None:
    """The untuned model is at (0.5, 0.8); of three rows one is dominated by mean and in seed 0, not in seed 1."""
    strong = {"rows": [BASELINE], "seeds": 2, "strengths": [0.5]}
    table = experiment([BASELINE, LORA, OGPSA], {"seeds": 2}, strong, figure="front")
    given = points(table, "testbed")
    scores = {
        (BASELINE, 1.0): [(0.9, 0.6), (1.0, 0.6)],
        (BASELINE, 0.5): [(0.4, 0.9), (0.4, 0.9)],
        (LORA, 1.0): [(0.9, 0.7), (0.9, 0.7)],
        (OGPSA, 1.0): [(1.0, 0.8), (0.9, 0.7)],
    }
    for point in given:
        write_run(tmp_path, point, *scores[point.row, point.strength][point.seed])
    report = (written(table, "testbed", given, tmp_path) / "table1.md").read_text(encoding="utf-8")
    lines = lines_of(report, "world 0 in the place of qwen2_5_7b: the Pareto front")
    assert [tuple(line.values())[1:] for line in lines] == [
        ("naive tuning", "no", "1 of 2", "× 0.5"),
        ("LoRA", "no", "1 of 2", "no"),
        ("OGPSA", "yes", "2 of 2", "× 1"),
    ]


def test_a_run_without_a_score_leaves_its_row_in_the_tables(tmp_path: Path) -> None:
    """Beyond the rate that is compared it costs the row nothing; at that rate the table says of how many seeds."""
    strong = {"rows": [OGPSA], "seeds": 2, "strengths": [2.0]}
    table = experiment([BASELINE, LORA, OGPSA], {"seeds": 2}, strong, figure="front")
    given = points(table, "testbed")
    for point in given:
        write_run(tmp_path, point, *{BASELINE: (0.9, 0.6), LORA: (0.9, 0.7), OGPSA: (1.0, 0.8)}[point.row])
    for row, seed, strength, score in ((OGPSA, 1, 2.0, "utility"), (LORA, 1, 1.0, "over_refusal")):
        [point] = [one for one in given if (one.row, one.seed, one.strength) == (row, seed, strength)]
        file = tmp_path / point.config.run_name() / "metrics.json"
        metrics = json.loads(file.read_text())
        for holder in (metrics, *metrics["stages"].values()):
            holder[score] = None
        file.write_text(json.dumps(metrics))
    report = (written(table, "testbed", given, tmp_path) / "table1.md").read_text(encoding="utf-8")
    fronts = lines_of(report, "world 0 in the place of qwen2_5_7b: the Pareto front")
    assert [tuple(line.values())[1:] for line in fronts][-1] == ("OGPSA", "yes", "2 of 2", "× 1")
    scores = {line["row"]: line["over-refusal ↓"] for line in lines_of(report, "world 0 in the place of qwen2_5_7b")}
    assert "(n = 1)" in scores["LoRA"] and "n =" not in scores["OGPSA"]


@pytest.mark.slow
def test_a_run_without_a_safety_score_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    """OGPSA's model says nothing to any request: its benchmarks stay, and it stands on no front."""
    table = experiment([BASELINE, OGPSA], {"seeds": 1}, figure="front", distance=True)
    given = points(table, "testbed")
    for point in given:
        write_run(tmp_path, point, 0.9, 0.6)
    file = tmp_path / given[1].config.run_name() / "metrics.json"
    metrics = json.loads(file.read_text())
    metrics["safety"] = metrics["stages"]["sft"]["safety"] = None
    file.write_text(json.dumps(metrics))
    text = (written(table, "testbed", given, tmp_path) / "table1.md").read_text(encoding="utf-8")
    naive, ogpsa = lines_of(text, "world 0 in the place of qwen2_5_7b")[-2:]
    assert (naive["safety ↑"], ogpsa["safety ↑"], ogpsa["utility ↑"]) == ("90.0", "", "60.0")
    [line] = lines_of(text, "world 0 in the place of qwen2_5_7b: the Pareto front")
    assert "naive tuning" in line.values()


def test_a_difference_has_a_finding_and_the_number_of_seeds_needed(tmp_path: Path) -> None:
    """Over-refusal rises by 11, 12 and 13 points under LoRA, and by 1, by 5 and by -10 under OGPSA."""
    table = experiment([BASELINE, OGPSA, LORA])
    given = points(table, "testbed")
    for point in given:
        risen = {BASELINE: (0, 0, 0), LORA: (11, 12, 13), OGPSA: (1, 5, -10)}[point.row][point.seed]
        write_run(tmp_path, point, 0.9, 0.6, over_refusal=0.2 + risen / 100)
    text = (written(table, "testbed", given, tmp_path) / "table1.md").read_text(encoding="utf-8")
    *_, lora, ogpsa = lines_of(text, "world 0 in the place of qwen2_5_7b")
    assert lora["Δ over-refusal"].endswith("; n = 3; worse)")
    # (1.980 + 0.845)² 60.33 / 2², Student's quantiles of 120 degrees of freedom.
    assert ogpsa["Δ over-refusal"].endswith("; n = 3; needs 121)")
    assert "needs N: none of these, and a test of N pairs" in text


def test_rows_are_compared_at_the_strength_that_a_suite_names(tmp_path: Path) -> None:
    """At × 4 OGPSA keeps 10 points more than naive tuning, at its own rates as much."""
    grid = {"seeds": 2, "strengths": [1.0, 4.0]}
    table = experiment([BASELINE, OGPSA], grid, compared_at={"testbed": 4.0})
    given = points(table, "testbed")
    for point in given:
        write_run(tmp_path, point, 0.9, {1.0: 0.8, 4.0: 0.6 if point.row == OGPSA else 0.5}[point.strength])
    text = (written(table, "testbed", given, tmp_path) / "table1.md").read_text(encoding="utf-8")
    _, naive, ogpsa = lines_of(text, "world 0 in the place of qwen2_5_7b")
    assert (naive["utility ↑"], ogpsa["Δ utility"]) == ("50.0 ± –", "+10.0 ± – (–; n = 2)")
    assert "All rows at × 4 of their learning rates." in text


def test_equal_safety_is_read_where_both_rows_have_run(tmp_path: Path) -> None:
    """Naive tuning's better point is at a rate at which OGPSA has yet to run: they are compared without it."""
    table = experiment([BASELINE, OGPSA], {"seeds": 1, "strengths": [1.0, 0.5]}, usual="*_ogpsa")
    given = points(table, "testbed")
    for point in given:
        if (point.row, point.strength) != (OGPSA, 0.5):
            write_run(tmp_path, point, 0.9, 0.6 if point.strength == 1 else 0.7)
    rows = read_rows(table, "testbed", given, tmp_path)
    naive, ogpsa = equal = equal_safety(table, rows)
    assert (naive.found, ogpsa.found) == ({0: pytest.approx(70.0)}, {0: pytest.approx(60.0)})
    difference = compare_at_equal_safety(table, equal)[0].paired.difference
    assert difference.mean == pytest.approx(0.0)
    assert len(compare(table, rows)) == 3


@pytest.mark.parametrize(
    ("row", "label", "expected"),
    [
        ("rank/4", "r = {method.rank}", "r = 4"),
        ("refresh/never", "K = {method.refresh_every}", "K = never"),
        ("scope/tensor", "K = {method.refresh_every}, {method.scope}", "K = 30 / 5, tensor"),
        ("scope/tensor", "{row}", "tensor"),
        (BASELINE, "r = {method.rank}", "naive tuning"),
        (BASELINE, "{row}", "naive tuning"),
        ("rivals/replay_0.1", "{method.ratio} {method.general_sets}", "0.1 general"),
    ],
)
def test_labels(row: str, label: str, expected: str, tmp_path: Path) -> None:
    table = experiment([row], {"seeds": 1}, label=label, name=row.partition("/")[0])
    (found,) = read_rows(table, "testbed", points(table, "testbed"), tmp_path)
    assert found.label == expected


def test_a_method_outside_the_paper_keeps_its_own_name(tmp_path: Path) -> None:
    table = experiment(["ideas/anchor", OGPSA], {"seeds": 1}, name="ideas")
    rows = read_rows(table, "testbed", points(table, "testbed"), tmp_path)
    assert {row.name: row.label for row in rows} == {OGPSA: "OGPSA", "ideas/anchor": "anchor"}
    assert set(publication().methods) <= set(names_in("ogpsa.methods"))


def test_how_utility_was_lost_by_hand(tmp_path: Path) -> None:
    """Of 40 points that are missing, 10 are refusals; a base whose refusals were not counted has no such number."""
    table = experiment([BASELINE, LORA], {"seeds": 2}, losses=True)
    given = points(table, "testbed")
    for point in given:
        write_run(tmp_path, point, 0.9, 0.6)
        if point.row == BASELINE:
            file = tmp_path / point.config.run_name() / "metrics.json"
            metrics = json.loads(file.read_text())
            for entry in metrics["stages"]["sft"]["benchmarks"].values():
                entry["refused"] = 0.1
            file.write_text(json.dumps(metrics))
    text = (written(table, "testbed", given, tmp_path) / "table1.md").read_text()
    naive, lora = lines_of(text, "world 0 in the place of qwen2_5_7b: how utility was lost")
    assert (naive["utility ↑"], naive["refused"], naive["wrong"]) == ("60.0 ± –", "10.0 ± –", "30.0 ± –")
    assert (lora["learning rates"], lora["utility ↑"], lora["refused"], lora["wrong"]) == ("× 1", "60.0 ± –", "", "")


def test_cost_by_hand(tmp_path: Path) -> None:
    """Ten steps in 30 s, 0.3 s of projecting each; eight refreshes of 2 s."""
    table = experiment([BASELINE, OGPSA], {"seeds": 1}, name="cost", costs=True)
    given = points(table, "testbed")
    for point in given:
        line: dict[str, float] = {"step": 10, "loss": 1.0}
        if point.row == OGPSA:
            line |= {"projection/refresh_seconds": 2.0, "projection/projection_seconds": 0.3}
        runtime = 20.0 if point.row == BASELINE else 30.0
        write_run(tmp_path, point, 0.9, 0.6, history=[line, {"step": 10, "train_runtime": runtime}])
        facts = {"steps": 10, "cpu_seconds": 0.8 * runtime}
        (tmp_path / point.config.run_name() / "01-sft" / "COMPLETE.json").write_text(json.dumps(facts))
    naive, ogpsa = (
        cost.stages["sft"] for cost in costs(table, "testbed", read_rows(table, "testbed", given, tmp_path))
    )
    assert (naive.rows, naive.work, naive.basis, naive.time) == (0.0, 0.0, 0.0, None)
    # 234 steps of 1248 rows three times over; an estimate every 30 steps of 200 rows from two sets.
    assert ogpsa.rows == pytest.approx(8 * 400 / (8 * 400 + 3 * 1248))
    assert ogpsa.refresh == pytest.approx(8 * 2.0 / 30.0)
    assert ogpsa.projection == pytest.approx(0.1)
    assert ogpsa.time == pytest.approx(1 / (1 - 16 / 30 - 0.1))
    assert ogpsa.basis == 2.0
    assert (naive.step, ogpsa.step, ogpsa.setup) == (None, pytest.approx(1.5), None)
    assert naive.peak is not None and ogpsa.peak is not None and 0 < naive.peak < ogpsa.peak
    text = (written(table, "testbed", given, tmp_path) / "cost.md").read_text()
    assert lines_of(text, "What it costs")[1]["time per step"] == "× 2.73"


@pytest.mark.parametrize(("session", "times"), [(10, (1.5, 0.1)), (4, (None, None))], ids=["whole", "resumed"])
def test_a_stage_that_was_resumed_says_nothing_of_time(
    session: int, times: tuple[float | None, float | None], tmp_path: Path
) -> None:
    """Although the run that reports it was not: it took the stage from the store."""
    table = experiment([BASELINE, OGPSA], {"seeds": 1}, name="cost", costs=True)
    given = points(table, "testbed")
    for point in given:
        runtime, steps = (20.0, 10) if point.row == BASELINE else (30.0, session)
        line = {"step": 10, "loss": 1.0, "projection/refresh_seconds": 2.0, "projection/projection_seconds": 0.3}
        write_run(tmp_path, point, 0.9, 0.6, history=[line, {"step": 10, "train_runtime": runtime}])
        facts = {"steps": 10, "session_steps": steps, "cpu_seconds": runtime}
        (tmp_path / point.config.run_name() / "01-sft" / "COMPLETE.json").write_text(json.dumps(facts))
    cost = costs(table, "testbed", read_rows(table, "testbed", given, tmp_path))[1].stages["sft"]
    assert (cost.step, cost.projection) == tuple(one and pytest.approx(one) for one in times)


def cost_of_stage(pairs: int) -> StageCost:
    return StageCost(
        rows=None, work=None, refresh=None, projection=None, time=None, step=1.0, setup=None, basis=None, peak=None,
        pairs=pairs,
    )  # fmt: skip


def test_a_time_of_some_of_the_seeds_says_of_how_many(tmp_path: Path) -> None:
    table = experiment([BASELINE, OGPSA], {"seeds": 2, "strengths": [0.5, 1.0]}, name="cost", costs=True)
    given = points(table, "testbed")
    for point in given:
        write_run(tmp_path, point, 0.9, 0.6, history=[{"step": 10, "loss": 1.0}, {"step": 10, "train_runtime": 20.0}])
        facts = {"steps": 10, "session_steps": 10 if point.seed else 4, "cpu_seconds": 20.0}
        (tmp_path / point.config.run_name() / "01-sft" / "COMPLETE.json").write_text(json.dumps(facts))
    out = written(table, "testbed", given, tmp_path)
    _, ogpsa = lines_of((out / "cost.md").read_text(), "What it costs")
    assert (ogpsa["seeds"], ogpsa["relative to the reference"]) == ("2", "× 1.00 (n = 1)")
    stages = {"sft": cost_of_stage(1), "dpo": cost_of_stage(2)}
    row = read_rows(table, "testbed", given, tmp_path)[1]
    assert Cost(row, stages).cells()["relative to the reference"] == "× 1.00 (n = 1) / × 1.00"
    # No time is known of the other strength.
    with (out / "cost.csv").open() as file:
        records = [row for row in csv.DictReader(file) if row["row"] == OGPSA]
    assert [(one["strength"], one["sft_step"], one["sft_pairs"]) for one in records] == [
        ("0.5", "", ""),
        ("1.0", "1.0", "1"),
    ]
    assert records[0]["sft_basis"] == records[1]["sft_basis"] == "2.0"


@pytest.mark.slow
def test_cost_of_null_spaces_is_what_was_logged(tmp_path: Path) -> None:
    table = experiment(["rl/grpo", "rl/nspo_exact"], {"seeds": 1}, name="rl", reference="rl/grpo", costs=True)
    given = points(table, "testbed")
    for point in given:
        line: dict[str, float] = {"step": 4, "loss": 1.0}
        if point.row == "rl/nspo_exact":
            line |= {"projection/setup_seconds": 7.0, "projection/basis_bytes": 1000.0}
        write_run(tmp_path, point, 0.9, 0.6, history=[line, {"step": 4, "train_runtime": 20.0}])
    plain, exact = (
        cost.stages["grpo"] for cost in costs(table, "testbed", read_rows(table, "testbed", given, tmp_path))
    )
    assert (plain.setup, plain.basis, exact.setup) == (None, 0.0, 7.0)
    trained = stage_shapes(given[1].config, "grpo")[1].trained
    assert exact.basis == pytest.approx(1000 / (4 * trained))
    # Neither noted the processor's time.
    assert exact.step is None


@pytest.mark.slow
def test_overlap_is_the_mean_over_seeds(tmp_path: Path) -> None:
    rows = [BASELINE, "overlap/strong"]
    table = experiment(
        rows, {"seeds": 2}, name="overlap", figure="overlap", overlap=True, label="{row}", reference=BASELINE
    )
    given = points(table, "testbed")
    for point in given:
        history = [{"step": step, "loss": float(step)} for step in (1, 2)]
        if point.row == "overlap/strong":
            history = [
                line | {"projection/cosine": 0.2 + 0.2 * point.seed, "projection/reference_loss/a": 1.0,
                        "projection/reference_loss/b": 2.0, "projection/signed_cosine/harmful_answers/1": -0.5,
                        "projection/signed_cosine/harmful_answers/2": 0.0}
                for line in history
            ]  # fmt: skip
        write_run(tmp_path, point, 0.9, 0.6, history=history)
    out = written(table, "testbed", given, tmp_path)
    naive, paper, *_ = lines_of((out / "overlap.md").read_text(), "Overlap of gradients, and losses")
    assert (naive["stage"], naive["cosine before"], naive["safety loss"]) == ("SFT", "", "1 → 2")
    assert (paper["cosine before"], paper["reference loss"]) == ("0.3 → 0.3", "1.5 → 1.5")
    assert paper["cosine with harmful_answers"] == "-0.25 → -0.25"
    assert imread(out / "overlap.png").std() > 0


@pytest.mark.parametrize(
    ("rows", "settings"),
    [
        pytest.param([BASELINE, OGPSA], {"figure": "front"}, marks=pytest.mark.slow),
        (
            ["table1/qwen2_5_7b_sft_dpo_baseline", "refresh/30", "refresh/never"],
            {"figure": "curve", "axis": "method.refresh_every"},
        ),
    ],
)
def test_figures(rows: list[str], settings: dict[str, Any], tmp_path: Path) -> None:
    """The front has its published points before anything has run; a curve has nothing."""
    table = experiment(rows, {"seeds": 2, "strengths": [1.0, 0.5]}, **settings)
    given = points(table, "testbed")
    before = {path.suffix for path in report(table, "testbed", given, tmp_path, tmp_path / "before")}
    assert (".png" in before, ".pdf" in before) == ((True, True) if settings["figure"] == "front" else (False, False))
    for point in given:
        write_run(tmp_path, point, 0.8 + 0.1 * point.strength, 0.6 + 0.05 * point.seed)
    out = written(table, "testbed", given, tmp_path)
    assert (out / "table1.pdf").read_bytes().startswith(b"%PDF")
    after = imread(out / "table1.png")
    if settings["figure"] == "front":
        # Ours once more, from near.
        assert after.shape[0] > imread(tmp_path / "before" / "table1.png").shape[0]
        # Of an over-refusal of 25% the share that is answered, as the Pareto tables have it.
        figure = draw_over_refusal(table, read_rows(table, "testbed", given, tmp_path))
        assert figure is not None
        low, high = figure.axes[0].get_ylim()
        assert low < high and "answered" in figure.axes[0].get_ylabel()
        ours = [line.get_xydata().tolist()[0][1] for line in figure.axes[0].lines[:-2]]
        assert ours == pytest.approx([75.0] * len(ours)) and ours


def test_a_legend_of_long_names_fits_its_figure(tmp_path: Path) -> None:
    long = "{method}, which has a name that goes on for quite a while"
    table = experiment([BASELINE, OGPSA, LORA], {"seeds": 1}, label=long, figure="front")
    given = points(table, "testbed")
    for point in given:
        write_run(tmp_path, point, 0.9, 0.8)
    figure = draw_over_refusal(table, read_rows(table, "testbed", given, tmp_path))
    assert figure is not None
    [legend] = figure.legends
    assert "goes on" in legend.texts[0].get_text() and legend.get_window_extent().width <= figure.bbox.width


def test_every_mark_of_a_front_is_in_its_legend(tmp_path: Path) -> None:
    """The untuned model's published point, too: these rows have none that it could be compared with."""
    rows = ["rl/grpo", "rl/ogpsa"]
    table = experiment(rows, {"seeds": 1}, name="rl", label="{row}", reference="rl/grpo", figure="front")
    given = points(table, "testbed")
    for point in given:
        write_run(tmp_path, point, 0.9, 0.8)
    figure = draw(table, read_rows(table, "testbed", given, tmp_path))
    assert figure is not None
    [axes], [legend] = figure.axes, figure.legends
    explained = {handle.get_marker() for handle in legend.legend_handles if isinstance(handle, Line2D)}
    assert {line.get_marker() for line in axes.lines} <= explained


def test_parts_of_the_rows_are_drawn_apart_each_with_its_legend(tmp_path: Path) -> None:
    panels = {"adapters": "*_lora", "all weights": "*"}
    table = experiment([BASELINE, OGPSA, LORA], {"seeds": 1}, figure="front", panels=panels)
    given = points(table, "testbed")
    for point in given:
        write_run(tmp_path, point, 0.9, 0.8)
    figure = draw_over_refusal(table, read_rows(table, "testbed", given, tmp_path))
    assert figure is not None and not figure.legends
    shown = {
        axes.get_title(): [text.get_text() for text in legend.texts]
        for axes in figure.axes
        if (legend := axes.get_legend()) is not None
    }
    # In the order of the table.
    assert shown == {
        "SFT, all weights": ["naive tuning", "OGPSA", "untuned"], "SFT, adapters": ["LoRA", "untuned"]
    }  # fmt: skip
    assert list(shown) == ["SFT, all weights", "SFT, adapters"]


@pytest.mark.slow
def test_a_kept_run_is_reported_as_the_run_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is committed of runs, without their weights, gives every file of the report that the runs gave."""
    table = experiment([BASELINE, OGPSA], {"seeds": 2, "strengths": [1.0, 2.0]}, figure="front", overlap=True,
                       distance=True)  # fmt: skip
    given = points(table, "testbed")
    history = [
        {"step": 1, "loss": 2.5, "grad_norm": 1.0, "projection/cosine": 0.25},
        {"step": 2, "projection/signed_cosine/helpfulness": -0.125, "loss": 0.1234567890123},
        {"step": 2, "train_runtime": 3.0},
    ]
    folder = tmp_path / "outputs" / "testbed"
    base = tmp_path / "base"
    write_weights(base, [3.0, 4.0])
    monkeypatch.setattr("experiments.distance.untuned_folder", lambda config: base)
    for number, point in enumerate(given):
        write_run(folder, point, 0.5 + number / 50, 0.8 - number / 50, {"facts": 0.75}, history)
        write_weights(folder / point.config.run_name() / "01-sft", [3.0, 5.0 + number])
        mark_complete(folder / point.config.run_name() / "01-sft", {"steps": 2, "path": "/home"})
    report(table, "testbed", given, folder, tmp_path / "theirs")

    monkeypatch.setattr("experiments.kept.RESULTS", tmp_path)
    monkeypatch.setattr("experiments.rows.load_experiment", lambda name: table)
    assert main(["keep", "table1", f"output={tmp_path / 'outputs'}"]) == EXIT_DONE
    file = tmp_path / "testbed" / "runs.jsonl"
    first = file.read_bytes()
    assert b"/home" not in first and str(tmp_path).encode() not in first

    absent = tmp_path / "absent"
    report(table, "testbed", given, absent / "testbed", tmp_path / "ours", read_kept(file))
    for name in ("table1.csv", "table1.json", "table1.tex"):
        assert (tmp_path / "ours" / name).read_text() == (tmp_path / "theirs" / name).read_text(), name
    text = (tmp_path / "ours" / "table1.md").read_text()
    assert "8 of 8 runs are finished (8 of them committed with the code, `kept=true`)" in text

    # Kept runs are done; one that is kept again is written anew, the others stay.
    assert all(task.done for task in tasks_of(given, absent, read_kept(file)))
    assert not any(task.done for task in tasks_of(given, absent))
    shutil.rmtree(folder / given[0].config.run_name())
    assert main(["keep", "table1", f"output={tmp_path / 'outputs'}"]) == EXIT_DONE
    assert file.read_bytes() == first

    # What was known of the weights is not known of runs that began with others.
    again = {point.config.run_name() for point in given[1:] if point.seed == given[1].seed}
    for name in again:
        shutil.rmtree(folder / name / "01-sft")
        write_provenance(folder / name, "others")
    assert main(["keep", "table1", f"output={tmp_path / 'outputs'}"]) == EXIT_DONE
    records = read_kept(file)
    assert {record.run for record in records.values() if record.untuned is not None} == again
    assert {record.run for record in records.values() if record.moved is None} == again


def test_a_gain_over_nothing_is_none(tmp_path: Path) -> None:
    table = experiment([BASELINE])
    for point in points(table, "testbed"):
        write_run(tmp_path, point, 0.9, 0.8)
        metrics = tmp_path / point.config.run_name() / "metrics.json"
        found = json.loads(metrics.read_text())
        found["base"]["benchmarks"][point.config.eval.safety[0]]["value"] = 0.0
        metrics.write_text(json.dumps(found))
    text = (written(table, "testbed", points(table, "testbed"), tmp_path) / "table1.md").read_text()
    _, naive = lines_of(text, "world 0 in the place of qwen2_5_7b")
    assert naive["safety ↑"].startswith("90.0") and not naive["average gain ↑"].strip("–")
    assert "none where that scores 0 on one of them" in text


def test_runs_of_a_seed_that_began_with_another_model_are_left_out(tmp_path: Path) -> None:
    table = experiment([BASELINE, OGPSA, LORA], {"seeds": 2, "strengths": [1.0, 2.0]})
    given = points(table, "testbed")
    for point in given:
        # Seed 1: naive tuning at one strength, and LoRA at both, began with another base.
        other = point.seed == 1 and (point.row == LORA or (point.row == BASELINE and point.strength == 2.0))
        write_run(tmp_path, point, 0.75, 0.7 if other else 0.75)
        write_provenance(tmp_path / point.config.run_name(), f"{point.seed}{other}")
    # The same number of runs: those of the rows that come first stay.
    rows = {row.name: row for row in read_rows(table, "testbed", given, tmp_path)}
    assert {name: [(one.point.seed, one.point.strength) for one in row.apart] for name, row in rows.items()} == {
        BASELINE: [(1, 2.0)], OGPSA: [], LORA: [(1, 1.0), (1, 2.0)],
    }  # fmt: skip
    assert rows[BASELINE].values("utility") == {0: 75.0, 1: 75.0}
    assert rows[BASELINE].values("utility", 2.0) == rows[LORA].values("utility") == {0: 75.0}
    [of_lora] = [one for one in compare(table, list(rows.values())) if (one.row, one.score) == (LORA, "utility")]
    assert of_lora.paired.difference.n == 1
    text = (written(table, "testbed", given, tmp_path) / "table1.md").read_text()
    assert "9 of 12 runs are finished" in text
    assert "3 more began with another untuned model than most runs of their seed (1): left out." in text


@pytest.mark.parametrize(("silent", "said"), [(0, False), (1, False), (4, True), (6, True)])
def test_runs_that_do_not_say_what_they_began_with_are_counted(silent: int, said: bool, tmp_path: Path) -> None:
    table = experiment([BASELINE, OGPSA, LORA], {"seeds": 2})
    given = sorted(points(table, "testbed"), key=lambda point: point.seed)
    for number, point in enumerate(given):
        write_run(tmp_path, point, 0.75, 0.75)
        if number >= silent:
            write_provenance(tmp_path / point.config.run_name(), "any")
    text = (written(table, "testbed", given, tmp_path) / "table1.md").read_text()
    # Beside more runs that say it, one that does not is left out.
    counted = 3 if silent == 4 else silent
    line = f" {counted} do not say which untuned model they began with: taken as one model per seed."
    assert (line in text) == said == ("do not say" in text)


def test_a_record_counts_where_the_model_that_it_began_with_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = points(experiment([BASELINE], {"seeds": 4}), "testbed")
    here = tmp_path / "here"
    write_weights(here, [3.0, 4.0])
    folders = {0: here, 1: here, 2: tmp_path / "not trained", 3: None}
    monkeypatch.setattr("experiments.kept.untuned_folder", lambda config: folders[config.seed])
    for point in given:
        write_run(tmp_path, point, 0.75, 0.75)
        write_provenance(tmp_path / point.config.run_name(), "others")
    records = {}
    for point in given:
        run = read_finished(tmp_path / point.config.run_name())
        records[run.directory.name] = record_of(run, point, None, None)
    digest = folder_digest(here)
    known = {name: record.model_copy(update={"untuned": digest} if record.seed == 1 else {})
             for name, record in records.items()}  # fmt: skip
    assert {record.seed for record in usable_here(known, given).values()} == {1, 3}


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*/runs.jsonl")), ids=lambda file: file.parent.name)
def test_all_committed_records_of_a_seed_began_with_one_model(file: Path) -> None:
    starts: dict[tuple[str, int], set[tuple[str | None, str]]] = {}
    for record in read_kept(file).values():
        scores = {name: f"{entry['value']:.4g}" for name, entry in record.metrics["base"]["benchmarks"].items()}
        starts.setdefault((row_model(record.row), record.seed), set()).add((record.untuned, json.dumps(scores)))
    assert {place: len(found) for place, found in starts.items()} == dict.fromkeys(starts, 1)


@pytest.mark.parametrize("mine", [1, 2])
def test_runs_that_lie_here_outweigh_records(mine: int, tmp_path: Path) -> None:
    table = experiment([BASELINE, OGPSA, LORA], {"seeds": 1})
    given = points(table, "testbed")
    kept = {}
    for point in given:
        write_run(tmp_path / "theirs", point, 0.75, 0.75)
        directory = tmp_path / "theirs" / point.config.run_name()
        write_provenance(directory, "theirs")
        kept[directory.name] = record_of(read_finished(directory), point, None, None)
    for point in given[:mine]:
        write_run(tmp_path / "ours", point, 0.9, 0.8)
        write_provenance(tmp_path / "ours" / point.config.run_name(), "ours")
    rows = read_rows(table, "testbed", given, tmp_path / "ours", kept)
    assert [len(row.results) for row in rows].count(1) == mine
    assert all(row.values("utility") == {0: 80.0} for row in rows if row.results)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    file.write_text('{"run": "a", "seed": "zero"}\n')
    with pytest.raises(UserError) as error:
        read_kept(file)
    assert any(line.startswith(f"{file}:1: seed") for line in error.value.problems)
