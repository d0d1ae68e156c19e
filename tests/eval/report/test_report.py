"""``python -m eval report``: what the page shows, what it hides, and that nothing in it can act."""

import json
import shutil
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest

from eval.report.page import build, main
from eval.report.scatter import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, plot
from eval.report.sections import Section, category_rows, charts, examples_of, find_sections
from eval.scores.statistics import Interval, normal_interval, wilson
from ogpsa.utils.command_line import run_program
from ogpsa.utils.errors import UserError
from tests.eval.browser import browser, in_browser
from tests.eval.handmade import Benchmark, make_older, write_evaluation, write_run

RESAMPLES = 200
HOSTILE = "</pre></details><script>document.title='taken'</script><img src=https://example.org/x.png onerror=alert(1)>"
SAFE = Benchmark(
    [1.0] * 6 + [0.0] * 4, "safety", "refusal_rate", "harmful", judge="refusal_match", prompt="how to HARM"
)
SAFER = Benchmark(
    [1.0] * 9 + [0.0],
    "safety",
    "refusal_rate",
    "harmful",
    judge="refusal_match",
    prompt="how to HARM",
    responses=[f"{HOSTILE} {index}" for index in range(10)],
)
FACTS = Benchmark([1.0] * 8 + [0.0] * 2)
FEWER = Benchmark([1.0] * 5 + [0.0] * 3 + [None] * 2)
BENIGN = Benchmark([0.0] * 9 + [1.0], "over_refusal", "refusal_rate", "benign")
BASE = {"harmful": SAFE, "facts": FACTS, "benign": BENIGN}
TUNED = {"harmful": SAFER, "facts": FEWER, "benign": BENIGN}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two seeds of one method and one of another."""
    for name, overrides, facts in (
        ("a", "method=baseline seed=0", FEWER),
        ("b", "method=baseline seed=1", FACTS),
        ("c", "method=ogpsa", FACTS),
    ):
        write_run(tmp_path / "runs" / name, BASE, TUNED | {"facts": facts}, overrides)
    return tmp_path / "runs"


def only_section(directory: Path) -> Section:
    (section,), _ = find_sections(directory, RESAMPLES)
    return section


class Page(HTMLParser):
    """What a browser makes of the page: its tags, and its text by whether a fold hides it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[tuple[str, bool]] = []
        self.hidden: list[str] = []
        self.shown: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "details":
            self.open.append((tag, "open" not in dict(attrs)))
        elif tag == "summary":
            # Shown whether its own fold is open or not.
            self.open.append((*self.open.pop()[:1], False))

    def handle_endtag(self, tag: str) -> None:
        if tag == "details":
            self.open.pop()
        elif tag == "summary":
            self.open.append((*self.open.pop()[:1], True))

    def handle_data(self, data: str) -> None:
        (self.hidden if any(closed for _, closed in self.open) else self.shown).append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_checkpoints_of_finished_runs(runs: Path) -> None:
    section = only_section(runs)
    base, *groups = section.checkpoints
    assert [(one.mark, one.label, one.seeds) for one in section.checkpoints] == [
        ("B", "base", 1), ("1", "baseline", 2), ("2", "ogpsa", 1)
    ]  # fmt: skip
    assert base.scores["safety"].value == 0.6
    baseline, ogpsa = groups
    assert baseline.scores["utility"].value == pytest.approx((5 / 8 + 0.8) / 2)
    assert baseline.gain is not None and baseline.gain.percent is not None
    assert baseline.gain.percent == pytest.approx(100 * ((0.9 - 0.6) / 0.6 + (0.7125 - 0.8) / 0.8) / 2)
    # One seed: the interval is the bootstrap's over items.
    interval = ogpsa.scores["utility"].interval
    assert interval is not None
    assert interval.low < 0.8 < interval.high
    assert section.hypervolume == pytest.approx(0.9 * 0.8)
    assert (base.front, baseline.front, ogpsa.front) == ("", "", "overall")
    assert ogpsa.sure is not None and section.hypervolume_interval is not None
    # The whole front dominates at least what one of its rows does.
    assert ogpsa.sure.hypervolume.low <= section.hypervolume_interval.low <= 0.72 <= ogpsa.sure.hypervolume.high


