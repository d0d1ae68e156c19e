"""Shared stages: a run takes from another one exactly what it would have made itself."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import eval.evaluation
from eval.judging.reward import JUDGES
from ogpsa.app.validate import load_config
from ogpsa.config import Config, Method, identity_of
from ogpsa.config.identity import LATER
from ogpsa.data.rows import load_data
from ogpsa.pipeline import run
from ogpsa.runs.directory import METRICS_FILE
from ogpsa.runs.stage_cache import shared, stage_key
from ogpsa.testbed.cache import ensure_base
from ogpsa.utils.dotted import flatten
from ogpsa.utils.errors import UserError
from ogpsa.utils.files import COMPLETE_FILE, read_json, write_json
from ogpsa.utils.journal import Journal
from tests.program import ROOT, contents, run_here
from tests.stage import run_alone

Configure = Callable[..., Config]


BASE = Path(__file__).parent


def test_held_out_rows_are_part_of_the_stages_that_measure_them_alone(small_config: Configure) -> None:
    """They hold the columns of these: DPO's are not read where SFT alone measures."""
    plain = small_config("stage=sft_dpo", "method=baseline")
    measured = small_config("stage=sft_dpo", "method=baseline", "stage.sft.eval_every=2")
    assert key(measured, 1) == key(plain, 1)
    assert key(measured) != key(plain)


def key(config: Config, stage: int = 0, start: Path = BASE) -> str:
    return stage_key(config, config.stages[stage], load_data(config), start)


def test_what_the_judges_of_a_reward_rest_on_is_part_of_the_rl_stage(small_config: Configure) -> None:
    config = small_config("stage=grpo", "method=baseline", "reward=judge", "reward.judge=refusal_match")
    data = load_data(config)
    keys = [stage_key(config, config.stages[0], data, BASE, {"reward/refusal_match": now}) for now in ("a", "b")]
    assert keys[0] != keys[1]


def test_a_run_is_not_resumed_with_another_judge_as_its_reward(small_config: Configure, tmp_path: Path) -> None:
    config = small_config("stage=grpo", "method=baseline", "reward=judge", "reward.judge=refusal_match")
    write_json(tmp_path / "provenance.json", {"sessions": [{}]})
    data = load_data(config)
    judge = JUDGES.digest("refusal_match", config.eval.judge)
    run_alone(config, data, tmp_path, judges=JUDGES).starting_model()
    assert read_json(tmp_path / "provenance.json")["rests_on"]["reward/refusal_match"] == judge
    others = replace(JUDGES, digest=lambda name, settings: "another")
    with pytest.raises(UserError, match="changed since then: reward/refusal_match"):
        run_alone(config, data, tmp_path, judges=others).starting_model()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["stage=sft", "method=baseline"], ["stage=sft_dpo", "method=baseline"]),
        (["stage=sft", "method=baseline"], ["stage=sft", "method=merge"]),
        (["stage=sft", "method=ogpsa"], ["stage=sft", "method=ogpsa", "method.rank=2", "method.refresh_every=30"]),
        (["stage=sft_dpo", "method=ogpsa"], ["stage=sft_dpo", "method=ogpsa", "method.refresh_every.dpo=1"]),
        (["stage=sft", "method=ogpsa"], ["stage=sft", "method=ogpsa_merge"]),
        (["stage=sft", "method=baseline"], ["stage=sft", "method=replay", "method.ratio=0"]),
        (["stage=sft", "method=baseline"], ["stage=sft", "method=baseline", "stage.save_every=7", "eval.limit=3"]),
    ],
)
def test_what_trains_alike_is_shared(one: list[str], other: list[str], small_config: Configure) -> None:
    assert key(small_config(*one)) == key(small_config(*other))


