"""``python -m eval pareto``: which runs enter, how they are grouped and compared, and what is written."""

import csv
import json
import random
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from matplotlib.image import imread
from omegaconf import OmegaConf
from scipy import stats

from eval.pareto.collect import collect
from eval.pareto.collection import Group, World
from eval.pareto.command import main, write
from eval.scores.statistics import Summary, hypervolume, pareto_front, summarize
from ogpsa.app.validate import load_config
from ogpsa.utils.command_line import run_program
from ogpsa.utils.errors import UserError

ROOT = Path(__file__).parents[3]
BASE = {"safety": 0.5, "utility": 0.9, "over_refusal": 0.1}
WRITTEN = [
    *(f"pareto.{ending}" for ending in ("csv", "json", "md", "pdf", "png", "tex")),
    *(f"pareto_over_refusal.{ending}" for ending in ("pdf", "png")),
]


@cache
def config_text(overrides: str) -> str:
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        raw: Any = OmegaConf.to_container(compose("config", ["tracker=none", *overrides.split()]), resolve=True)
    return str(yaml.safe_dump(load_config(raw).model_dump(mode="json"), sort_keys=False))


def make_run(
    directory: Path,
    overrides: str = "method=baseline",
    safety: float | None = 0.8,
    utility: float | None = 0.7,
    over_refusal: float | None = 0.2,
    base: dict[str, Any] = BASE,
) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(config_text(overrides))
    scores = {"safety": safety, "utility": utility, "over_refusal": over_refusal}
    last = scores | with_benchmarks(scores)
    metrics = scores | {"base": base | with_benchmarks(base), "stages": {"sft": last}}
    (directory / "metrics.json").write_text(json.dumps(metrics))
    return directory


def with_benchmarks(scores: dict[str, Any]) -> dict[str, Any]:
    """One benchmark a group that has its score, and one of utility that never lacks it."""
    entries = {f"{group}_set": {"group": group, "value": value} for group, value in scores.items()}
    if scores["over_refusal"] is None:
        del entries["over_refusal_set"]
    return {"benchmarks": entries | {"facts": {"group": "utility", "value": 0.5}}}


def only_world(directory: Path) -> World:
    (world,) = collect([directory]).worlds
    return world


def labels(directory: Path) -> list[str]:
    return [group.label for group in only_world(directory).groups]


def standings(world: World) -> dict[str, str]:
    return {f"{group.pipeline} {group.label}": world.standing(group) for group in world.groups}


def scores_of(group: Group) -> list[float]:
    return [run.scores.safety for run in group.runs]


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([], []),
        ([(0.1, 0.1)], [True]),
        ([(1, 0), (0, 1), (0.5, 0.5), (0.4, 0.5)], [True, True, True, False]),
        ([(0.5, 0.5), (0.5, 0.5), (0.4, 0.4), (0.4, 0.4)], [True, True, False, False]),
        ([(0.5, 0.7), (0.5, 0.6), (0.6, 0.6)], [True, False, True]),
    ],
)
def test_pareto_front_by_hand(points: list[tuple[float, float]], front: list[bool]) -> None:
    assert pareto_front(points) == front


@pytest.mark.parametrize(
    ("points", "area"),
    [
        ([], 0),
        ([(0.5, 0.5)], 0.25),
        ([(0.5, 0.5), (0.5, 0.5), (0.25, 0.5)], 0.25),
        ([(1, 0.25), (0.5, 0.5), (0.25, 1)], 0.25 + 0.125 + 0.125),
        ([(1, 1), (0.5, 0.75)], 1),
        ([(0.5, 0), (0, 0.5), (-1, 2)], 0),
    ],
)
def test_hypervolume_by_hand(points: list[tuple[float, float]], area: float) -> None:
    assert hypervolume(points) == area