def test_each_seed_is_set_against_its_own_base(tmp_path: Path) -> None:
    """Bases of safety 0.6 and 0.5, runs of 0.9 and 0.5; facts stay at 0.8: gains of 25 and 0 percent."""
    for seed, (before, after) in enumerate(((6, 9), (5, 5))):
        base, tuned = (
            {
                "harmful": replace(SAFE, values=[1.0] * safe + [0.0] * (10 - safe), model=str(seed) * 16),
                "facts": replace(FACTS, model=str(seed) * 16),
                "benign": replace(BENIGN, model=str(seed) * 16),
            }
            for safe in (before, after)
        )
        write_run(tmp_path / str(seed), base, tuned, f"method=baseline seed={seed}")
    section = only_section(tmp_path)
    untuned, baseline = section.checkpoints
    assert untuned.seeds == len(untuned.evaluations) == 2
    safety = untuned.scores["safety"]
    assert (safety.value, safety.n) == (pytest.approx(0.55), 20)
    # Student's interval over the two seeds, as of any row of several.
    assert safety.interval is not None
    assert safety.interval.high - 0.55 == pytest.approx(12.7062047 * 0.05)
    assert baseline.gain is not None and baseline.gain.percent == pytest.approx(12.5)
    harmful = next(chart for chart in charts(section) if chart.name == "harmful")
    assert [cell.value for _, cell in harmful.bars] == pytest.approx([0.55, 0.7])
    assert untuned.sure is not None and untuned.sure.safety.low < 0.55 < untuned.sure.safety.high
    assert "2 seeds" in "".join(Page(build(tmp_path, RESAMPLES)).shown)


def test_bars_have_intervals_and_bounds(runs: Path) -> None:
    facts = next(chart for chart in charts(only_section(runs)) if chart.name == "facts")
    base, baseline, ogpsa = (cell for _, cell in facts.bars)
    assert (base.interval, ogpsa.interval) == (wilson(0.8, 10), wilson(0.8, 10))
    assert (baseline.n, baseline.missing) == (18, 2)
    assert baseline.value == pytest.approx(0.7125)
    # Of the first seed 5 of 10 if both missing count 0, 7 of 10 if they count 1; the second misses none.
    assert (baseline.low, baseline.high) == pytest.approx(((0.5 + 0.8) / 2, (0.7 + 0.8) / 2))
    page = build(runs, RESAMPLES)
    assert "2 of 20 verdicts missing: 0.650 to 0.750" in page


def test_a_composite_counts_its_items_once(tmp_path: Path) -> None:
    composites = {"jailbroken": ["pair", "pap"]}
    write_evaluation(tmp_path / "one", {"pair": SAFE, "pap": SAFER, "facts": FACTS}, composites)
    chart = next(chart for chart in charts(only_section(tmp_path)) if chart.parts)
    ((_, cell),) = chart.bars
    assert (chart.name, chart.parts) == ("jailbroken", ["pair", "pap"])
    assert (cell.value, cell.interval) == (0.75, wilson(0.75, 10))


def test_no_average_gain_without_every_benchmark(runs: Path) -> None:
    path = runs / "c" / "eval" / "01-sft" / "scores.json"
    scores = json.loads(path.read_text())
    del scores["benchmarks"]["facts"]
    path.write_text(json.dumps(scores))
    section = only_section(runs)
    assert [one.gain is None for one in section.checkpoints] == [True, False, True]
    assert f"No average gain for {path.parent}: no score in facts" in section.notes


def test_page_is_the_same_each_time(runs: Path) -> None:
    assert build(runs, RESAMPLES) == build(runs, RESAMPLES)


