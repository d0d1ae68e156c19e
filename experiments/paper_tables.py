"""The tables of an experiment: ours, the published values, and paired comparisons. Numbers are in percent."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import get_args

from eval.scores.equivalence import MARGIN, finding, pairs_needed
from eval.scores.statistics import ROUNDING, Summary, balanced_score, p_text, summarize
from experiments.comparisons import (
    AT_EQUAL_DISTANCE,
    AT_EQUAL_SAFETY,
    COMPARED,
    TO_USUAL,
    AtLevel,
    Comparison,
    EqualSafety,
    Membership,
    directions,
)
from experiments.costs import NOTES as COST_NOTES
from experiments.costs import Cost
from experiments.outcomes import BALANCED, SCORES, SECOND_HAND, Row, published, reference_of, rival, usual_of
from experiments.rows import Experiment
from ogpsa.config import StageName
from ogpsa.utils.table import Table, table_of

TITLES = {"safety": "safety ↑", "utility": "utility ↑", "over_refusal": "over-refusal ↓", "gain": "average gain ↑"}
LOWER_IS_BETTER = ("over_refusal", AT_EQUAL_SAFETY["over_refusal"])
MOVED = "moved"
RATES = "learning rates"
MOVED_NOTE = (
    "Moved: distance of the last weights from the untuned model's, as a share of the latter's length. "
    "Direction: cosine between their displacement and naive tuning's at the same seed; none where the weights of one "
    "of them were not kept. Naive tuning: the pipeline's first row without a method. "
    "Δ at equal distance: utility minus that of naive tuning which has moved as far, read off its points of the same "
    "seed at several multiples of the learning rates, interpolated by a monotone cubic; seeds beyond them do not count."
)
STAGES: tuple[StageName, ...] = get_args(StageName)
COURSES = {
    "norm retained": "projection/norm_retained",
    "cosine before": "projection/cosine",
    "cosine after": "projection/cosine_after",
    "safety loss": "loss",
    "reference loss": "projection/reference_loss",
}
# Of the RL stage, by title.
ROLLOUTS = {
    "reward": "reward",
    "harmful refused": "refused/harmful",
    "harmless refused": "refused/answerable",
    "flat groups": "frac_reward_zero_std",
    "tokens": "completions/mean_length",
    "cut": "completions/clipped_ratio",
    "KL to the start": "kl_to_start",
    "KL, penalised": "kl",
    "norm retained": "projection/norm_retained",
    "leak": "projection/leak",
}
NOT_RUN = "not run"
SCORES_NOTE = (
    "In %. Mean over seeds ± half the 95% t-interval; one seed has none, and –: nor have seeds that are all equal. "
    "Over-refusal: lower is better. Average gain: mean relative change of the benchmarks of both averages against the "
    "untuned model [inferred: so read here, not stated in the paper]; none where that scores 0 on one of them."
)
MISSING_NOTE = (
    "A response without a verdict, mostly an empty one, counts in no score. Benchmarks where more than "
    "one response in twenty has none, with the run that lacks most: {}."
)
# Share of a benchmark's responses without a verdict from which a table says so [ours].
MANY_MISSING = 0.05
RATES_NOTE = "All rows at × {:g} of their learning rates."
PUBLISHED_NOTE = (
    "Published: the paper's value with its source in brackets (abs: abstract, app: appendix, fig: read off its figure)"
)
SAME_MODEL = ", and ours minus it."
OTHER_MODEL = (
    "; it is of the paper's model, data and benchmarks. Ours is another model on other benchmarks: a difference would "
    "mean nothing, and none is shown."
)
DIFFERENCE_NOTE = (
    "Δ: difference to {}, paired by seed, with its 95% t-interval; in brackets p of a two-sided "
    "paired t-test, corrected by Holm over the column (in all tables of this page), and the number of pairs; –: all "
    "pairs differ by the same amount, nothing to test."
)
MARGIN_NOTE = (
    "What a difference's 90% t-interval says of a margin of two points: unchanged, the difference is smaller (two "
    "one-sided tests at 5%); not worse, any loss is smaller; worse, the loss is larger; needs N: none of these, "
    "and a test of N pairs at 5% would find a difference of two points with power 80%, at this spread. Unlike p, these "
    "words are not corrected for the number of comparisons."
)
EQUAL_NOTE = (
    "S: the safety of the pipeline's reference at the rates where rows are compared. Utility at S is read seed by seed "
    "off the Pareto front of the method's points, one per strength (multiple of the learning rates) at which the "
    "reference has run too, interpolated linearly between neighbours; the reference too may do better than its row at "
    "S, where a lower learning rate is as safe. Safer: seeds whose whole front is safer than S; their point of highest "
    "utility counts. No overlap: seeds whose points are all less safe than S; they have no number and no part in the "
    "means. Over-refusal at S: the same of the front of high safety and low over-refusal; balanced: the mean of S and "
    "100 less that over-refusal. Minus it: the row that the column names, less this row, both read at the strengths at "
    "which both have run. These differences are paired by seed, with a 95% t-interval, and are empty where no seed has "
    "both numbers; p: two-sided paired t-test, corrected by Holm over the column (in all tables of this page)."
)
SECOND_HAND_NOTE = (
    "[nspo]: by machine-written notes on NSPO's table, not by the paper itself, which could not be read: shown beside "
    "ours, and no difference is taken."
)
ATTACK_NOTE = "Attack success: 100 less the benchmark's safety score; lower is better."
FRONT_NOTE = (
    "On the front: no other row of the pipeline, nor the untuned model, is as good in safety and utility and better in "
    "one of them. By means: of the means at the rates where rows are compared, over the seeds that all rows have "
    "there. In seeds: the same seed by seed. At any strength: of all rows' means over these seeds at all multiples of "
    "the learning rates that have them all; the multiples at which the row is on that front."
)
OVER_REFUSAL_FRONT_NOTE = (
    "On the front: as against utility, of high safety and low over-refusal: no other row of the pipeline, nor the "
    "untuned model, is as good in both and better in one of them."
)
OVER_REFUSAL_NOTE = (
    "In %, mean over seeds ± half the 95% t-interval, by multiple of the row's learning rates. Balanced: the mean of "
    "safety and 100 less over-refusal, that is of refusing when one should and answering when one should; a model "
    "that refuses everything, or nothing, scores 50. Losses are in nats per token, lower is better."
)
LEVEL_NOTE = (
    "The lowest refusal (in %) of harmless requests that a row reaches at a refusal of harmful ones, seed by seed: "
    "read off the Pareto front of the untuned model and the row's points, one per strength, interpolated linearly "
    "between neighbours; seeds whose points all refuse less have no number. Highest common: what every row of the "
    "pipeline reaches in every seed that has run. Minus the reference: paired over the seeds that both have a number "
    "for, 95% t-interval; p: two-sided paired t-test, corrected by Holm over the pipeline's rows at that level."
)
LOSS_NOTE = (
    "In %, by multiple of the row's learning rates, mean over seeds: what is missing to a utility of 100 are answers "
    "that refuse and answers that are wrong."
)
ROLLOUT_NOTE = (
    "Mean over seeds, early → late: over the first and the last tenth of what the stage logged. Refused: share of the "
    "completions that decline. Flat groups: share of prompts whose completions all have the same reward, or none, from "
    "which nothing is learned. Tokens: length of a completion; cut: share that the cap ends. KL: where it is measured, "
    "or penalised. Norm retained: of the gradient, by OGPSA. Leak: share of the way gone that lies outside NSPO's null "
    "spaces; null share: median over layers of the directions that are null, mean over kinds of layers."
)
OVERLAP_NOTE = (
    "Mean over seeds, early → late: over the first and the last tenth of what the stage logged. Cosine: of the safety "
    "gradient with the capability subspace (the length of its part in it by its length), before and after projection; "
    "with a set: signed, with that set's gradient at the last estimate; below zero, a step raises the set's loss. "
    "Safety loss: the stage's training loss. Reference loss: mean over the reference sets, at each estimate."
)


def score_tables(experiment: Experiment, rows: Sequence[Row], comparisons: Sequence[Comparison]) -> list[Table]:
    """The averages of every row, what is published, and the differences."""
    compared = {(one.row, one.score): one for one in comparisons}
    references = _references(experiment, rows)
    shown = [score for score in SCORES if score in _published_scores(experiment, rows)]
    ours = all(row.comparable for row in rows)
    distances = _distances(rows)
    usuals = {found.name: found.label for row in rows if (found := usual_of(row, experiment, rows)) is not None}
    usual = ", ".join(dict.fromkeys(label for name, label in usuals.items() if name not in references))
    ways = directions(rows) if distances else {}

    def line(row: Row | None, name: str, summaries: dict[str, Summary | None], first: dict[str, str]) -> dict[str, str]:
        cells = first | {
            title: _score(found := summaries[score], row) + _fewer(found, row) for score, title in TITLES.items()
        }
        if distances:
            cells |= {MOVED: _moved(row) if row else "", "direction": _cosine(ways.get(name))}
        cells |= {f"published {score}": _published(name, score, summaries[score] if ours else None) for score in shown}
        if references:
            cells |= {f"Δ {_words(score)}": _difference(compared.get((name, score))) for score in COMPARED}
        if usual:
            cells |= {f"Δ utility to {usual}": _difference(compared.get((name, TO_USUAL)))}
        if distances:
            cells |= {"Δ at equal distance": _difference(compared.get((name, AT_EQUAL_DISTANCE)))}
        return cells

    tables = []
    for group, members in _groups(rows):
        base = _base(members)
        lines = [line(None, members[0].model, {score: base.get(score) for score in SCORES}, _untuned(seeds=""))]
        for row in members:
            summaries = {score: row.summary(score) for score in SCORES}
            lines.append(line(row, row.name, summaries, _named(row) | {"seeds": _seeds(row)}))
        tables.append(table_of(lines, group))
    rates = {row.strength for row in rows} - {1.0}
    notes = [*(RATES_NOTE.format(strength) for strength in rates), SCORES_NOTE, *([MOVED_NOTE] if distances else [])]
    if absent := _missing(rows):
        notes.append(MISSING_NOTE.format("; ".join(absent)))
    if shown:
        notes.append(PUBLISHED_NOTE + (SAME_MODEL if ours else OTHER_MODEL))
    if references:
        labels = dict.fromkeys(row.label for row in rows if row.name in references)
        whose = f"{', '.join(labels)} of the same pipeline" + (f", or to {usual}" if usual else "")
        notes += [DIFFERENCE_NOTE.format(whose), MARGIN_NOTE]
    return _with_notes(tables, notes)


def benchmark_tables(experiment: Experiment, rows: Sequence[Row]) -> list[Table]:
    """Benchmark by benchmark, where single ones are published."""
    if not all(row.comparable for row in rows) or _published_scores(experiment, rows) <= set(SCORES):
        return []
    tables = []
    for group, members in _groups(rows):
        base, model, names = _base(members), members[0].model, members[0].benchmarks
        lines = [_untuned() | {name: _with_published(base.get(name), None, model, name) for name in names}]
        lines += [
            _named(row) | {name: _with_published(row.summary(name), row, row.name, name) for name in names}
            for row in members
        ]
        lines += [
            {"pipeline": "", "row": f"{method} (published)"}
            | {name: _published(rival(model, method), name, None) for name in names}
            for method in dict.fromkeys(one.method for one in published().values() if one.model == model)
            if method is not None
        ]
        tables.append(table_of(lines, f"{group}, benchmark by benchmark"))
    notes = ["In %: ours; what is published, with its source, and ours minus it."]
    if any(row.attacks for row in rows):
        notes.append(ATTACK_NOTE)
    models = {row.model for row in rows}
    if any(entry.tag in SECOND_HAND and entry.model in models for entry in published().values()):
        notes.append(SECOND_HAND_NOTE)
    return _with_notes(tables, notes)


def front_tables(fronts: Sequence[Membership], against: str = "utility") -> list[Table]:
    """Which rows are on the Pareto front of safety against that score."""
    tables = []
    for group, members in _groups([one.row for one in fronts]):
        lines = []
        for one in (one for one in fronts if one.row in members):
            strengths = [f"× {strength:g}" for strength, on in sorted(one.strengths.items()) if on]
            cells = {
                "on the front by means": "yes" if one.mean else "no",
                "in seeds": f"{sum(one.seeds.values())} of {len(one.seeds)}",
                "at any strength": ", ".join(strengths) or "no",
            }
            lines.append(_named(one.row) | cells)
        title = "the Pareto front" if against == "utility" else "the Pareto front of safety against over-refusal"
        tables.append(table_of(lines, f"{group}: {title}"))
    return _with_notes(tables, [FRONT_NOTE if against == "utility" else OVER_REFUSAL_FRONT_NOTE])


def over_refusal_tables(rows: Sequence[Row]) -> list[Table]:
    """Safety against over-refusal at every multiple of the learning rates, with the losses and the way there."""
    titles = TITLES | {BALANCED: "balanced ↑"}
    shown = ("safety", "over_refusal", BALANCED, "utility")
    tables = []
    for group, members in _groups([row for row in rows if any(BALANCED in one.scores for one in row.results)]):
        fine = [
            *dict.fromkeys(name for row in members for name in row.losses),
            *([MOVED] if _distances(members) else []),
        ]
        base = _base(members)
        lines = [_untuned(**{RATES: "", "seeds": ""}) | {titles[score]: _score(base.get(score)) for score in shown}]
        lines[0] |= {name: _score(base.get(name), digits=3) for name in fine}
        for row, strength in [(member, strength) for member in members for strength in member.strengths]:
            seeds = f"{len(row.by_seed(strength))}/{len(row.planned(strength))}"
            cells = {titles[score]: _score(row.summary(score, strength)) for score in shown}
            cells |= {name: _score(row.summary(name, strength), digits=3) for name in fine}
            lines.append(_named(row) | {RATES: f"× {strength:g}", "seeds": seeds} | cells)
        tables.append(table_of(lines, f"{group}: safety against over-refusal"))
    return _with_notes(tables, [OVER_REFUSAL_NOTE])


def level_tables(levels: Sequence[AtLevel]) -> list[Table]:
    """Over-refusal at each level of safety."""
    tables = []
    pairs = dict.fromkeys((one.row.group, one.safety, one.over_refusal) for one in levels)
    for group, safety, over_refusal in pairs:
        lines = []
        for one in levels:
            if (one.row.group, one.safety, one.over_refusal) != (group, safety, over_refusal):
                continue
            cells = {
                f"{safety} refused": f"{one.level:.1f}" + (" (highest common)" if one.common else ""),
                f"{over_refusal} refused": _score(_summary(one.found.values())) or "not reached",
                "seeds with a number": f"{len(one.found)}/{len(one.seeds)}",
                "minus the reference": _difference(one.against),
            }
            lines.append(_named(one.row) | cells)
        tables.append(table_of(lines, f"{group}: {over_refusal} at a level of {safety}"))
    return _with_notes(tables, [LEVEL_NOTE, MARGIN_NOTE])


def strength_tables(rows: Sequence[Row]) -> list[Table]:
    """Safety, utility and over-refusal at every multiple of the learning rates, where there are several."""
    tables = []
    for group, members in _groups([row for row in rows if len(row.strengths) > 1]):
        strengths = sorted({strength for row in members for strength in row.strengths})
        lines = [_named(row) | {f"× {strength:g}": _pair(row, strength) for strength in strengths} for row in members]
        tables.append(table_of(lines, f"{group}: by strength"))
    moved = " and how far the weights moved" if _distances(rows) else ""
    told = f"In %, by multiple of the row's learning rates: safety, utility, over-refusal{moved}"
    return _with_notes(tables, [f"{told}; in brackets the seeds that have run, where some have not."])


def equal_safety_tables(equal: Sequence[EqualSafety], comparisons: Sequence[Comparison]) -> list[Table]:
    """The utility of each row at its reference's safety."""
    compared = {(one.against, one.score): one for one in comparisons}
    labels = {one.row.name: one.row.label for one in equal}
    ours = " / ".join(dict.fromkeys(labels[one.row] for one in comparisons))
    tables = []
    for group, members in _groups([one.row for one in equal]):
        lines = []
        for one in (one for one in equal if one.row in members):
            ats = list(one.utility.values())
            planned = set.intersection(*(set(one.row.planned(strength)) for strength in one.row.strengths))
            cells = {
                "S": _score(_summary(one.safety.values())),
                "utility at S": _score(_summary(one.found.values())) or ("no overlap" if ats else NOT_RUN),
                "seeds with a number": f"{len(one.found)}/{len(planned)}",
                "safer": str(sum(at is not None and at.safer for at in ats)),
                "no overlap": str(ats.count(None)),
            }
            if ours:
                cells[f"{ours} minus it"] = _difference(compared.get((one.row.name, AT_EQUAL_SAFETY["utility"])))
            if any(other.over_refusal for other in equal):
                balanced = [
                    100 * balanced_score(one.safety[seed] / 100, over_refusal / 100)
                    for seed, over_refusal in one.over_refusal.items()
                ]
                difference = compared.get((one.row.name, AT_EQUAL_SAFETY["over_refusal"]))
                cells |= {
                    "over-refusal at S": _score(_summary(one.over_refusal.values())),
                    "balanced at S": _score(_summary(balanced)),
                }
                cells |= {f"{ours}'s over-refusal minus its": _difference(difference)} if ours else {}
            lines.append(_named(one.row) | cells)
        tables.append(table_of(lines, f"{group}: utility at equal safety"))
    return _with_notes(tables, [EQUAL_NOTE, MARGIN_NOTE])