@pytest.mark.parametrize(
    "change",
    [
        ["seed=1"],
        pytest.param(["data.seed=1"], marks=pytest.mark.slow),
        ["data.safety_rows=48"],
        ["stage.sft.learning_rate=1e-4"],
        pytest.param(["stage.sft.max_steps=1"], marks=pytest.mark.slow),
        pytest.param(["stage.sft.log_every=1"], marks=pytest.mark.slow),
        ["model.precision=bf16"],
        pytest.param(["distributed=ddp"], marks=pytest.mark.slow),
        ["method=lora"],
        pytest.param(["model.compile=true"], marks=pytest.mark.slow),
        pytest.param(["method=anchor"], marks=pytest.mark.slow),
        pytest.param(["method=replay"], marks=pytest.mark.slow),
        ["method=nspo", "method.samples=50"],
        ["method=ogpsa"],
        pytest.param(["method=ogpsa", "method.rank=0"], marks=pytest.mark.slow),
        pytest.param(["method=ogpsa", "method.samples=50"], marks=pytest.mark.slow),
        ["method=ogpsa", "method.reference_sets=[knowledge]"],
        ["method=ogpsa", "method.selection=conflict"],
    ],
)
def test_what_trains_otherwise_is_not(change: list[str], small_config: Configure) -> None:
    assert key(small_config("method=baseline", *change)) != key(small_config("method=baseline"))


@pytest.mark.parametrize(
    "change",
    [
        "lora_dora=true",
        "lora_quantize=nf4",
        pytest.param("lora_quantize={sft: nf4, dpo: null}", marks=pytest.mark.slow),
    ],
)
def test_other_adapters_are_another_key(change: str, small_config: Configure) -> None:
    assert key(small_config("method=lora", f"method.{change}")) != key(small_config("method=lora"))


def test_a_run_of_an_earlier_revision_is_the_same_run(small_config: Configure) -> None:
    for stages in ("stage=sft", "stage=sft_dpo"):
        config = small_config("method=lora", stages)
        stored = config.model_dump(mode="json")
        for name in LATER:
            *path, later = name.split(".")
            section: Any = stored
            for part in path:
                section = section.get(part, {})
            section.pop(later, None)
        assert identity_of(stored) == config.identity()
        assert load_config(stored) == config
    # Settings that are off are in no cache key, so that adding them changed none.
    assert not LATER.keys() & flatten(config.identity()).keys()