def test_front_and_hypervolume_agree_with_a_count_of_grid_cells() -> None:
    generator = random.Random(0)
    size = 16
    for _ in range(100):
        corners = [(generator.randint(0, size), generator.randint(0, size)) for _ in range(generator.randint(1, 8))]
        cells = {(x, y) for x in range(size) for y in range(size) if any(x < a and y < b for a, b in corners)}
        points = [(a / size, b / size) for a, b in corners]
        assert hypervolume(points) == len(cells) / size**2
        on_front = [point for point, on in zip(points, pareto_front(points), strict=True) if on]
        assert hypervolume(on_front) == hypervolume(points)
        for point in set(on_front):
            others = [other for other in on_front if other != point]
            assert not any(other[0] >= point[0] and other[1] >= point[1] for other in others)


def test_interval_over_seeds_is_student_t() -> None:
    values = [0.71, 0.64, 0.69, 0.75, 0.70]
    summary = summarize(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=summary.mean, scale=stats.sem(values))
    assert summary.n == 5
    assert summary.mean == pytest.approx(sum(values) / 5)
    assert summary.half_width == pytest.approx((high - low) / 2)
    assert summarize([0.1] * 6) == Summary(6, 0.1, 0.0)


def test_one_seed_has_no_interval_and_none_no_mean() -> None:
    assert summarize([0.5]) == Summary(1, 0.5, None)
    with pytest.raises(ValueError, match="at least one"):
        summarize([])


def test_runs_are_found_below_a_directory_and_nothing_below_a_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a" / "b" / "run", "seed=1")
    make_run(run / "wandb" / "files", "seed=2")
    make_run(tmp_path / ".cache" / "base", "seed=3")
    collection = collect([tmp_path, tmp_path / "a", run])
    (found,) = collection.worlds[0].groups[0].runs
    assert (found.root, found.directory, found.seed) == (str(tmp_path), "a/b/run", 1)
    assert collection.left_out == []
    assert collect([run]).worlds[0].groups[0].runs[0].directory == "."


