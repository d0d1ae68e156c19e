"""``python -m eval compare``: what is compared, what is refused, and what the table says."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from eval.scores.artefacts import open_evaluation, read_artefacts
from eval.scores.compare import AS_USUAL, Comparison, Drawing, compare, main, render
from eval.scores.equivalence import Flips
from eval.scores.flips import Pair, flips_csv
from eval.scores.statistics import unanimous_interval, wilson
from ogpsa.utils.command_line import run_program
from ogpsa.utils.errors import UserError
from tests.eval.handmade import Benchmark, make_older, write_evaluation, write_run

SAFE = Benchmark([1.0] * 18 + [0.0] * 2, "safety", "refusal_rate", prefix="harmful", judge="refusal_match")
FACTS = Benchmark([1.0] * 12 + [0.0] * 8)
# Six items gained, two lost.
BETTER = Benchmark([1.0] * 10 + [0.0] * 2 + [1.0] * 6 + [0.0] * 2)


def between(
    folder: Path,
    a: dict[str, Benchmark],
    b: dict[str, Benchmark],
    composites: dict[str, list[str]] | None = None,
    seed: int = 0,
    drawing: Drawing = AS_USUAL,
) -> Comparison:
    sides = [read_artefacts(write_evaluation(folder / name, given, composites)) for name, given in (("a", a), ("b", b))]
    return compare(*sides, replace(drawing, seed=seed))


def refusal(folder: Path, a: dict[str, Benchmark], b: dict[str, Benchmark]) -> tuple[str, ...]:
    with pytest.raises(UserError) as caught:
        between(folder, a, b)
    return caught.value.problems


def test_difference_by_hand(tmp_path: Path) -> None:
    found = between(tmp_path, {"facts": FACTS}, {"facts": BETTER})
    facts = found.benchmarks["facts"]
    assert (facts.a, facts.b, facts.items, facts.missing) == (0.6, 0.8, 20, 0)
    assert facts.value == pytest.approx(0.2)
    assert facts.interval is not None
    # Bootstrap of eight changes among twenty items, ±1.96 standard errors.
    assert (facts.interval.low, facts.interval.high) == pytest.approx((-0.06, 0.46), abs=0.06)
    # McNemar's exact test of 2 against 6: twice the 37 of 256 ways to have two heads or fewer in eight.
    average = found.averages["utility"]
    assert facts.flips == Flips(up=6, down=2)
    assert facts.p_value == 2 * 37 / 256
    assert (average.value, average.interval, average.items) == (facts.value, facts.interval, facts.items)
    # An average has no flips of its own, so its p comes from sign flips.
    assert average.p_value == pytest.approx(facts.p_value, abs=0.02)
    # Differences of variance 7.2 / 20; (1.960 + 0.842)² of it over 0.02², as far as 10,000 draws show it.
    assert facts.needed == average.needed == pytest.approx(7.849 * 7.2 / 20 / 0.02**2, rel=0.05)
    assert facts.finding == "not worse"
    assert found.gain is not None
    assert found.gain.percent == pytest.approx(100 / 3)


def test_the_other_way_round_is_the_mirror_image(tmp_path: Path) -> None:
    a, b = {"safe": SAFE, "facts": FACTS}, {"safe": SAFE, "facts": BETTER}
    there, back = between(tmp_path / "1", a, b).averages["utility"], between(tmp_path / "2", b, a).averages["utility"]
    assert there.interval is not None and back.interval is not None
    assert (back.interval.low, back.interval.high) == pytest.approx((-there.interval.high, -there.interval.low))
    assert back.p_value == there.p_value


@pytest.mark.parametrize(("group", "loss"), [("safety", -1), ("over_refusal", 1)])
def test_what_a_difference_says_of_the_margin(tmp_path: Path, group: str, loss: int) -> None:
    """Refusals are gains where requests are harmful, and losses where they are safe; 400 items."""

    def found(change: int, margin: float = 0.02) -> str | None:
        a, b = (
            {"asked": Benchmark([1.0] * ones + [0.0] * (400 - ones), group, "refusal_rate")}
            for ones in (200, 200 + change)
        )
        between_them = between(tmp_path / f"{change} {margin}", a, b, drawing=Drawing(margin=margin))
        assert between_them.averages[group].finding == between_them.benchmarks["asked"].finding
        return between_them.benchmarks["asked"].finding

    assert found(0) == "unchanged"
    assert found(5 * loss) == "undecided"
    assert found(5 * loss, margin=0.1) == "unchanged"
    assert found(100 * loss) == "worse"
    assert found(-100 * loss) == "not worse"


def test_categories_are_drawn_whole_and_shown(tmp_path: Path) -> None:
    """Items of one category that change together are one piece of evidence, not ten."""
    category = [str(index // 10) for index in range(40)]
    before = Benchmark([0.0] * 40, categories=category)
    after = Benchmark([1.0] * 10 + [0.0] * 30, categories=category)
    single = between(tmp_path / "1", {"facts": before}, {"facts": after}).benchmarks["facts"]
    whole = between(tmp_path / "2", {"facts": before}, {"facts": after}, drawing=Drawing(by_category=True))
    clustered = whole.benchmarks["facts"]
    assert single.value == clustered.value == 0.25
    assert single.interval is not None and clustered.interval is not None
    # Binomial of 1 in 4 over four categories: 0 and 0.75 are within 95%; over forty items it is ±1.96 √(0.1875 / 40).
    assert (clustered.interval.low, clustered.interval.high) == (0.0, 0.75)
    assert (single.interval.low, single.interval.high) == pytest.approx((0.12, 0.38), abs=0.03)
    assert clustered.p_value == pytest.approx(1.0)
    # Ten items that go together count as one.
    assert single.needed is not None and clustered.needed == pytest.approx(10 * single.needed, rel=0.1)
    assert {name: found.value for name, found in whole.categories["facts"].items()} == {"0": 1, "1": 0, "2": 0, "3": 0}
    assert "| facts | 0        | 0.000 | 1.000 | +1.000 |    10 |" in render(
        whole, tmp_path, tmp_path, Drawing(by_category=True)
    )


def test_one_category_is_none(tmp_path: Path) -> None:
    a, b = (replace(one, categories=["only"] * 20) for one in (FACTS, BETTER))
    found = between(tmp_path / "1", {"facts": a}, {"facts": b}, drawing=Drawing(by_category=True))
    usual = between(tmp_path / "2", {"facts": a}, {"facts": b})
    assert found.benchmarks["facts"] == usual.benchmarks["facts"]
    assert "facts: its items have no categories, or one alone, so that single items are drawn" in found.notes


def test_one_category_whose_items_have_values_is_none(tmp_path: Path) -> None:
    category = ["known"] * 10 + ["missing"] * 10
    a, b = (Benchmark([value] * 10 + [None] * 10, categories=category) for value in (0.0, 1.0))
    found = between(tmp_path, {"facts": a}, {"facts": b}, drawing=Drawing(by_category=True))
    assert "facts: its items have no categories, or one alone, so that single items are drawn" in found.notes


def test_flips_come_with_their_items_harmful_ones_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [f"answer, {index}" for index in range(20)]
    a = {"facts": FACTS, "safe": replace(SAFE, responses=texts, prompt="how do I,\nquickly?")}
    b = {"facts": BETTER, "safe": replace(SAFE, values=[0.0] + [1.0] * 18 + [0.0])}
    folders = [write_evaluation(tmp_path / name, given) for name, given in (("a", a), ("b", b))]
    file = tmp_path / "flips.csv"
    assert main([*map(str, folders), "--flips", "1", "--flips-file", str(file)]) == 0
    shown = capsys.readouterr().out
    assert shown.index("Harmful requests that B declines less than A (1):") < shown.index(
        "Other items on which B is worse"
    )
    assert "- safe harmful-0: label 1.0 → label 0.0\n  asked: how do I, quickly?\n  A: answer, 0\n" in shown
    assert "Items on which B is better (7, the first 1):" in shown
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["kind"] for row in rows] == ["harmful"] + ["worse"] * 2 + ["better"] * 7
    assert (rows[0]["id"], rows[0]["prompt"], rows[0]["response_a"]) == (
        "harmful-0",
        "how do I,\nquickly?",
        "answer, 0",
    )
    main([*map(str, folders), "--flips", "0"])
    assert "Items on which" not in capsys.readouterr().out


def test_another_seed_draws_other_items(tmp_path: Path) -> None:
    generous = Benchmark([0.37 * index % 1 for index in range(20)])
    first, same, other = (
        between(tmp_path / str(number), {"facts": FACTS}, {"facts": generous}, seed=seed).benchmarks["facts"].interval
        for number, seed in enumerate([0, 0, 1])
    )
    assert first == same != other


def test_groups_average_their_benchmarks_and_composites_their_parts(tmp_path: Path) -> None:
    pair = Benchmark([1.0] * 10 + [0.0] * 10, "safety", "goodness", prefix="request")
    pap = Benchmark([0.5] * 20, "safety", "goodness", prefix="request")
    worse = Benchmark([0.0] * 20, "safety", "goodness", prefix="request")
    composites = {"jailbroken": ["pair", "pap"]}
    found = between(
        tmp_path,
        {"safe": SAFE, "pair": pair, "pap": pap, "facts": FACTS},
        {"safe": SAFE, "pair": pair, "pap": worse, "facts": BETTER},
        composites,
    )
    jailbroken = found.benchmarks["jailbroken"]
    assert (jailbroken.a, jailbroken.b, jailbroken.items) == (0.5, 0.25, 40)
    # All items differ alike; those of the two parts are the same twenty.
    assert jailbroken.interval == unanimous_interval(-0.25, 20, -1, 1)
    assert found.averages["safety"].value == pytest.approx((-0.25 + 0) / 2)
    # The composite counts once, its parts are only reported.
    assert found.gain is not None
    assert found.gain.benchmarks == ["safe", "jailbroken", "facts"]


def test_parts_on_the_same_items_are_drawn_together(tmp_path: Path) -> None:
    """Two parts that undo each other item by item leave a composite that no draw moves."""
    up, down = [1.0, 0.0] * 10, [0.0, 1.0] * 10
    flat = Benchmark([0.0] * 20, "safety", "goodness", prefix="request")
    one, other = (Benchmark(values, "safety", "goodness", prefix="request") for values in (up, down))
    found = between(
        tmp_path, {"pair": flat, "pap": flat}, {"pair": one, "pap": other}, {"jailbroken": ["pair", "pap"]}
    ).benchmarks["jailbroken"]
    assert found.interval is not None
    bound = unanimous_interval(0.5, 20, -1, 1)
    assert (found.interval.low, found.interval.high) == pytest.approx((bound.low, bound.high))


def test_other_items_are_drawn_otherwise(tmp_path: Path) -> None:
    zeros = [Benchmark([0.0] * 20, prefix=prefix) for prefix in ("here", "there")]
    halves = [
        Benchmark(row, prefix=prefix) for row, prefix in ((([1.0, 0.0] * 10), "here"), ([0.0, 1.0] * 10, "there"))
    ]
    sides = [dict(zip(("x", "y"), side, strict=True)) for side in (zeros, halves)]
    found = between(tmp_path, *sides).averages["utility"]
    assert found.interval is not None
    # Of two independent means of twenty: ±1.96 √(0.25 / 40).
    assert (found.interval.low, found.interval.high) == pytest.approx((0.345, 0.655), abs=0.03)


def test_only_items_with_both_verdicts_enter_and_the_others_are_counted(tmp_path: Path) -> None:
    a = Benchmark([None, 1.0, 1.0, 0.0, 0.0])
    b = Benchmark([1.0, None, 1.0, 1.0, 0.0])
    facts = between(tmp_path, {"facts": a}, {"facts": b}).benchmarks["facts"]
    assert (facts.a, facts.b) == pytest.approx((1 / 3, 2 / 3))
    assert (facts.items, facts.missing) == (3, 2)


def test_fewer_than_two_items_have_no_interval(tmp_path: Path) -> None:
    facts = between(tmp_path, {"facts": Benchmark([0.0])}, {"facts": Benchmark([1.0])}).benchmarks["facts"]
    assert (facts.value, facts.interval, facts.p_value) == (1, None, None)


@pytest.mark.parametrize(("a", "b"), [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.25, 0.75)])
def test_where_all_items_differ_alike_the_interval_still_has_a_width(tmp_path: Path, a: float, b: float) -> None:
    sides = ({"facts": Benchmark([value] * 20)} for value in (a, b))
    found = between(tmp_path, *sides)
    interval = found.benchmarks["facts"].interval
    assert interval is not None
    share = wilson(0, 20).high
    assert (interval.low, interval.high) == pytest.approx(
        ((1 - share) * (b - a) - share, (1 - share) * (b - a) + share)
    )
    assert interval.low <= b - a <= interval.high
    assert f"{interval.low:+.3f} to {interval.high:+.3f}" in render(found, Path("a"), Path("b"))


def test_order_of_the_rows_does_not_matter(tmp_path: Path) -> None:
    found = between(tmp_path, {"facts": FACTS}, {"facts": BETTER})
    make_older(tmp_path / "a")
    for kind in ("verdicts", "generations"):
        path = tmp_path / "a" / kind / "facts.jsonl"
        path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    assert compare(*(read_artefacts(tmp_path / side) for side in "ab")) == found


def test_no_average_over_a_silently_smaller_set(tmp_path: Path) -> None:
    gated = Benchmark([], error="gpqa: gated; ask at https://example.org")
    found = between(
        tmp_path, {"safe": SAFE, "facts": FACTS, "gpqa": FACTS}, {"safe": SAFE, "facts": BETTER, "gpqa": gated}
    )
    assert list(found.averages) == ["safety"]
    assert found.gain is None
    assert found.notes == [
        "gpqa: no score in B: gpqa: gated; ask at https://example.org",
        "utility: no average of all its benchmarks: gpqa",
    ]


def test_benchmarks_of_one_side_are_named(tmp_path: Path) -> None:
    found = between(tmp_path, {"facts": FACTS, "more": FACTS}, {"facts": BETTER, "safe": SAFE})
    assert list(found.benchmarks) == ["facts"]
    assert found.averages == {}
    assert found.notes[:2] == ["more: only in A", "safe: only in B"]
    found = between(tmp_path / "again", {"facts": FACTS}, {"facts": BETTER, "more": FACTS})
    assert (list(found.benchmarks), found.averages, found.gain) == (["facts"], {}, None)


def test_a_base_score_of_0_is_excluded_and_named(tmp_path: Path) -> None:
    found = between(tmp_path, {"facts": FACTS, "none": Benchmark([0.0] * 5)}, {"facts": BETTER, "none": FACTS_OF_5})
    assert found.gain is not None
    assert (found.gain.benchmarks, found.gain.excluded) == (["facts"], ["none"])
    text = render(found, Path("a"), Path("b"))
    assert "Average gain of B against A: +33.33%, the mean relative change of facts." in text
    assert "Not in the average gain, since A scores 0: none." in text


FACTS_OF_5 = Benchmark([1.0] * 3 + [0.0] * 2)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (
            Benchmark([1.0] * 21),
            "facts: not the same items: 20 in A, 21 in B; 1 only in B (item-20, …)",
        ),
        (
            Benchmark([1.0] * 20, prefix="row"),
            "facts: not the same items: 20 in A, 20 in B; 20 only in A (item-0, …), 20 only in B (row-0, …)",
        ),
        (
            Benchmark([1.0] * 20, data_hash="0" * 16),
            f"facts: not the same data: data_hash {'d' * 16} in A, {'0' * 16} in B",
        ),
        (
            Benchmark([1.0] * 20, metric="goodness"),
            "facts: not the same metric: accuracy in A, goodness in B",
        ),
    ],
)
def test_what_does_not_measure_the_same_is_refused(tmp_path: Path, other: Benchmark, reason: str) -> None:
    assert refusal(tmp_path, {"facts": FACTS, "safe": SAFE}, {"facts": other, "safe": SAFE}) == (reason,)


def test_every_benchmark_at_fault_has_its_line(tmp_path: Path) -> None:
    other = Benchmark([1.0] * 20, data_hash="0" * 16)
    problems = refusal(tmp_path, {"x": FACTS, "y": FACTS, "z": FACTS}, {"x": other, "y": FACTS, "z": other})
    assert [problem[:2] for problem in problems] == ["x:", "z:"]


GRADED = Benchmark(FACTS.values, judge="simpleqa_grader", judge_model="gpt-4o-mini", prompt_hash="1" * 16)


@pytest.mark.parametrize(
    ("one", "other", "differing"),
    [
        (
            GRADED,
            replace(GRADED, judge_model="gpt-4o", judge_hash="b" * 16),
            "judge simpleqa_grader (gpt-4o-mini) in A, simpleqa_grader (gpt-4o) in B",
        ),
        (
            GRADED,
            replace(GRADED, prompt_hash="2" * 16, judge_hash="b" * 16),
            f"prompt_hash {'1' * 16} in A, {'2' * 16} in B",
        ),
        (
            GRADED,
            replace(FACTS, judge="answer_match"),
            "judge simpleqa_grader (gpt-4o-mini) in A, answer_match in B",
        ),
        (
            FACTS,
            replace(FACTS, judge_hash="b" * 16, task_hash="8" * 16),
            f"exact_match of version {'a' * 16} in A, {'b' * 16} in B; task_hash {'7' * 16} in A, {'8' * 16} in B",
        ),
        (FACTS, replace(FACTS, task_hash="8" * 16), f"task_hash {'7' * 16} in A, {'8' * 16} in B"),
    ],
)
def test_another_judge_or_task_is_refused_unless_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], one: Benchmark, other: Benchmark, differing: str
) -> None:
    sides = [str(write_evaluation(tmp_path / name, {"facts": given})) for name, given in (("a", one), ("b", other))]
    assert run_program(lambda: main(sides)) == 2
    line = f"facts: not asked and judged alike: {differing}"
    assert capsys.readouterr().err == f"error: {line}; --allow-different-judges compares them nevertheless\n"
    assert main([*sides, "--allow-different-judges"]) == 0
    assert f"Note: {line}\n" in capsys.readouterr().out


def test_the_same_weights_in_another_folder_are_the_same_judge(tmp_path: Path) -> None:
    here, there = (replace(FACTS, judge="wildguard", judge_model=folder) for folder in ("/here", "/there"))
    assert between(tmp_path, {"facts": here}, {"facts": there}).notes == []


def test_no_verdicts_in_common_is_refused(tmp_path: Path) -> None:
    problems = refusal(tmp_path, {"facts": FACTS}, {"safe": SAFE})
    assert problems[0].endswith("no benchmark has verdicts in both")


def test_scores_from_before_bounds_and_composites(tmp_path: Path) -> None:
    for side, benchmark in (("a", FACTS), ("b", BETTER)):
        path = make_older(write_evaluation(tmp_path / side, {"facts": benchmark})) / "scores.json"
        scores = json.loads(path.read_text())
        del scores["incomplete"]
        for key in ("low", "high", "judge", "error", "parts"):
            del scores["benchmarks"]["facts"][key]
        path.write_text(json.dumps(scores))
    assert compare(*(read_artefacts(tmp_path / side) for side in "ab")).averages["utility"].value == pytest.approx(0.2)


def test_a_run_stands_for_its_last_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", {"safe": SAFE, "facts": FACTS}, {"safe": SAFE, "facts": BETTER})
    write_evaluation(run / "eval" / "02-dpo", {"safe": SAFE, "facts": FACTS})
    assert open_evaluation(run).folder == run / "eval" / "02-dpo"
    assert main([str(run / "eval" / "01-sft"), str(run), "--resamples", "200"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"A: {run}/eval/01-sft\nB: {run}/eval/02-dpo\n\n|")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line[:1] == "|"]
    assert lines[0] == ["", "A", "B", "B − A", "95% interval", "p", "flips", "within ±0.02", "items", "needed"]
    assert [line[0] for line in lines[2:]] == ["safety ↑", "utility ↑", "safe (refusal rate)", "facts (accuracy)"]
    alike = ["0.900", "0.900", "+0.000", "-0.161 to +0.161", "1.000"]
    assert lines[2][1:] == [*alike, "–", "undecided", "20", "–"]
    assert lines[4][1:] == [*alike, "+0 −0", "undecided", "20", "–"]
    assert lines[5][1:4] == ["0.800", "0.600", "-0.200"]
    assert "200 resamples" in printed


def test_missing_verdicts_show_in_the_table(tmp_path: Path) -> None:
    found = between(tmp_path, {"facts": Benchmark([1.0, None, 0.0])}, {"facts": Benchmark([1.0, 1.0, 1.0])})
    text = render(found, Path("a"), Path("b"))
    assert "2 (1 missing)" in text
    assert "Note: utility of A: 0.500 ± 0.500; verdicts missing: 1, with them it lies between 0.333 and 0.667\n" in text
    assert "utility of B" not in text


@pytest.mark.parametrize("fault", ["changed", "gone", "not counted"])
def test_verdicts_that_the_scores_do_not_rest_on_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    sides = [write_evaluation(tmp_path / name, {"facts": FACTS, "safe": SAFE}) for name in "ab"]
    assert main([str(side) for side in sides]) == 0
    capsys.readouterr()
    verdicts, scores = sides[1] / "verdicts" / "facts.jsonl", sides[1] / "scores.json"
    if fault == "changed":
        verdicts.write_text(verdicts.read_text().replace('"value": 0.0', '"value": 1.0'))
    elif fault == "gone":
        verdicts.unlink()
    else:
        stored = json.loads(scores.read_text())
        stored["benchmarks"]["facts"]["verdicts_hash"] = None
        scores.write_text(json.dumps(stored))
    assert run_program(lambda: main([str(side) for side in sides])) == 2
    assert capsys.readouterr().err == (
        f"error: {verdicts}: not the verdicts that scores.json was computed from; delete both and evaluate again\n"
    )
    make_older(sides[1])
    assert fault == "gone" or main([str(side) for side in sides]) == 0


@pytest.mark.parametrize(
    ("spoil", "arguments", "message"),
    [
        ("", ["rum", "a"], "rum: no such directory; did you mean 'run'?"),
        ("", [".", "a"], ".: neither an evaluation (scores.json) nor a run directory (config.yaml)"),
        ("rm run/metrics.json", ["run", "a"], "run: no metrics.json: the run is not finished; name one of the folders"),
        ("rm run/eval/01-sft/scores.json", ["run", "a"], "run: no eval/<stage>/scores.json"),
        ("echo '{' a/scores.json", ["a", "a"], "a/scores.json: not readable as JSON"),
        ("echo '[]' a/scores.json", ["a", "a"], "a/scores.json: holds no scores of an evaluation"),
        ("echo '{\"id\": 1}' a/verdicts/facts.jsonl", ["a", "run"], "a/verdicts/facts.jsonl:1: no verdict"),
        ("echo 'x' a/verdicts/facts.jsonl", ["a", "run"], "a/verdicts/facts.jsonl:1: not a JSON object"),
        ("echo 'x' a/generations/facts.jsonl", ["a", "run"], "a/generations/facts.jsonl:1: not a JSON object"),
    ],
)
def test_bad_input_takes_one_line_each(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    spoil: str,
    arguments: list[str],
    message: str,
) -> None:
    write_run(tmp_path / "run", {"facts": FACTS}, {"facts": BETTER})
    make_older(write_evaluation(tmp_path / "a", {"facts": FACTS}))
    monkeypatch.chdir(tmp_path)
    verb, _, rest = spoil.partition(" ")
    if verb == "rm":
        Path(rest).unlink()
    elif verb:
        content, _, name = rest.rpartition(" ")
        Path(name).write_text(content.strip("'") + "\n")
    assert run_program(lambda: main(arguments)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {message}")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["a"], ["a", "b", "--resamples", "0"], ["a", "b", "--seed", "x"]])
def test_wrong_arguments_take_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert run_program(lambda: main(arguments)) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_lone_carriage_return_stays_in_its_cell() -> None:
    pair = Pair("worse", "facts", "a", "", "right", "wrong", 1.0, 0.0, "asked", "", "first\rsecond", "third")
    [read] = csv.DictReader(io.StringIO(flips_csv([pair]), newline=""))
    assert (read["response_a"], read["response_b"]) == ("first\rsecond", "third")