def test_other_weights_stages_rows_or_code_are_another_key(
    small_config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    naive = small_config("method=baseline")
    weights = tmp_path / "model.safetensors"
    weights.write_text("one")
    first = key(naive, start=tmp_path)
    assert key(naive, 1, tmp_path) != first
    weights.write_text("other")
    assert key(naive, start=tmp_path) != first
    data = load_data(naive)
    changed = replace(data, safety=[data.safety[0] | {"chosen": "no"}, *data.safety[1:]])
    assert stage_key(naive, naive.stages[0], changed, BASE) != key(naive)
    ours = key(naive)
    (tmp_path / "code").mkdir()
    monkeypatch.setattr("ogpsa.runs.inputs.PACKAGE", tmp_path / "code")
    assert key(naive) != ours


class Mine(Method):
    """A method that trains in some way of its own and says nothing of it."""

    gamma: float


def test_a_method_that_says_nothing_shares_with_nobody(small_config: Configure) -> None:
    naive = small_config("method=baseline")

    def key_of(method: Method) -> str:
        return key(naive.model_copy(update={"method": method}))

    ours = [key_of(Mine(name=name, gamma=gamma)) for name, gamma in (("mine", 0.1), ("mine", 0.2), ("other", 0.1))]
    assert len({key(naive), key(small_config("method=ogpsa")), *ours}) == 5
    assert key_of(Mine(name="mine", gamma=0.1)) == ours[0]


@pytest.mark.parametrize("kind", ["baseline", "ogpsa", "merge", "replay", "lora"])
def test_a_subclass_that_adds_to_the_training_shares_with_nobody(kind: str, small_config: Configure) -> None:
    config = small_config(f"method={kind}", "stage=sft")
    parent = type(config.method)

    class Keyed(parent):  # type: ignore[valid-type, misc]
        share: float = 0.5

        def attach(self, trainer: object, stage: str, seed: int) -> None: ...

    class Hooked(parent):  # type: ignore[valid-type, misc]
        def attach(self, trainer: object, stage: str, seed: int) -> None: ...

    class Helped(parent):  # type: ignore[valid-type, misc]
        def _loss(self) -> float:
            return 0.0

    class Below(Keyed):
        """Adds nothing to a class that adds."""

    class Told(parent):  # type: ignore[valid-type, misc]
        def problems(self, config: Config) -> list[str]:
            return []

    class ToldToo(Told):
        """Neither trains otherwise."""

    def key_of(method: type[Method], **more: Any) -> str:
        given = config.method.model_dump() | {"name": method.__name__} | more
        return key(config.model_copy(update={"method": method.model_validate(given)}))

    others = [
        key_of(Keyed, share=0.5),
        key_of(Keyed, share=1.0),
        key_of(Hooked),
        key_of(Helped),
        key_of(Below, share=0.5),
    ]
    assert len({key(config), *others}) == 6
    assert key_of(Told) == key_of(ToldToo)


# As a user's file may do it; what it inherits says nothing of what it adds.
SUBCLASS = """
from ogpsa.methods.ogpsa import Ogpsa
class METHOD(Ogpsa):
    def trainer_class(self, base, stage):
        return base  # {}
"""


def test_a_method_outside_the_package_counts_by_its_code(small_config: Configure, tmp_path: Path) -> None:
    config, keys = small_config("method=ogpsa", "stage=sft"), []
    raw = config.model_dump(mode="json")
    for folder, text in (("one", "a loss"), ("same", "a loss"), ("other", "another loss")):
        (tmp_path / folder / "method").mkdir(parents=True)
        (tmp_path / folder / "method" / "mine.py").write_text(SUBCLASS.format(text))
        keys.append(key(load_config(raw | {"method": raw["method"] | {"name": "mine"}}, [tmp_path / folder])))
    assert keys[0] == keys[1]
    assert len({key(config), *keys}) == 3


def test_a_merge_after_each_stage_shares_what_starts_from_the_same_weights(
    small_config: Configure, tmp_path: Path
) -> None:
    naive, merged = small_config("method=baseline"), small_config("method=merge", "method.merge_after=stage")
    (tmp_path / "model.safetensors").write_text("averaged")
    assert key(merged) == key(naive)
    assert key(merged, 1) == key(naive, 1)
    assert key(merged, 1, tmp_path) != key(naive, 1)


def without_times(folder: Path) -> dict[str, Any]:
    """A run's files but for those that hold times of day, paths or seconds."""
    timed = ("run.log", "provenance.json", "config.yaml", "history.jsonl", "run.lock", "stage.key", "COMPLETE.json")
    return {name: content for name, content in contents(folder).items() if not name.endswith(timed)}


@pytest.mark.slow
def test_sft_then_dpo_starts_from_the_sft_run(small: list[str], tmp_path: Path) -> None:
    given = [*small, "method=ogpsa", "method.samples=20"]
    store = f"stage_store={tmp_path / 'store'}"
    for stage, folder, more in (("sft", "sft", [store]), ("sft_dpo", "shared", [store]), ("sft_dpo", "alone", [])):
        result = run_here(*given, f"stage={stage}", *more, f"hydra.run.dir={tmp_path / folder}", cwd=ROOT)
        assert result.code == 0, result.stderr
        assert ("01-sft: as another run made it" in result.stderr) == (folder == "shared")
    assert without_times(tmp_path / "shared") == without_times(tmp_path / "alone")
    first, second = (tmp_path / folder / "01-sft/model.safetensors" for folder in ("sft", "shared"))
    assert first.samefile(second)


@pytest.mark.slow
def test_a_stage_of_other_code_is_kept_for_no_one_and_what_follows_by_its_content(
    small_config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SFT is done when the code changes; it is not what its new key says, but what starts from its weights is."""
    store, directory = tmp_path / "store", tmp_path / "run"
    config = small_config("method=baseline", "stage=sft_dpo", f"stage_store={store}")
    run(config, directory, eval.evaluation.evaluate)
    # Two stages, and the evaluations of three checkpoints.
    assert len([path for path in store.iterdir() if path.is_dir()]) == 5
    for made in (store, directory / "02-dpo", directory / "eval/01-sft", directory / "eval/02-dpo"):
        shutil.rmtree(made)
    (directory / METRICS_FILE).unlink()
    (tmp_path / "code").mkdir()
    monkeypatch.setattr("ogpsa.runs.inputs.PACKAGE", tmp_path / "code")
    run(config.model_copy(update={"accept_changed": ["code"]}), directory, eval.evaluation.evaluate)
    assert (directory / METRICS_FILE).is_file()
    data, kept = load_data(config), {path.name for path in store.iterdir() if path.is_dir()}
    sft, dpo = config.stages
    assert len(kept) == 3
    assert stage_key(config, sft, data, ensure_base(config)) not in kept
    assert stage_key(config, dpo, data, directory / "01-sft") in kept


def test_what_was_begun_under_another_key_is_kept_for_no_one(tmp_path: Path) -> None:
    store, folder = tmp_path / "store", tmp_path / "01-sft"
    with suppress(SystemExit), shared(store, "rows a", folder, COMPLETE_FILE, lambda: None):
        (folder / "checkpoints").mkdir()
        raise SystemExit(85)
    with shared(store, "rows b", folder, COMPLETE_FILE, lambda: None):
        (folder / COMPLETE_FILE).write_text("{}")
    assert not (tmp_path / "store/rows a").exists()
    assert not (tmp_path / "store/rows b").exists()
    with shared(store, "rows b", tmp_path / "new", COMPLETE_FILE, lambda: None):
        assert not (tmp_path / "new" / COMPLETE_FILE).exists()


def test_an_interrupted_making_leaves_nothing_to_share(tmp_path: Path) -> None:
    store, folder = tmp_path / "store", tmp_path / "01-sft"
    with suppress(SystemExit), shared(store, "key", folder, COMPLETE_FILE, lambda: None):
        raise SystemExit(85)
    assert not (tmp_path / "store/key").exists()
    # A stage that another run has finished since replaces the half-made one in the run's own folder.
    (folder / "checkpoints").mkdir()
    with shared(store, "key", tmp_path / "other", COMPLETE_FILE, lambda: None):
        (tmp_path / "other" / COMPLETE_FILE).write_text("{}")
    with shared(store, "key", folder, COMPLETE_FILE, lambda: None):
        assert read_json(folder / COMPLETE_FILE) == {}
        assert not (folder / "checkpoints").exists()


@pytest.mark.parametrize("stamp", [{"holds": "replies"}, {"holds": "others"}], ids=["adds", "begins anew"])
@pytest.mark.parametrize("torn", [b"", b'{"torn'], ids=["whole", "torn"])
@pytest.mark.parametrize("name", ["rewards/reward.jsonl", "kept.journal"])
def test_a_journal_that_runs_share_is_written_by_each_on_its_own(
    name: str, torn: bytes, stamp: dict[str, str], tmp_path: Path
) -> None:
    store, made, taken = (tmp_path / name for name in ("store", "made", "taken"))
    with shared(store, "key", made, COMPLETE_FILE, lambda: None):
        Journal(made / name, {"holds": "replies"}).keep({"a": 1})
        (made / name).write_bytes(before := (made / name).read_bytes() + torn)
        (made / COMPLETE_FILE).write_text("{}")
    with shared(store, "key", taken, COMPLETE_FILE, lambda: None):
        assert (taken / name).samefile(made / name)
    Journal(taken / name, stamp).keep({"b": 2})
    assert (made / name).read_bytes() == (store / "key" / name).read_bytes() == before
    Journal(made / name, stamp).keep({"c": 3})
    kept = {"a": 1} if stamp["holds"] == "replies" else {}
    assert Journal(taken / name, stamp).pieces == kept | {"b": 2}
    assert Journal(made / name, stamp).pieces == kept | {"c": 3}
    assert (store / "key" / name).read_bytes() == before
