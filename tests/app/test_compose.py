"""The command line: what composes, how mistakes are reported, and what a sweep does."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from experiments.rows import row_model
from ogpsa.app.compose import CONF, compose_config, compose_run
from ogpsa.utils.errors import UserError
from tests.program import options, run_here

ROOT = CONF.parent
OPTIONS = {
    group: sorted(file.stem for file in (CONF / group).glob("[!_]*.yaml")) for group in ("model", "stage", "method")
}

# A program of its own around the task that ogpsa.app.compose guards; seeds choose how a run ends.
PROGRAM = f"""
import hydra
from ogpsa.app.program import Program
from ogpsa.utils.errors import UserError
from ogpsa.pipeline import check

program = Program(check)


@hydra.main(version_base="1.3", config_path={str(CONF)!r}, config_name="config")
@program.task
def main(config, directory, overrides):
    print(config.run_name(), directory, *overrides)
    if config.seed == 7:
        raise RuntimeError("gradient is NaN")
    if config.seed == 9:
        raise UserError("data.safety: no such file", "data.seed: odd")
    if config.seed == 85:
        raise SystemExit(85)
    return 0.5, 0.25


program.start(main)
"""


def run(*arguments: str, cwd: Path, program: Path = ROOT / "train.py") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(program), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    path = tmp_path / "cwd"
    path.mkdir()
    return path


def test_defaults() -> None:
    config = compose_config([])
    assert (config.model.name, config.stage.name, config.method.name) == ("tiny", "sft_dpo", "ogpsa")
    assert [stage.name for stage in config.stages] == ["sft", "dpo"]
    assert config.stages[0].learning_rate == config.model.recipe.sft.learning_rate
    assert config.stages[1].learning_rate == config.model.recipe.dpo.learning_rate


# A model only brings its recipe, and a stage its sections: one combination tries each. A method meets every section.
# A loss of DPO alone is nothing to the other stages.
COMBINATIONS = sorted({
    *((model, "sft_dpo", "ogpsa") for model in OPTIONS["model"]),
    *(("tiny", stage, "ogpsa") for stage in OPTIONS["stage"]),
    *(("tiny", "sft_dpo", method) for method in OPTIONS["method"]),
    *(("tiny", "sft_grpo", method) for method in OPTIONS["method"] if method != "safedpo"),
})  # fmt: skip


@pytest.mark.parametrize(
    ("model", "stage", "method"),
    [
        # Of the models, quick are the testbed's and the paper's.
        pytest.param(
            model, stage, method, marks=[pytest.mark.slow] * (model not in ("tiny", "qwen2_5_7b", "llama3_8b"))
        )
        for model, stage, method in COMBINATIONS
    ],
)
def test_every_model_and_every_stage_with_every_method_composes(model: str, stage: str, method: str) -> None:
    config = compose_config([f"model={model}", f"stage={stage}", f"method={method}"])
    assert config.run_name().startswith(f"{model}-{stage}-{method}-seed0-")


@pytest.mark.parametrize(
    ("override", "sft", "dpo"),
    [
        ("method.rank=4", 4, 4),
        ("method.rank={sft:4,dpo:2}", 4, 2),
        ("method.rank={sft: 4, dpo: per_set}", 4, 1),
        ("method.rank=per_set", 2, 1),
    ],
)
def test_value_by_stage(override: str, sft: int, dpo: int) -> None:
    settings = compose_config([override]).method
    assert [settings.projection(stage).rank for stage in ("sft", "dpo")] == [sft, dpo]


def test_list_override() -> None:
    settings = compose_config(["method.reference_sets=[helpfulness]"]).method
    assert settings.projection("dpo").reference_sets == ("helpfulness",)


def test_run_name_depends_on_what_changes_the_result() -> None:
    name = compose_config([]).run_name()
    assert name == compose_config(["tracker=none", "cache_dir=elsewhere", "seed=0"]).run_name()
    assert name != compose_config(["method.rank=4"]).run_name()


# Overrides, and the exact lines.
METHODS = options("method")
TOP_KEYS = (
    "seed, cache_dir, stage_store, lock_wait, accept_changed, preflight, model, stage, method, reward, data, eval, "
    "distributed, tracker"
)
METHOD_KEYS = (
    "name, recipe_rate, rank, refresh_every, samples, reference_sets, selection, scope, sided, target, streaming, "
    "basis_dtype, basis_device"
)
MISTAKES: dict[tuple[str, ...], list[str]] = {
    ("method=ogspa",): [f"method: 'ogspa' is not an option; allowed: {METHODS}; did you mean 'ogpsa'?"],
    ("method=3",): [f"method: '3' is not an option; allowed: {METHODS}"],
    ("stage=stf", "tracker=wnadb"): [
        f"stage: 'stf' is not an option; allowed: {options('stage')}; did you mean 'sft'?",
        f"tracker: 'wnadb' is not an option; allowed: {options('tracker')}; did you mean 'wandb'?",
    ],
    ("hydra/launcher=nope",): ["hydra/launcher: 'nope' is not an option; allowed: basic, slurm"],
    ("method.rnak=4",): [f"method.rnak: unknown key; allowed: {METHOD_KEYS}; did you mean 'rank'?"],
    ("++method.rnak=4",): [f"method.rnak: unknown key; allowed: {METHOD_KEYS}; did you mean 'rank'?"],
    ("method=baseline", "method.rank=4"): [
        "method.rank: unknown key; allowed: name, recipe_rate; it is one of method=ogpsa"
    ],
    ("sede=1", "stgae=sft"): [
        f"sede: unknown key; allowed: {TOP_KEYS}; did you mean 'seed'?",
        f"stgae: unknown key; allowed: {TOP_KEYS}; did you mean 'stage'?",
    ],
    ("method.rank.sft=4",): [
        "method.rank.sft: method.rank has no keys of its own; set method.rank itself, e.g. 'method.rank={sft: ...}'"
    ],
    ("data=files", "data.safety=a.jsonl", "data.reference_sets.helpfulness=b.jsonl"): [
        "data.reference_sets.helpfulness: unknown key; allowed: none yet; "
        "write +data.reference_sets.helpfulness=... to add it"
    ],
    ("method={rnak: 4}",): [f"method.rnak: unknown key; allowed: {METHOD_KEYS}; did you mean 'rank'?"],
    ("method.rank=-1", "seed=one"): [
        "seed: found 'one'; allowed is an integer",
        "method.rank: found -1; allowed is greater than or equal to 0, or 'per_set', or a mapping by stage",
    ],
    ("method.rank={sft:4",): [
        "invalid override 'method.rank={sft:4' (no viable alternative at input '{sft:4'); "
        "write KEY=VALUE, 'KEY={a: 1}' or 'KEY=[a, b]'"
    ],
    ("seed", "method"): [
        "invalid override 'seed' (missing EQUAL at '<EOF>'); write KEY=VALUE, 'KEY={a: 1}' or 'KEY=[a, b]'",
        "invalid override 'method' (missing EQUAL at '<EOF>'); write KEY=VALUE, 'KEY={a: 1}' or 'KEY=[a, b]'",
    ],
    ("method.rank=2,4",): ["method.rank: found 2,4, a sweep; add --multirun to run each, or write [2,4] for a list"],
    ("model.path=a,b",): [
        "model.path: found a,b, a sweep; add --multirun to run each, or write [a,b] for a list, or "
        "'model.path=\"a,b\"' for the text"
    ],
    ("data=files",): ["data.safety: no value given, and it has no default"],
    ("~seed",): ["seed: no value given, and it has no default"],
    ("model.name=${nope}",): ["model.name: Interpolation key 'nope' not found"],
    ("hydra.run.dir=${nope}",): ["hydra.run.dir: Interpolation key 'nope' not found"],
    ("hydra.sweep.dir=outputs/mine",): [
        "hydra.sweep.dir: has no effect on a single run; use hydra.run.dir, or add --multirun"
    ],
    ("hydra.job.chdir=banana",): [
        "Error merging override hydra.job.chdir=banana; hydra.job.chdir: Value 'banana' is not a valid bool (type str)"
    ],
}


@pytest.mark.parametrize("overrides", MISTAKES, ids=" ".join)
def test_mistake_in_overrides(overrides: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as raised:
        compose_run(list(overrides))
    assert list(raised.value.problems) == MISTAKES[overrides]


COMMAND_LINES: dict[tuple[str, ...], list[str]] = {
    ("method=ogspa", "stage=sft"): MISTAKES["method=ogspa",],
    ("method.rnak=4",): MISTAKES["method.rnak=4",],
    ("--cfg", "job", "method.rnak=4"): MISTAKES["method.rnak=4",],
    ("--help", "method=ogspa"): MISTAKES["method=ogspa",],
    ("--cfg", "jobs"): ["argument --cfg/-c: invalid choice: 'jobs' (choose from 'job', 'hydra', 'all')"],
    ("--mutlirun",): [
        "--mutlirun: unknown flag; allowed: --multirun, --cfg, --resolve, --package, --info, --help, --hydra-help, "
        "--version; did you mean '--multirun'? (settings are KEY=VALUE, without dashes)"
    ],
    ("seed=1", "-m", "stage=sft"): [
        "stage=sft: stands apart from the other overrides; put flags before or after all of them"
    ],
    ("method=baseline", "data=files", "data.safety=nowhere.jsonl"): [
        "data.safety: nowhere.jsonl: no such file",
        "model.path: null is the base of data=testbed, but data=files; give a path",
    ],
    ("--config-dir", "/nowhere"): ["--config-dir: /nowhere is not a directory"],
    ("-m", "method=ogpsa,baseline", "seed=0,-1"): [
        "method=ogpsa seed=-1 and 1 more: seed: found -1; allowed is greater than or equal to 0"
    ],
    ("-m", "method=baseline,ogpsa", "++method.rank=2"): [
        "method=baseline ++method.rank=2: method.rank: unknown key; allowed: name, recipe_rate"
    ],
    ("-m", "method=baseline,ogpsa", "method.rank=2"): [
        "method=baseline method.rank=2: method.rank: unknown key; allowed: name, recipe_rate; it is one of method=ogpsa"
    ],
    ("-m", "seed=0,1", "hydra.sweep.subdir=mine"): [
        "seed=1: would run in the same directory as seed=0, outputs/mine; "
        "drop one, or tell them apart in hydra.sweep.subdir"
    ],
    ("-m", "stage=sft,dpo", "stage.max_steps=2"): [
        "stage.max_steps: unknown key; allowed: sft, dpo, name; did you mean 'stage.sft.max_steps'? "
        "(++KEY=VALUE sets a key that only swept options have)"
    ],
    ("-m", "seed=0,1", "hydra.run.dir=mine"): [
        "hydra.run.dir: has no effect on a sweep; name the folder that holds its runs with hydra.sweep.dir"
    ],
    ("hydra.mode=MULTIRUN", "seed=0,-1"): ["seed=-1: seed: found -1; allowed is greater than or equal to 0"],
    ("-m", "hydra.job.chdir=true,false"): [
        "hydra.job.chdir: found true,false, but Hydra's own settings cannot be swept; give one value"
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", COMMAND_LINES, ids=" ".join)
def test_mistake_on_the_command_line(arguments: tuple[str, ...], cwd: Path) -> None:
    result = run_here(*arguments, cwd=cwd)
    assert result.stderr.splitlines() == [f"error: {line}" for line in COMMAND_LINES[arguments]]
    assert result.stdout == ""
    assert result.code == 2
    assert list(cwd.iterdir()) == []


@pytest.mark.slow
def test_mistake_in_an_experiment_file(cwd: Path, tmp_path: Path) -> None:
    folder = tmp_path / "groups" / "experiment"
    folder.mkdir(parents=True)
    (folder / "typo.yaml").write_text("# @package _global_\ndefaults:\n  - override /method: ogspa\n")
    result = run("--config-dir", str(folder.parent), "+experiment=typo", cwd=cwd)
    assert result.stderr.splitlines() == [f"error: {line}" for line in MISTAKES["method=ogspa",]]
    result = run("--config-dir", str(folder.parent), "+experiment=typ", cwd=cwd)
    assert result.stderr.startswith("error: experiment: 'typ' is not an option; allowed: ")
    assert result.stderr.endswith("; did you mean 'typo'?\n")
    assert (result.returncode, list(cwd.iterdir())) == (2, [])


@pytest.mark.slow
def test_directory_of_another_configuration_is_refused_before_the_first_point(cwd: Path, program: Path) -> None:
    config = compose_config(["seed=1"])
    taken = cwd / "outputs" / config.run_name()
    taken.mkdir(parents=True)
    (taken / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json") | {"seed": 2}))
    result = run("-m", "seed=0,1", cwd=cwd, program=program)
    assert result.stderr.startswith("error: seed=1: hydra.run.dir: outputs/")
    assert "seed (2 there, 1 here)" in result.stderr
    assert (result.returncode, result.stdout) == (2, "")
    assert list(taken.parent.iterdir()) == [taken]


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [("method.rank=-1",), ("method=ogspa",), ("--help",), ("--cfg", "job")], ids=" ".join
)
def test_answers_before_torch_is_loaded(arguments: tuple[str, ...], cwd: Path) -> None:
    script = (
        "import runpy, sys\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
        "finally:\n"
        "    print(*sorted({'torch', 'transformers', 'pandas', 'lm_eval', 'matplotlib'} & sys.modules.keys()))\n"
    )
    command = [sys.executable, "-c", script, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert result.stdout.splitlines()[-1] == ""
    assert result.returncode == (0 if arguments[0].startswith("--") else 2)


@pytest.mark.slow
def test_help_names_every_option(cwd: Path) -> None:
    text = run("--help", "method=baseline", cwd=cwd).stdout
    for option in [option for group in OPTIONS.values() for option in group]:
        assert f" {option} " in text
    assert "* baseline" in text
    assert "* ogpsa" not in text
    assert "_shared" not in text


@pytest.mark.slow
def test_cfg_prints_the_configuration_also_of_wrong_values(cwd: Path) -> None:
    result = run("--cfg", "job", "seed=-1", "data=files", cwd=cwd)
    assert (result.returncode, result.stderr) == (0, "")
    assert yaml.safe_load(result.stdout)["seed"] == -1


@pytest.mark.slow
def test_single_run_and_sweep_share_a_directory(cwd: Path, program: Path) -> None:
    single = run("method.rank={sft: 4, dpo: 2}", "seed=3", cwd=cwd, program=program)
    sweep = run("-m", "method.rank={sft: 4, dpo: 2}", "seed=3,4", cwd=cwd, program=program)
    name = compose_config(["method.rank={sft: 4, dpo: 2}", "seed=3"]).run_name()
    assert single.stdout.split()[:2] == [name, str(cwd / "outputs" / name)]
    assert sweep.stdout.split()[:2] == [name, str(cwd / "outputs" / name)]
    assert sweep.stderr.splitlines()[0] == f"[1/2] method.rank={{sft:4,dpo:2}} seed=3 -> outputs/{name}"
    assert (single.returncode, single.stderr, sweep.returncode) == (0, "", 0)


@pytest.mark.slow
def test_end_of_a_run(cwd: Path, program: Path) -> None:
    mistake = run("seed=9", cwd=cwd, program=program)
    assert mistake.stderr.splitlines() == ["error: data.safety: no such file", "error: data.seed: odd"]
    assert mistake.returncode == 2
    failure = run("seed=7", cwd=cwd, program=program)
    assert failure.stderr.startswith("Traceback (most recent call last):\n")
    assert 'raise RuntimeError("gradient is NaN")' in failure.stderr
    assert failure.stderr.endswith("RuntimeError: gradient is NaN\n")
    assert failure.returncode == 1
    assert run("seed=85", cwd=cwd, program=program).returncode == 85


@pytest.mark.slow
def test_failed_points_of_a_sweep(cwd: Path, program: Path) -> None:
    result = run("-m", "hydra.sweeper.max_batch_size=1", "seed=7,9,1", cwd=cwd, program=program)
    assert len(result.stdout.splitlines()) == 3
    assert result.stderr.count("Traceback (most recent call last):") == 1
    assert result.stderr.splitlines()[-2:] == [
        "failed: seed=7: RuntimeError: gradient is NaN",
        "failed: seed=9: data.seed: odd",
    ]
    assert result.returncode == 1


@pytest.mark.slow
def test_requeue_ends_a_sweep(cwd: Path, program: Path) -> None:
    result = run("-m", "seed=1,85,2", cwd=cwd, program=program)
    assert len(result.stdout.splitlines()) == 2
    assert result.returncode == 85


def test_every_yaml_key_has_its_comment() -> None:
    key = re.compile(r"\s*[\w]+:")
    for file in sorted(CONF.rglob("*.yaml")):
        if file.is_relative_to(CONF / "hydra"):
            continue
        previous = ""
        for line in file.read_text(encoding="utf-8").splitlines():
            inherits = line.startswith("defaults:") or (file.name == "config.yaml" and line.startswith("    "))
            if key.match(line) and not inherits:
                assert "#" in line or previous.lstrip().startswith("#"), f"{file}: {line.strip()} has no comment"
            previous = line


DEFINITIONS = CONF.parent / "experiments" / "definitions"
EXPERIMENTS = {
    file.relative_to(CONF / "experiment").with_suffix("").as_posix(): file
    for file in sorted((CONF / "experiment").rglob("[!_]*.yaml"))
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_says_its_command_and_picks_options_that_are_there(name: str) -> None:
    text = EXPERIMENTS[name].read_text(encoding="utf-8")
    table, _, row = name.partition("/")
    commands = {f"# python -m experiments run {table} rows={row} suite=paper", f"# python train.py +experiment={name}"}
    if table == "small":
        tables = [
            table for table in DEFINITIONS.glob("small_*.yaml") if name in yaml.safe_load(table.read_text())["rows"]
        ]
        commands = {f"# python -m experiments run {table.stem} rows={row} suite=small" for table in tables}
    assert len(commands.intersection(text.splitlines())) == 1
    for entry in yaml.safe_load(text)["defaults"]:
        for group, option in entry.items() if isinstance(entry, dict) else ():
            assert (CONF / group.removeprefix("override /") / f"{option}.yaml").is_file()


@pytest.mark.parametrize(
    "name",
    [
        # The first of each folder is quick; the tests of the experiments compose the others on every push.
        pytest.param(name, marks=[pytest.mark.long] * (file != min(file.parent.glob("[!_]*.yaml"))))
        for name, file in EXPERIMENTS.items()
    ],
)
def test_every_experiment_composes(name: str) -> None:
    config = compose_config([f"+experiment={name}", "seed=3"])
    assert config.seed == 3
    assert row_model(name) == config.model.name


def test_the_slurm_launcher_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ogpsa.app.compose.SUBMITIT", "of_no_plugin")
    with pytest.raises(UserError) as refused:
        compose_config(["hydra/launcher=slurm"])
    assert refused.value.problems == (
        "hydra/launcher: slurm needs hydra-submitit-launcher, which is not installed; type: make install-submitit",
    )


@pytest.mark.slow
@pytest.mark.skipif(find_spec("submitit") is None, reason="needs make install-submitit")
def test_help_does_not_wait_for_submitit(cwd: Path) -> None:
    command = [sys.executable, "-X", "importtime", str(ROOT / "train.py"), "--help"]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True)
    assert "hydra.main" in done.stderr and "submitit" not in done.stderr