def loss_tables(rows: Sequence[Row]) -> list[Table]:
    """The parts of the utility missing to 100, at every multiple of the learning rates that has run."""
    tables = []
    for group, members in _groups(rows):
        lines = []
        for row, strength in [(member, strength) for member in members for strength in member.strengths]:
            utility = row.values("utility", strength)
            results = row.by_seed(strength)
            refused = {seed: share for seed in utility if (share := results[seed].refused) is not None}
            wrong = [100 - utility[seed] - share for seed, share in refused.items()]
            cells = {RATES: f"× {strength:g}", "utility ↑": _score(_summary(utility.values()), row)}
            cells |= {"refused": _score(_summary(refused.values())), "wrong": _score(_summary(wrong))}
            lines.append(_named(row) | cells)
        tables.append(table_of(lines, f"{group}: how utility was lost"))
    return _with_notes(tables, [LOSS_NOTE])


def cost_tables(spent: Sequence[Cost]) -> list[Table]:
    """The cost of each method, where it is counted."""
    lines = [_named(one.row) | {"seeds": _seeds(one.row)} | one.cells() for one in spent]
    return [table_of(lines, "What it costs", COST_NOTES)] if lines else []


def overlap_tables(rows: Sequence[Row]) -> list[Table]:
    """Cosines and losses, early and late in each stage."""
    projections = [row.config.method.projection(stage.name) for row in rows for stage in row.config.stages]
    sets = dict.fromkeys(name for one in projections if one is not None for name in one.reference_sets)
    courses = COURSES | {f"cosine with {name}": f"projection/signed_cosine/{name}" for name in sets}
    lines = [
        {"stage": stage.upper(), **_named(row), "seeds": _seeds(row)}
        | {title: _early_late(row.course(stage, key)) if row.by_seed() else NOT_RUN for title, key in courses.items()}
        for stage in STAGES
        for row in rows
        if stage in (own.name for own in row.config.stages)
    ]
    return [table_of(lines, "Overlap of gradients, and losses", [OVERLAP_NOTE])] if lines else []