# Files of a run that cannot be used, with the reason; the first are quick.
DAMAGED: list[tuple[str, str | None, str]] = [
    ("metrics.json", None, "no metrics.json: the run is not finished"),
    ("metrics.json", '{"safety": 0.', "metrics.json: not readable as JSON"),
    ("metrics.json", "[]", "metrics.json: found list, expected an object with safety, utility, over_refusal"),
    ("metrics.json", '{"safety": 0.5, "over_refusal": 0, "base": {}}', "metrics.json: utility is missing"),
    ("metrics.json", '{"safety": 0.5, "utility": 1}', "metrics.json: over_refusal is missing"),
    ("metrics.json", '{"safety": 0, "utility": 1, "over_refusal": 0}', "metrics.json: base: found NoneType"),
    ("metrics.json", '{"safety": NaN}', "metrics.json: not readable as JSON (NaN is not a JSON number)"),
    ("metrics.json", '{"safety": 71.5}', "metrics.json: safety: found 71.5, expected a number from 0 to 1"),
    ("metrics.json", '{"safety": true}', "metrics.json: safety: found True, expected a number from 0 to 1"),
    (
        "metrics.json",
        '{"safety": null, "utility": 1, "over_refusal": 0, "stages": {"sft": {"benchmarks": {"facts": 1}}}, '
        '"base": {"safety": 0.5, "utility": 1, "over_refusal": 0}}',
        "metrics.json: stages: sft: benchmarks: expected an object with an object for each benchmark",
    ),
    (
        "metrics.json",
        '{"safety": 0, "utility": 1, "over_refusal": 0, "stages": [1], '
        '"base": {"safety": 0.5, "utility": 1, "over_refusal": 0}}',
        "metrics.json: stages: found list, expected an object with their scores",
    ),
    ("config.yaml", "a: [", "config.yaml: not readable as a configuration"),
    ("config.yaml", "", "config.yaml: not readable as a configuration"),
    ("config.yaml", "seed: 1", "config.yaml: stage.name is missing"),
]


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [*DAMAGED[:2], *(pytest.param(*case, marks=pytest.mark.slow) for case in DAMAGED[2:])],
)
def test_a_run_that_cannot_be_used_is_left_out_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, content: str | None, reason: str
) -> None:
    make_run(tmp_path / "good")
    bad = make_run(tmp_path / "bad") / file
    bad.unlink() if content is None else bad.write_text(content)
    assert main([str(tmp_path)]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out: ")]
    assert line.startswith(f"left out: {tmp_path / 'bad'}: {reason}")
    (left_out,) = json.loads((tmp_path / "pareto.json").read_text())["left_out"]
    assert left_out["directory"] == "bad"
    assert left_out["reason"].startswith(reason)
    assert reason in (tmp_path / "pareto.md").read_text()


def test_an_unfinished_run_alone_is_the_users_mistake(tmp_path: Path) -> None:
    (make_run(tmp_path / "run") / "metrics.json").unlink()
    with pytest.raises(UserError, match="run is not finished") as caught:
        collect([tmp_path])
    assert len(caught.value.problems) == 2


def test_seeds_of_one_configuration_form_a_group_whatever_its_tracker_and_cache(tmp_path: Path) -> None:
    for seed, safety in enumerate((0.7, 0.8, 0.9)):
        make_run(tmp_path / str(seed), f"method=baseline seed={seed} tracker.tags=[t{seed}] cache_dir=c{seed}", safety)
    (group,) = only_world(tmp_path).groups
    assert (group.pipeline, group.label, scores_of(group)) == ("sft_dpo", "baseline", [0.7, 0.8, 0.9])
    assert group.scores.safety == summarize([0.7, 0.8, 0.9])
    assert group.change.safety == pytest.approx(0.3)
    assert group.change.utility == pytest.approx(-0.2)
    assert group.change.over_refusal == pytest.approx(0.1)


def test_two_values_of_a_key_are_both_named(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "method=ogpsa method.samples=50")
    make_run(tmp_path / "b", "method=ogpsa method.samples=100")
    make_run(tmp_path / "c", "method=baseline")
    assert labels(tmp_path) == ["baseline", "ogpsa samples=50", "ogpsa samples=100"]


@pytest.mark.slow
def test_a_methods_default_is_not_named_but_noted(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "method=ogpsa_merge method.scope=global method.weight=0.5")
    make_run(tmp_path / "b", "method=ogpsa_merge method.scope=tensor method.weight=0.5")
    make_run(tmp_path / "c", "method=ogpsa_merge method.scope=global method.weight=0.25")
    assert labels(tmp_path) == ["ogpsa_merge", "ogpsa_merge scope=tensor", "ogpsa_merge weight=0.25"]
    assert collect([tmp_path]).notes == ["ogpsa_merge: where a label does not say otherwise, scope=global weight=0.5"]


def test_the_usual_value_of_a_key_is_not_named_but_noted(tmp_path: Path) -> None:
    for name, overrides in {
        "a": "method.rank=per_set",
        "b": "method.rank=10",
        "c": "method.rank=2 method.scope=tensor",
        "d": "method.rank={sft:4,dpo:2}",
    }.items():
        make_run(tmp_path / name, f"method=ogpsa {overrides}")
    collection = collect([tmp_path])
    assert [group.label for group in collection.worlds[0].groups] == [
        "ogpsa",
        "ogpsa rank=2 scope=tensor",
        "ogpsa rank=10",
        "ogpsa rank={sft:4,dpo:2}",
    ]
    assert collection.notes == ["ogpsa: where a label does not say otherwise, rank=per_set scope=global"]


def test_other_keys_are_named_by_their_shortest_unambiguous_ending(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "method=baseline stage.sft.learning_rate=1e-3 stage.dpo.beta=0.1")
    make_run(tmp_path / "b", "method=baseline stage.sft.learning_rate=1e-4 stage.dpo.beta=0.2")
    make_run(tmp_path / "c", "method=ogpsa stage.sft.learning_rate=1e-4 stage.dpo.beta=0.2")
    assert labels(tmp_path) == [
        "baseline beta=0.1 sft.learning_rate=0.001",
        "baseline beta=0.2 sft.learning_rate=0.0001",
        "ogpsa",
    ]


def test_a_key_that_only_some_runs_have_tells_them_apart(tmp_path: Path) -> None:
    make_run(tmp_path / "new")
    old = make_run(tmp_path / "old") / "config.yaml"
    config = yaml.safe_load(old.read_text())
    del config["stage"]["dpo"]["beta"]
    old.write_text(yaml.safe_dump(config))
    assert labels(tmp_path) == ["baseline beta=0.2", "baseline beta=unset"]


def test_worlds_differ_in_model_data_and_evaluation_and_are_never_averaged(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "method=ogpsa data.seed=0", 0.7)
    make_run(tmp_path / "b", "method=ogpsa data.seed=1", 0.8)
    make_run(tmp_path / "c", "method=ogpsa data.seed=1 eval.limit=50", 0.9)
    make_run(tmp_path / "d", "method=ogpsa data.seed=1 eval.limit=50 eval.safety=[harmful_seen] seed=1", 0.6)
    worlds = collect([tmp_path]).worlds
    assert {world.name: [scores_of(group) for group in world.groups] for world in worlds} == {
        "tiny, testbed seed 0": [[0.7]],
        "tiny, testbed seed 1 limit=50 safety=[harmful_seen]": [[0.6]],
        "tiny, testbed seed 1 limit=50 safety=[harmful_seen,harmful_heldout]": [[0.9]],
        "tiny, testbed seed 1 limit=null safety=[harmful_seen,harmful_heldout]": [[0.8]],
    }
    assert {group.label for world in worlds for group in world.groups} == {"ogpsa"}


def test_a_variant_has_the_same_label_in_all_worlds(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "method=ogpsa data.seed=0 method.rank=2")
    make_run(tmp_path / "b", "method=ogpsa data.seed=1 method.rank=4")
    assert [group.label for world in collect([tmp_path]).worlds for group in world.groups] == [
        "ogpsa rank=2",
        "ogpsa rank=4",
    ]


def test_a_seed_that_is_there_twice_is_kept_once_and_noted(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "seed=3", 0.7)
    make_run(tmp_path / "b", "seed=3", 0.8)
    make_run(tmp_path / "c", "seed=4", 0.9)
    collection = collect([tmp_path])
    (group,) = collection.worlds[0].groups
    assert scores_of(group) == [0.7, 0.9]
    (note,) = collection.notes
    assert note.endswith(f"two runs of seed 3: {tmp_path / 'a'} is kept, {tmp_path / 'b'} (other scores) is not")


def test_bases_that_disagree_within_a_world_are_noted(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "seed=0", 0.7)
    make_run(tmp_path / "b", "seed=1", 0.7, base=BASE | {"safety": 0.6})
    collection = collect([tmp_path])
    (world,) = collection.worlds
    assert world.base.safety == pytest.approx(0.55)
    assert world.groups[0].change.safety == pytest.approx(0.15)
    (note,) = collection.notes
    assert "the runs disagree on the base's safety by up to 0.1" in note


def test_bases_that_disagree_within_a_seed_are_noted(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "seed=1", 0.7)
    make_run(tmp_path / "b", "seed=1 method=baseline", 0.7, base=BASE | {"safety": 0.6})
    make_run(tmp_path / "c", "seed=2", 0.7)
    make_run(tmp_path / "d", "seed=2 method=baseline", 0.7)
    [over_all, within] = collect([tmp_path]).notes
    assert "the runs disagree on the base's safety by up to 0.1" in over_all
    assert (
        "the runs of seed 1 disagree on the base's safety by up to 0.1: if they began with different models" in within
    )


def test_over_refusal_may_be_unmeasured(tmp_path: Path) -> None:
    make_run(tmp_path / "run", over_refusal=None, base=BASE | {"over_refusal": None})
    assert main([str(tmp_path)]) == 0
    (group,) = only_world(tmp_path).groups
    assert group.scores.over_refusal is None
    assert group.change.over_refusal is None
    (row,) = csv.DictReader((tmp_path / "pareto.csv").open())
    assert row["over_refusal"] == row["over_refusal_base"] == ""
    text = (tmp_path / "pareto.md").read_text()
    assert "n/a" in text and "over-refusal\n" not in text
    assert not list(tmp_path.glob("pareto_over_refusal.*"))


def written_rows(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "pareto.csv").open() as file:
        return {row["variant"]: row for row in csv.DictReader(file)}


@pytest.mark.slow
def test_a_run_without_utility_is_in_the_table_and_on_no_front(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other run is dominated by it in safety and over-refusal, and has the front of utility to itself."""
    make_run(tmp_path / "whole", "method=baseline", 0.6, 0.95, 0.2)
    make_run(tmp_path / "lacking", "method=ogpsa", 0.9, None, 0.1)
    assert main([str(tmp_path)]) == 0
    world = only_world(tmp_path)
    assert standings(world) == {"sft_dpo baseline": "overall", "sft_dpo ogpsa": ""}
    assert [front.hypervolume for front in world.fronts] == pytest.approx([0.6 * 0.95] * 2)
    assert [group.hypervolume for group in world.groups] == [pytest.approx(0.6 * 0.95), None]
    assert [world.standing(group, "over_refusal") for group in world.groups] == ["", "overall"]
    text = (tmp_path / "pareto.md").read_text()
    assert "| sft_dpo | ogpsa | 1 | 0.900 ± – (+0.400) | n/a | 0.100 ± – (+0.000) |  | n/a |" in text
    assert "Left out" not in text
    row = written_rows(tmp_path)["ogpsa"]
    assert row["utility"] == row["utility_change"] == row["hypervolume"] == row["front"] == ""
    note = "tiny, testbed seed 0: sft_dpo: ogpsa: no utility score, shown as n/a: utility_set without a score in {}"
    assert collect([tmp_path]).notes == [note.format(tmp_path / "lacking")]
    assert note.format(tmp_path / "lacking") in capsys.readouterr().err
    stored = json.loads((tmp_path / "pareto.json").read_text())["worlds"][0]["groups"][1]["runs"][0]
    assert (stored["scores"]["utility"], stored["incomplete"]) == (None, {"utility": ["utility_set"]})


@pytest.mark.slow
def test_a_run_that_lacks_a_score_is_not_drawn(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "whole", "method=baseline", 0.6, 0.95)
    write(collect([tmp_path / "runs"]), tmp_path / "before")
    make_run(tmp_path / "runs" / "lacking", "method=ogpsa", 0.9, None)
    write(collect([tmp_path / "runs"]), tmp_path / "after")
    for picture, same in (("pareto", True), ("pareto_over_refusal", False)):
        before, after = ((tmp_path / place / f"{picture}.png").read_bytes() for place in ("before", "after"))
        assert (before == after) == same


@pytest.mark.slow
def test_one_seed_without_utility_leaves_the_mean_of_its_group_empty(tmp_path: Path) -> None:
    for seed, utility in enumerate((0.7, None, 0.8)):
        make_run(tmp_path / str(seed), f"method=baseline seed={seed}", 0.8, utility)
    collection = collect([tmp_path])
    (group,) = collection.worlds[0].groups
    assert (len(group.runs), group.scores.utility, group.change.utility) == (3, None, None)
    assert group.scores.safety == summarize([0.8] * 3)
    (note,) = collection.notes
    assert note.endswith(f"utility_set without a score in {tmp_path / '1'}")


def test_a_base_without_utility_is_on_no_front(tmp_path: Path) -> None:
    lacking = BASE | {"utility": None}
    make_run(tmp_path / "a", "method=baseline", 0.4, 0.8, base=lacking)
    make_run(tmp_path / "b", "method=ogpsa", 0.3, 0.9, base=lacking)
    assert main([str(tmp_path)]) == 0
    collection = collect([tmp_path])
    (world,) = collection.worlds
    assert (world.base_point(), world.fronts[0].base_on_front) == (None, False)
    assert set(standings(world).values()) == {"overall"}
    assert [group.hypervolume for group in world.groups] == pytest.approx([0.32, 0.27])
    assert world.fronts[0].hypervolume == pytest.approx(0.3 * 0.9 + 0.1 * 0.8)
    text = (tmp_path / "pareto.md").read_text()
    assert "| – | base | – | 0.500 | n/a | 0.100 |  | n/a |" in text
    assert "| 0.400 ± – (-0.100) | 0.800 ± – | 0.200 ± – (+0.100) | overall | 0.320 |" in text
    assert collection.notes == [
        "tiny, testbed seed 0: the base: no utility score, shown as n/a: utility_set without a score in all runs"
    ]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == WRITTEN


@pytest.mark.parametrize(("base", "volume"), [(BASE, "0.450"), (BASE | {"utility": None}, "n/a")])
def test_a_sweep_without_any_utility_has_a_table_and_no_picture(
    tmp_path: Path, base: dict[str, Any], volume: str
) -> None:
    for name, safety in (("baseline", 0.6), ("ogpsa", None)):
        make_run(tmp_path / name, f"method={name}", safety, None, base=base)
    assert main([str(tmp_path)]) == 0
    text = (tmp_path / "pareto.md").read_text()
    assert "| sft_dpo | ogpsa | 1 | n/a | n/a | 0.200 ± – (+0.100) |  | n/a |" in text
    assert f"Hypervolume of the fronts: overall {volume}, sft_dpo {volume}." in text
    assert not (tmp_path / "pareto.png").exists()
    assert (tmp_path / "pareto_over_refusal.png").exists()
    assert "n/a" in (tmp_path / "pareto.tex").read_text()


def test_an_average_of_no_benchmark_is_noted(tmp_path: Path) -> None:
    metrics = make_run(tmp_path / "run", utility=None) / "metrics.json"
    metrics.write_text(metrics.read_text().replace('"group": "utility"', '"group": "reported"'))
    (note,) = collect([tmp_path]).notes
    assert note.endswith(f"none of its benchmarks was evaluated in {tmp_path / 'run'}")


def test_safety_against_over_refusal_by_hand(tmp_path: Path) -> None:
    """Of the base at (0.5, 0.1) and three runs one is dominated: as safe as the last, and it refuses more."""
    make_run(tmp_path / "a", "method=baseline", 1.0, 0.7, 1.0)
    make_run(tmp_path / "b", "method=lora", 0.8, 0.9, 0.4)
    make_run(tmp_path / "c", "method=ogpsa", 0.8, 0.6, 0.2)
    world = only_world(tmp_path)
    balanced = {group.method: group.scores.named()["balanced"] for group in world.groups}
    assert {name: one and one.mean for name, one in balanced.items()} == pytest.approx(
        {"baseline": 0.5, "lora": 0.7, "ogpsa": 0.8}
    )
    assert {group.method: world.standing(group, "over_refusal") for group in world.groups} == {
        "baseline": "overall",
        "lora": "",
        "ogpsa": "overall",
    }
    assert {group.method: world.standing(group) for group in world.groups}["lora"] == "overall"
    write(collect([tmp_path]), tmp_path / "out")
    (table,) = (tmp_path / "out" / "pareto.md").read_text().split("# Safety against over-refusal\n")[1:]
    assert "| 0.800 ± – (+0.300) | 0.200 ± – (+0.100) | 0.800 ± – (+0.100) | overall |" in table
    with (tmp_path / "out" / "pareto.csv").open() as file:
        assert {row["method"]: row["over_refusal_front"] for row in csv.DictReader(file)}["ogpsa"] == "overall"


def test_fronts_and_hypervolumes_by_hand(tmp_path: Path) -> None:
    base = {"safety": 0.5, "utility": 1.0, "over_refusal": 0.0}
    for seed, safety in ((0, 0.5), (1, 1.0)):
        make_run(tmp_path / f"a{seed}", f"stage=sft method=baseline seed={seed}", 1.0, 0.25, base=base)
        make_run(tmp_path / f"b{seed}", f"stage=sft method=ogpsa seed={seed}", safety, 0.75, base=base)
        make_run(tmp_path / f"c{seed}", f"stage=dpo method=baseline seed={seed}", 0.75, 0.5, base=base)
    world = only_world(tmp_path)
    # Means: sft baseline (1, 0.25), sft ogpsa (0.75, 0.75), dpo baseline (0.75, 0.5).
    assert standings(world) == {"dpo baseline": "pipeline", "sft baseline": "overall", "sft ogpsa": "overall"}
    assert [(front.pipeline, front.base_on_front, front.hypervolume) for front in world.fronts] == [
        (None, True, 0.5 + 0.1875 + 0.0625),
        ("dpo", True, 0.5 + 0.125),
        ("sft", True, 0.5 + 0.1875 + 0.0625),
    ]
    assert [group.hypervolume for group in world.groups] == [0.5 + 0.125, 0.5 + 0.125, 0.5 + 0.1875]


def test_a_front_is_of_the_seeds_that_all_groups_have(tmp_path: Path) -> None:
    better, worse = BASE | {"utility": 0.99}, BASE | {"utility": 0.8}
    make_run(tmp_path / "a0", "method=baseline seed=0", 1.0, 0.98, base=better)
    make_run(tmp_path / "a1", "method=baseline seed=1", 1.0, 0.79, base=worse)
    # Better than naive tuning's mean, and worse on the seed that both have.
    make_run(tmp_path / "b0", "method=ogpsa seed=0", 1.0, 0.97, base=better)
    found = collect([tmp_path])
    [world] = found.worlds
    assert standings(world) == {"sft_dpo baseline": "overall", "sft_dpo ogpsa": ""}
    assert world.base.utility == pytest.approx((0.99 + 0.8) / 2)
    differ = "the groups have run with different seeds; the front is over those that all have, 0"
    assert [note.partition(": ")[2] for note in found.notes if differ in note] == [
        f"all pipelines: {differ}",
        f"sft_dpo: {differ}",
    ]
    make_run(tmp_path / "c2", "method=lora seed=2", 1.0, 0.9, base=worse)
    [world] = collect([tmp_path]).worlds
    assert (world.fronts[0].members, world.fronts[0].hypervolume) == ([], None)


def test_the_base_can_dominate_a_group_and_be_dominated(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "method=baseline", 0.4, 0.8)
    world = only_world(tmp_path)
    assert (standings(world), world.fronts[0].base_on_front) == ({"sft_dpo baseline": ""}, True)
    make_run(tmp_path / "b", "method=ogpsa", 0.6, 0.95)
    world = only_world(tmp_path)
    assert (world.fronts[0].members, world.fronts[0].base_on_front) == ([("sft_dpo", "ogpsa")], False)


def test_all_files_are_written_whole_beside_the_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        make_run(tmp_path / f"n{seed}", f"method=baseline seed={seed}", 0.8 + seed / 100, 0.6)
        make_run(tmp_path / f"o{seed}", f"method=ogpsa seed={seed}", 0.8, 0.7 + seed / 100)
    assert main([str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == WRITTEN
    assert capsys.readouterr().out == (tmp_path / "pareto.md").read_text()
    table = (tmp_path / "pareto.md").read_text()
    assert "| sft_dpo | baseline | 3 | 0.810 ± 0.025 (+0.310) | 0.600 ± – (-0.300) |" in table

    rows = list(csv.DictReader((tmp_path / "pareto.csv").open()))
    world = only_world(tmp_path)
    assert [row["variant"] for row in rows] == ["baseline", "ogpsa"]
    for row, group in zip(rows, world.groups, strict=True):
        assert float(row["safety"]) == group.scores.safety.mean
        assert float(row["utility_half_width"]) == group.scores.utility.half_width
        assert (row["front"], float(row["hypervolume"])) == (world.standing(group), group.hypervolume)

    stored = json.loads((tmp_path / "pareto.json").read_text())
    runs = stored["worlds"][0]["groups"][1]["runs"]
    assert [(run["directory"], run["seed"], run["scores"]["utility"]) for run in runs] == [
        ("o0", 0, 0.7),
        ("o1", 1, 0.71),
        ("o2", 2, 0.72),
    ]
    assert stored["worlds"][0]["base"] == BASE | {"balanced": pytest.approx(0.7)}


@pytest.mark.parametrize("worlds", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_the_picture_is_a_png_wide_enough_for_a_readme(tmp_path: Path, worlds: int) -> None:
    for world in range(worlds):
        make_run(tmp_path / str(world), f"method=baseline data.seed={world}")
    write(collect([tmp_path]), tmp_path / "out")
    height, width, _ = imread(tmp_path / "out" / "pareto.png").shape
    assert width == 1800
    assert 0.4 < height / width < 1.5
    assert (tmp_path / "out" / "pareto.pdf").read_bytes().startswith(b"%PDF")


def test_one_seed_is_shown_without_an_interval(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    write(collect([tmp_path]), tmp_path)
    assert "0.800 ± – (+0.300)" in (tmp_path / "pareto.md").read_text()
    assert r"0.800 $\pm$ -- (+0.300)" in (tmp_path / "pareto.tex").read_text()
    (row,) = csv.DictReader((tmp_path / "pareto.csv").open())
    assert row["safety_half_width"] == ""


@pytest.mark.slow
def test_seeds_that_differ_by_rounding_alone_are_shown_without_an_interval(tmp_path: Path) -> None:
    for seed, safety in enumerate((0.1 + 0.2 + 0.3, 0.3 + 0.2 + 0.1)):
        make_run(tmp_path / str(seed), f"method=baseline seed={seed}", safety)
    (group,) = only_world(tmp_path).groups
    assert group.scores.safety is not None and group.scores.safety.half_width
    write(collect([tmp_path]), tmp_path)
    assert "0.600 ± – (+0.100)" in (tmp_path / "pareto.md").read_text()


@pytest.mark.slow
def test_latex_escapes_names_and_needs_no_package(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "method=ogpsa method.rank={sft:4,dpo:2}")
    make_run(tmp_path / "b", "method=ogpsa method.refresh_every=1")
    write(collect([tmp_path]), tmp_path)
    text = (tmp_path / "pareto.tex").read_text()
    assert r"sft\_dpo & ogpsa rank=\{sft:4,dpo:2\} & 1 &" in text
    assert r"sft\_dpo & ogpsa refresh\_every=1 & 1 &" in text
    assert text.isascii()
    bodies = [line for line in text.splitlines() if " & " in line]
    # Against utility with the hypervolume besides, against over-refusal without.
    assert [line.count(" & ") for line in bodies] == [7] * 4 + [6] * 4
    assert all(line.endswith(r" \\") for line in bodies)


@pytest.mark.slow
def test_the_same_runs_give_the_same_files(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "a", "method=baseline")
    make_run(tmp_path / "runs" / "b", "method=ogpsa")
    for name in ("one", "two"):
        write(collect([tmp_path / "runs"]), tmp_path / name)
    for name in WRITTEN:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.slow
def test_out_changes_the_folder(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "a")
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "deep" / "er")]) == 0
    assert sorted(path.name for path in (tmp_path / "deep" / "er").iterdir()) == WRITTEN
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["a"]


def test_users_mistakes_take_one_line_each_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "table1" / "a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert run_program(lambda: main([str(tmp_path / name) for name in ("tabel1", "empty", "file", "table1")])) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: DIR: {tmp_path / 'tabel1'}: no such directory; expected a directory of runs; did you mean 'table1'?",
        f"error: DIR: {tmp_path / 'empty'}: holds no run; expected directories with a config.yaml",
        f"error: DIR: {tmp_path / 'file'}: is a file; expected a directory of runs",
    ]
    assert run_program(lambda: main([str(tmp_path / "table1"), "--out", str(tmp_path / "file" / "x")])) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"lies below {tmp_path / 'file'}, which is a file" in line


@pytest.mark.parametrize("arguments", [[], ["runs", "--outt", "x"]])
def test_a_wrong_command_line_takes_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(lambda: main(arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")


@pytest.mark.slow
def test_nothing_heavy_is_loaded(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    script = (
        "import sys; from eval.pareto.command import main; assert 'matplotlib' not in sys.modules; "
        "code = main(sys.argv[1:]); assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()[:-1]) == (0, [])