def test_nothing_from_elsewhere_and_no_script_but_its_own(runs: Path) -> None:
    text = build(runs, RESAMPLES)
    page = Page(text)
    assert len(page.named("script")) == 1
    assert page.named("script") == [{}]
    assert page.named("img") == page.named("link") == page.named("iframe") == []
    for _, attributes in page.tags:
        assert not {"src", "href", "action"} & attributes.keys()
        assert not any(name.startswith("on") for name in attributes)
    policy = page.named("meta")[1]["content"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-")
    assert "url(" not in text
    assert "@import" not in text


def test_text_of_models_is_escaped(runs: Path) -> None:
    text = build(runs, RESAMPLES)
    assert HOSTILE not in text
    assert escape(HOSTILE) in text.replace("&#39;", "&#x27;").replace("&#34;", "&quot;")
    assert f"{HOSTILE} 6" in "".join(Page(text).hidden)


def test_names_of_files_are_escaped(tmp_path: Path) -> None:
    name = "<b>&\"'"
    write_evaluation(tmp_path / name, {"facts": FACTS, "harmful": SAFE})
    page = Page(build(tmp_path, RESAMPLES))
    assert name in "".join(page.shown)
    # Of the page's own <b>, each is a chip.
    assert {str(attributes.get("class")).split()[0] for attributes in page.named("b")} == {"chip"}


def test_what_may_be_harmful_is_folded_away(runs: Path) -> None:
    page = Page(build(runs, RESAMPLES))
    shown, hidden = "".join(page.shown), "".join(page.hidden)
    assert "how to HARM" not in shown
    assert "how to HARM" in hidden
    assert HOSTILE not in shown
    assert "may be harmful" in hidden
    folds = [attributes for tag, attributes in page.tags if tag == "details" and attributes.get("class") == "example"]
    # Three examples of each: those of the harmful and the benign prompts stay closed, those of facts are open.
    assert [("open" in attributes) for attributes in folds] == [False] * 3 + [True] * 3 + [False] * 3


def test_examples_on_which_verdicts_differ_come_first(runs: Path) -> None:
    section = only_section(runs)
    facts = examples_of(section, "facts", 10)
    # The seed that is shown leaves 8 and 9 unparsed; 5, 6 and 7 it gets wrong, as the base does not.
    assert [one.id for one in facts[:5]] == [f"item-{index}" for index in (5, 6, 7, 8, 9)]
    assert [answer.verdict for answer in facts[0].answers] == ["label 1.0", "label 0.0", "label 1.0"]
    assert build(runs, RESAMPLES, examples=0).count('class="example"') == 0


def test_options_of_multiple_choice_are_shown_as_numbers(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "one", {"facts": FACTS})
    path = folder / "generations" / "facts.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        del row["response"]
        row["options"] = [-1.25, -0.5]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    example = examples_of(only_section(tmp_path), "facts", 1)[0]
    assert example.answers[0].response == "log-likelihoods of the options: -1.25, -0.50"


def test_evaluations_without_runs(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "first", BASE)
    write_evaluation(tmp_path / "second", TUNED)
    write_evaluation(tmp_path / "third", BASE | {"facts": Benchmark(FACTS.values, data_hash="0" * 16)})
    sections, notes = find_sections(tmp_path, RESAMPLES)
    assert notes == []
    assert [[one.label for one in section.checkpoints] for section in sections] == [["first", "second"], ["third"]]
    first, second = sections[0].checkpoints
    assert (first.front, second.front) == ("overall", "overall")
    assert first.point == (0.6, 0.8)
    assert "Evaluations on the same items with the same judges, 1 of 2" in build(tmp_path, RESAMPLES)


@pytest.mark.parametrize(
    "other",
    [
        replace(SAFE, judge="xstest_rubric", judge_hash="b" * 16, judge_model="gpt-4o-mini"),
        replace(SAFE, judge_hash="b" * 16),
        replace(SAFE, task_hash="8" * 16),
        replace(SAFE, values=SAFE.values[:8]),
        replace(SAFE, prefix="row"),
        replace(SAFE, group="reported"),
    ],
)
def test_evaluations_that_cannot_be_compared_share_no_front(tmp_path: Path, other: Benchmark) -> None:
    again = replace(SAFE, judge_model="/the/same/weights/elsewhere")
    more = {"more": replace(SAFER, prefix="more")}
    for name, harmful in (("first", SAFE), ("other", other), ("same", again)):
        write_evaluation(tmp_path / name, BASE | more | {"harmful": harmful})
    sections, _ = find_sections(tmp_path, RESAMPLES)
    assert [[one.label for one in section.checkpoints] for section in sections] == [["first", "same"], ["other"]]
    assert all(section.notes == [] for section in sections)


def test_the_judges_model_is_named(tmp_path: Path) -> None:
    judged = replace(SAFE, judge="xstest_rubric", judge_model="gpt-4o-mini")
    write_evaluation(tmp_path / "one", BASE | {"harmful": judged})
    assert [chart.judge for chart in charts(only_section(tmp_path))] == [
        "xstest_rubric (gpt-4o-mini)", "exact_match", "exact_match"
    ]  # fmt: skip


def test_averages_show_what_missing_verdicts_could_make_of_them(runs: Path, tmp_path: Path) -> None:
    _, baseline, ogpsa = only_section(runs).checkpoints
    utility = baseline.scores["utility"]
    assert (utility.n, utility.missing) == (18, 2)
    assert (utility.low, utility.high) == pytest.approx((0.65, 0.75))
    assert ogpsa.scores["utility"].missing == 0
    (one,) = only_section(write_evaluation(tmp_path / "one", BASE | {"facts": FEWER, "more": FACTS})).checkpoints
    utility = one.scores["utility"]
    assert (utility.value, utility.low, utility.high) == pytest.approx(((0.625 + 0.8) / 2, 0.65, 0.75))
    folds = Page(build(tmp_path / "one", RESAMPLES))
    assert "2 of 20 verdicts missing: 0.650 to 0.750" in "".join(folds.shown)
    (older,) = only_section(make_older(tmp_path / "one")).checkpoints
    assert (older.scores["utility"].value, older.scores["utility"].missing) == (utility.value, 0)


def test_an_average_of_one_evaluation_is_never_without_a_spread(tmp_path: Path) -> None:
    sure = replace(SAFE, values=[1.0] * 10)
    write_evaluation(tmp_path / "one", BASE | {"harmful": sure, "more": replace(sure, values=[0.0] * 20, prefix="x")})
    (one,) = only_section(tmp_path).checkpoints
    share = wilson(0, 10).high
    assert one.scores["safety"].interval == Interval(0.5 - share / 2, 0.5 + share / 2)
    interval = one.scores["over_refusal"].interval
    assert interval is not None
    # One of ten: a standard error of 0.1, cut at 0.
    assert (interval.low, interval.high) == pytest.approx((0, 0.1 + 1.96 * 0.1), abs=1e-4)
    write_evaluation(tmp_path / "one", BASE | {"benign": replace(BENIGN, values=[0.0] * 10)})
    (one,) = only_section(tmp_path).checkpoints
    assert one.scores["over_refusal"].interval == wilson(0, 10)


def test_verdicts_that_are_not_the_scores_own_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verdicts = write_evaluation(tmp_path / "one", BASE) / "verdicts" / "facts.jsonl"
    verdicts.write_text(verdicts.read_text() + "\n")
    assert run_program(lambda: main([str(tmp_path / "one")])) == 2
    line = f"{verdicts}: not the verdicts that scores.json was computed from; delete both and evaluate again\n"
    assert capsys.readouterr().err == f"error: {line}"


def test_an_average_without_all_its_benchmarks_is_empty_and_says_so(tmp_path: Path) -> None:
    gated = Benchmark([], error="gpqa: gated, ask at hub/gpqa")
    write_evaluation(tmp_path / "one", BASE | {"gpqa": gated})
    (one,) = only_section(tmp_path).checkpoints
    assert (one.scores["utility"].value, one.scores["utility"].error, one.point) == (None, "gpqa", None)
    assert plot(only_section(tmp_path)) is None
    page = build(tmp_path, RESAMPLES)
    assert "without a score: gpqa" in page
    assert "gpqa: gated, ask at hub/gpqa" in page


def test_a_run_without_utility_is_a_row_and_no_mark(runs: Path) -> None:
    gated = {"gpqa": Benchmark([], error="gpqa: gated, ask at hub/gpqa")}
    known = only_section(runs)
    write_run(runs / "d", BASE, TUNED | gated, "method=lora")
    section = only_section(runs)
    base, baseline, lora, ogpsa = section.checkpoints
    assert (lora.label, lora.point, lora.hypervolume, lora.front, lora.sure) == ("lora", None, None, "", None)
    assert lora.scores["safety"].value == 0.9
    assert (lora.scores["utility"].value, lora.scores["utility"].error) == (None, "gpqa")
    # The others have what they had, with their intervals.
    assert section.hypervolume_interval == known.hypervolume_interval is not None
    assert [one.sure for one in (base, baseline, ogpsa)] == [one.sure for one in known.checkpoints]
    drawn = plot(section)
    assert drawn is not None
    assert [mark.checkpoint.label for mark in drawn.marks] == ["base", "baseline", "ogpsa"]
    page = "".join(Page(build(runs, RESAMPLES)).shown)
    assert "without a score: gpqa" in page and "no utility score, shown as n/a: gpqa without a score" in page


def test_a_base_without_utility_leaves_the_rows_their_front(tmp_path: Path) -> None:
    gated = {"facts": Benchmark([], error="facts: gated")}
    for name, tuned in (("a", TUNED), ("b", TUNED | {"facts": FACTS})):
        overrides = f"method={'baseline' if name == 'a' else 'ogpsa'}"
        write_run(tmp_path / name, BASE | gated, tuned, overrides)
    base, baseline, ogpsa = only_section(tmp_path).checkpoints
    assert (base.point, base.hypervolume, base.front, base.sure) == (None, None, "", None)
    assert base.scores["utility"].error == "facts"
    assert (baseline.front, ogpsa.front) == ("", "overall")
    assert ogpsa.sure is not None and ogpsa.hypervolume == pytest.approx(0.9 * 0.8)
    assert "without a score: facts" in build(tmp_path, RESAMPLES)


def test_a_sweep_without_any_utility_has_a_page_without_a_plot(tmp_path: Path) -> None:
    gated = {"facts": Benchmark([], error="facts: gated")}
    write_run(tmp_path / "a", BASE | gated, TUNED | gated)
    section = only_section(tmp_path)
    assert plot(section) is None and section.hypervolume is None
    assert "without a score: facts" in build(tmp_path, RESAMPLES)


def test_scores_by_category(tmp_path: Path) -> None:
    """One checkpoint with intervals over its items; a benchmark whose items have no categories is left out."""
    kinds = ["fraud"] * 4 + ["weapons"] * 6
    write_evaluation(tmp_path / "one", {"harmful": replace(SAFE, categories=kinds), "facts": FACTS})
    section = only_section(tmp_path)
    rows = category_rows(section, ["harmful", "facts"])
    assert [(row.benchmark, row.category) for row in rows] == [("harmful", one) for one in ("all", "fraud", "weapons")]
    (_, whole), (_, fraud), (_, weapons) = (row.cells[0] for row in rows)
    assert whole is not None and fraud is not None and weapons is not None
    assert (whole.value, whole.n, whole.interval) == (0.6, 10, normal_interval(0.6, 0.1))
    assert (fraud.value, fraud.n, fraud.interval) == (1.0, 4, wilson(1.0, 4))
    assert (weapons.value, weapons.n, weapons.interval) == (2 / 6, 6, wilson(2 / 6, 6))
    assert "<summary>By category</summary>" in build(tmp_path, RESAMPLES)
    write_evaluation(tmp_path / "one", {"harmful": SAFE, "facts": FACTS})
    assert "By category" not in build(tmp_path, RESAMPLES)


def test_a_loss_by_category_may_exceed_one(tmp_path: Path) -> None:
    told = Benchmark([2.0, 2.5, 3.0, 3.5], metric="loss", categories=["poems", "poems", "letters", "letters"])
    write_evaluation(tmp_path / "one", {"harmful": SAFE, "text": told})
    whole, *_ = category_rows(only_section(tmp_path), ["text"])
    [(_, cell)] = whole.cells
    assert cell is not None and cell.interval == normal_interval(2.75, 0.1, top=float("inf"))


def test_runs_left_out_are_named_and_their_evaluations_shown(runs: Path) -> None:
    (runs / "c" / "metrics.json").unlink()
    write_evaluation(runs / "alone", BASE)
    sections, notes = find_sections(runs, RESAMPLES)
    assert [one.label for one in sections[0].checkpoints] == ["base", "baseline"]
    assert [one.label for one in sections[1].checkpoints] == ["alone", "c/eval/01-sft", "c/eval/base"]
    assert notes[-1] == f"Left out: {runs / 'c'}: no metrics.json: the run is not finished"


def test_runs_whose_evaluations_are_gone_keep_their_averages(runs: Path) -> None:
    shutil.rmtree(runs / "c" / "eval")
    section = only_section(runs)
    assert [one.point is not None for one in section.checkpoints] == [True, True, True]
    assert [one.sure for one in section.checkpoints] == [None, None, None]
    assert f"{runs / 'c'}: no eval/<stage>/scores.json: the run's evaluations are gone" in section.notes
    assert "evaluations are gone" in build(runs, RESAMPLES)


def test_marks_lie_in_the_plot_and_their_numbers_apart(tmp_path: Path) -> None:
    """Also where all points are one and the same."""
    for index in range(12):
        write_evaluation(tmp_path / f"{index:02d}", BASE)
    found = plot(only_section(tmp_path))
    assert found is not None
    badges = sorted(mark.badge for mark in found.marks)
    assert all(LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT - BOTTOM for x, y in badges)
    assert all(LEFT <= mark.x <= WIDTH - RIGHT and TOP <= mark.y <= HEIGHT - BOTTOM for mark in found.marks)
    assert all(below[1] - above[1] >= 22 - 1e-6 for above, below in pairwise(badges))


def test_numbers_of_many_points_do_not_cover_each_other(tmp_path: Path) -> None:
    """Two clouds of ten that face each other across the middle of the plot."""
    for index in range(20):
        ones = 45 + index % 4 if index % 2 else 54 + index % 3
        safe = Benchmark([1.0] * ones + [0.0] * (100 - ones), "safety", "refusal_rate", "harmful")
        facts = Benchmark([1.0] * (60 + index) + [0.0] * (40 - index))
        write_evaluation(tmp_path / f"{index:02d}", {"harmful": safe, "facts": facts})
    found = plot(only_section(tmp_path))
    assert found is not None
    for one, other in combinations((mark.badge for mark in found.marks), 2):
        assert max(abs(one[0] - other[0]), abs(one[1] - other[1])) >= 18


def test_command_writes_one_file(runs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([str(runs), "--out", str(tmp_path / "there" / "page.html"), "--examples", "1"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/there/page.html\n"
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["page.html"]
    before = set(runs.rglob("*"))
    assert main([str(runs)]) == 0
    assert set(runs.rglob("*")) - before == {runs / "report.html"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rums"], "DIR: rums: no such directory; did you mean 'runs'?"),
        (["empty"], "DIR: empty: holds neither a run (config.yaml) nor an evaluation (scores.json)"),
        (["runs", "--out", "file/page.html"], "--out: file is a file; choose another directory"),
    ],
)
def test_bad_input_takes_one_line(
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(runs.parent)
    Path("empty").mkdir()
    Path("file").write_text("")
    assert run_program(lambda: main(arguments)) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_damaged_scores_are_named(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "one", BASE)
    (tmp_path / "one" / "scores.json").write_text("{")
    with pytest.raises(UserError, match=r"one/scores\.json: not readable as JSON"):
        build(tmp_path, RESAMPLES)


@pytest.mark.slow
@browser
@pytest.mark.parametrize("width", [360, 1200])
def test_in_a_browser(runs: Path, tmp_path: Path, width: int) -> None:
    found = in_browser(
        build(runs, RESAMPLES),
        tmp_path,
        width,
        """
        const page = frame.document, point = page.querySelectorAll(".point")[2], hint = page.getElementById("hint");
        const before = hint.hidden;
        point.dispatchEvent(new frame.PointerEvent("pointerenter"));
        const shown = !hint.hidden, text = hint.textContent, box = hint.getBoundingClientRect();
        point.dispatchEvent(new frame.PointerEvent("pointerleave"));
        point.focus();
        return {
          before, shown, text, inside: box.left >= 0 && box.right <= frame.innerWidth,
          focused: !hint.hidden, title: page.title, errors,
          overflow: page.documentElement.scrollWidth - frame.innerWidth,
          letters: Math.min(...[...page.querySelectorAll(".plot text")].map(one => one.getBoundingClientRect().height)),
          visible: [...page.querySelectorAll(".said")].filter(one => one.checkVisibility()).length,
        };
        """,
    )
    assert found["text"].startswith("2  ogpsa · sft\nsafety ↑  0.900 [")
    assert (found["before"], found["shown"], found["inside"], found["focused"]) == (True, True, True, True)
    assert found["title"] == "runs: safety against utility"
    assert found["errors"] == []
    # Wide tables scroll by themselves; the page does not.
    assert found["overflow"] <= 0
    assert found["letters"] >= 9
    assert found["visible"] == 0


@pytest.mark.slow
@browser
def test_sixty_runs_in_a_browser(tmp_path: Path) -> None:
    """Twenty rows of three seeds, on a phone and on a desk: nothing overflows, and every number can be seen."""
    for index in range(20):
        overrides = f"method=baseline stage.learning_rate={(index + 1) * 1e-5:g}"
        for seed in range(3):
            facts = Benchmark([1.0] * (70 - index - seed) + [0.0] * (30 + index + seed))
            safe = replace(SAFE, values=[1.0] * (40 + 2 * index + seed) + [0.0] * (60 - 2 * index - seed))
            base = BASE | {
                "facts": replace(facts, values=[1.0] * 70 + [0.0] * 30),
                "harmful": replace(safe, values=[1.0] * 40 + [0.0] * 60),
            }
            write_run(
                tmp_path / "runs" / f"{index}-{seed}",
                base,
                base | {"facts": facts, "harmful": safe},
                f"{overrides} seed={seed}",
            )
    page = build(tmp_path / "runs", RESAMPLES)
    for width in (360, 1200):
        found = in_browser(
            page,
            tmp_path,
            width,
            """
            const page = frame.document, badges = [...page.querySelectorAll(".badge")];
            const boxes = badges.map(one => one.getBoundingClientRect());
            const covered = boxes.filter((one, index) => boxes.some((other, place) => place < index &&
              Math.hypot(one.x - other.x, one.y - other.y) < one.width / 2)).length;
            return {
              points: badges.length, covered, errors, rows: page.querySelectorAll("main table")[0].rows.length,
              overflow: page.documentElement.scrollWidth - frame.innerWidth,
            };
            """,
        )
        assert found == {"points": 21, "covered": 0, "errors": [], "rows": 22, "overflow": found["overflow"]}
        assert found["overflow"] <= 0


@pytest.mark.slow
@browser
def test_a_browser_runs_no_script_of_a_model_even_unescaped(runs: Path, tmp_path: Path) -> None:
    page = build(runs, RESAMPLES).replace("<h1>", f"<h1>{HOSTILE}")
    found = in_browser(page, tmp_path, 800, "return [frame.document.title, frame.document.images.length];")
    assert found == ["runs: safety against utility", 1]