def rollout_tables(rows: Sequence[Row]) -> list[Table]:
    """What the RL stage's log says of the completions and of the method, early and late."""
    members = [row for row in rows if any(stage.name == "grpo" for stage in row.config.stages)]
    lines = [
        {**_named(row), "seeds": _seeds(row)}
        | {title: _early_late(row.course("grpo", key)) if row.by_seed() else NOT_RUN for title, key in ROLLOUTS.items()}
        | {"null share": _null_share(row)}
        for row in members
    ]
    return [table_of(lines, "The RL stage: completions and methods", [ROLLOUT_NOTE])] if lines else []


def _null_share(row: Row) -> str:
    """The median over layers of their null share, mean over kinds of layers and seeds."""
    names = {name for result in row.by_seed().values() for line in result.run.history("grpo") for name in line}
    shares = [
        share
        for name in names
        if name.startswith("projection/null_share/") and name.endswith("/median")
        for _, share in row.course("grpo", name)
    ]
    return f"{fmean(shares):.2f}" if shares else ""


def _groups(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    return [(group, [row for row in rows if row.group == group]) for group in dict.fromkeys(row.group for row in rows)]


def _distances(rows: Sequence[Row]) -> bool:
    """Whether it is known how far the weights moved."""
    return any(row.values("moved") for row in rows)


def _references(experiment: Experiment, rows: Sequence[Row]) -> set[str]:
    """The rows that others are compared with."""
    return {found.name for row in rows if (found := reference_of(row, experiment, rows)) is not None}


def _published_scores(experiment: Experiment, rows: Sequence[Row]) -> set[str]:
    """Published numbers of the experiment's rows; those of an ablation's reference belong to table1."""
    names = {row.name for row in rows} - _references(experiment, rows)
    return {score for name, score in published() if name in names}


def _with_notes(tables: Sequence[Table], notes: Sequence[str]) -> list[Table]:
    """The notes under the last of ``tables``."""
    return [*tables[:-1], *(replace(last, notes=notes) for last in tables[-1:])]


def _base(rows: Sequence[Row]) -> dict[str, Summary]:
    """The untuned model's scores, over seeds if each has its own; nothing before one of ``rows`` has run."""
    # Seeds may have bases of their own: of a row with all of them.
    row = max(rows, key=lambda row: len(row.bases))
    bases = [base for number, base in enumerate(row.bases) if base not in row.bases[:number]]
    return {name: summarize([base[name] for base in (row.bases if len(bases) > 1 else bases)]) for name in row.base}


def _named(row: Row) -> dict[str, str]:
    return {"pipeline": row.pipeline, "row": row.label}


def _words(score: str) -> str:
    return score.replace("_", "-")


def _untuned(**more: str) -> dict[str, str]:
    return {"pipeline": "", "row": "untuned"} | more


def _missing(rows: Sequence[Row]) -> list[str]:
    """Benchmarks of which a run lacks many verdicts, each with the run that lacks most."""
    worst: dict[str, tuple[float, str]] = {}
    for row in rows:
        for seed, result in row.by_seed().items():
            for name, entry in result.run.last["benchmarks"].items():
                missing = entry.get("missing", 0)
                total = missing + entry.get("n", 0)
                if missing > MANY_MISSING * total:
                    told = f"{name} {missing} of {total} ({row.name}, seed {seed})"
                    worst[name] = max(worst.get(name, (0.0, "")), (missing / total, told))
    return [told for _, (_, told) in sorted(worst.items())]


def _seeds(row: Row) -> str:
    done, planned = len(row.by_seed()), len(row.planned())
    return str(done) if done == planned else f"{done}/{planned}"


def _summary(values: Iterable[float]) -> Summary | None:
    known = list(values)
    return summarize(known) if known else None


def _score(summary: Summary | None, row: Row | None = None, digits: int = 1) -> str:
    """Empty where there is no number, or why: ``row`` has not run."""
    if summary is None:
        return NOT_RUN if row is not None and not row.by_seed() else ""
    return f"{summary.mean:.{digits}f}{_spread(summary, digits)}"


def _fewer(summary: Summary | None, row: Row | None) -> str:
    """How many seeds have the score, where some that have run lack it."""
    if summary is None or row is None or summary.n == len(row.by_seed()):
        return ""
    return f" (n = {summary.n})"


def _moved(row: Row, strength: float | None = None) -> str:
    """How far the weights have moved: a real model's go less than a tenth of a percent."""
    summary = row.summary("moved", strength)
    return _score(summary, digits=1 if summary is None or summary.mean >= 1 else 3)


def _spread(summary: Summary, digits: int = 1) -> str:
    """Half the interval: nothing for one seed, a dash where all seeds are equal."""
    if summary.half_width is None:
        return ""
    return " ± –" if summary.half_width < ROUNDING else f" ± {summary.half_width:.{digits}f}"


def _cosine(summary: Summary | None) -> str:
    if summary is None:
        return ""
    return f"{summary.mean:.2f}{_spread(summary, 2)}"


def _pair(row: Row, strength: float) -> str:
    scores = [_score(row.summary(score, strength)) for score in ("safety", "utility", "over_refusal")]
    told = ", ".join(filter(None, [*scores, _moved(row, strength)])) or (NOT_RUN if strength in row.strengths else "")
    run, planned = len(row.by_seed(strength)), len(row.planned(strength))
    return f"{told} ({run}/{planned})" if 0 < run < planned else told


def _published(name: str, score: str, ours: Summary | None) -> str:
    """A published value with its source, and ours minus it if it was read in the paper; empty where there is none."""
    entry = published().get((name, score))
    if entry is None:
        return ""
    difference = "" if ours is None or entry.tag in SECOND_HAND else f", {_signed(ours.mean - entry.value)}"
    return f"{entry.value:.2f} [{entry.tag}]{difference}"


def _with_published(summary: Summary | None, row: Row | None, name: str, score: str) -> str:
    return "; ".join(filter(None, (_score(summary, row), _published(name, score, summary))))


def _difference(one: Comparison | None) -> str:
    if one is None:
        return ""
    summary, narrow, variance = one.paired.difference, one.paired.narrow, one.paired.variance
    if summary.half_width is None:
        return f"{_signed(summary.mean)} (n = 1)"
    told = [p_text(one.p), f"n = {summary.n}"]
    if narrow is not None and variance is not None:
        found = finding(narrow, 100 * MARGIN, one.score in LOWER_IS_BETTER)
        told.append(f"needs {pairs_needed(variance, 100 * MARGIN)}" if found == "undecided" else found)
    return f"{_signed(summary.mean)}{_spread(summary)} ({'; '.join(told)})"


def _signed(value: float) -> str:
    """With its sign, which a value that rounds to zero has not."""
    return f"{value:+.1f}" if round(value, 1) else "0.0"


def _early_late(course: Sequence[tuple[int, float]]) -> str:
    part = max(1, len(course) // 10)
    early, late = (sum(value for _, value in piece) / part for piece in (course[:part], course[-part:]))
    return f"{early:.3g} → {late:.3g}" if course else ""
