"""Every command of a code block in README and docs is run here, or is known to need what no test has."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from ogpsa.app.compose import compose_config
from ogpsa.data.rows import load_data
from tests.program import ROOT

PAGES = ["README.md", "docs/data.md", "docs/rl.md", "docs/training.md", "docs/commands.md", "eval/README.md",
         "experiments/README.md", "community/README.md", "slurm/README.md", "benchmarks/README.md",
         "CONTRIBUTING.md"]  # fmt: skip


@dataclass(frozen=True)
class Run:
    """Run as it stands, with ``more`` words that make it small; ``places`` fills in what a reader would.

    Weekly are those that another test calls in its process, or that differ little from another command.
    """

    more: tuple[str, ...] = ()
    small: bool = False
    places: tuple[tuple[str, str], ...] = ()
    weekly: bool = False


@dataclass(frozen=True)
class Elsewhere:
    """A test of another file runs it."""

    test: str


@dataclass(frozen=True)
class Needs:
    """What it needs and no test has; words of ``train.py`` are composed all the same."""

    what: str


CHECK = ("suite=check", "rows=qwen2_5_7b_sft_baseline")
COMMANDS: dict[str, Run | Elsewhere | Needs] = {
    # README
    "make demo": Run(small=True),
    "make test": Elsewhere(".ci/run"),
    "source .venv/bin/activate": Run(),
    "python train.py method=ogpsa stage=sft_dpo": Run(small=True, weekly=True),
    "python -m eval prefetch eval=quick": Needs("network"),
    "python train.py model=qwen2_5_7b model.path=models/Qwen2.5-7B-Instruct data=files data.safety=safety.jsonl "
    "'+data.reference_sets={helpfulness: helpful.jsonl, truthfulness: facts.jsonl, preference: pairs.jsonl}' "
    "eval=quick": Needs("GPU"),
    "python -m experiments run table1": Run(CHECK),
    "python -m experiments plan table1 suite=paper": Run(CHECK[1:], weekly=True),
    "python -m experiments run table1 suite=paper": Needs("GPU"),
    # docs
    "python train.py data=files data.safety=safety.jsonl "
    "'+data.reference_sets={helpfulness: helpful.jsonl, truthfulness: facts.jsonl, preference: pairs.jsonl}' "
    "model=qwen2_5_7b model.path=models/Qwen2.5-7B-Instruct eval=quick": Needs("GPU"),
    "python train.py stage=grpo": Run(("stage.max_steps=2",), small=True, weekly=True),
    "python train.py stage=grpo method=ogpsa reward=two_sided stage.answerable_sets=[helpfulness] "
    "stage.answerable_ratio=0.32": Run(("stage.max_steps=2", "method.samples=8"), small=True),
    "torchrun --nproc-per-node 8 train.py model=llama3_8b data=nspo eval=nspo reward=llama_guard stage=grpo "
    "method=nspo method.general_sets=[general] method.samples=1000 distributed=fsdp2": Needs("GPU"),
    "torchrun --nproc-per-node 8 train.py model=qwen2_5_7b distributed=fsdp2 data=paper eval=quick": Needs("GPU"),
    "python train.py model=qwen2_5_7b distributed=fsdp2 distributed.processes=8 data=paper eval=quick preflight=true":
        Needs("rows"),
    # evaluation
    "python -m eval benchmarks": Run(),
    "python -m eval prefetch eval=paper": Needs("network"),
    "python -m eval checkpoint=DIR eval=small": Needs("network"),
    "python -m eval checkpoint=DIR eval=quick": Needs("network"),
    "python -m eval checkpoint=DIR eval=paper": Needs("key"),
    "python -m eval checkpoint=DIR eval=broad": Needs("network"),
    "python -m eval checkpoint=DIR eval=quick eval.judges.xstest_safe=xstest_rubric": Needs("key"),
    "python -m eval judge --judge NAME --in answers.csv --out verdicts.csv": Run(places=(("NAME", "refusal_rules"),)),
    "python -m eval compare A B": Elsewhere("eval/scores/test_compare.py"),
    "python -m eval side-by-side A B": Elsewhere("eval/report/test_side_by_side.py"),
    "python -m eval winrate RUN --base-url URL --model NAME": Elsewhere("eval/scores/test_winrate.py"),
    "python -m eval report outputs": Elsewhere("eval/report/test_report.py"),
    # experiments
    "python -m experiments list": Run(),
    "python -m experiments report table1": Run(CHECK),
    "python -m experiments report rl kept=true": Run(weekly=True),
    "make data-small": Needs("network"),
    "python -m experiments plan small_sft small_dpo suite=small": Run(("rows=*_baseline",), weekly=True),
    "make experiments-small": Needs("network"),
    "models=Qwen/Qwen2.5-7B-Instruct,meta-llama/Llama-3.1-8B-Instruct": Needs("network"),
    "for model in ${models//,/ }; do hf download $model; done": Needs("network"),
    'for name in safe_rlhf ultrafeedback halueval; do python -m ogpsa.data build $name "fits.tokenizers=[$models]"; '
    "done": Needs("network"),
    "python -m eval attacks --help": Run(),
    # community
    "python -m eval checkpoint=outputs/models/smollm2_135m eval=small": Needs("network"),
    "python -m ogpsa.data check outputs/data --against outputs/benchmarks": Elsewhere("data/test_leakage.py"),
    "python -m experiments report table1 suite=paper": Run(CHECK[1:]),
    # SLURM
    "cp slurm/env.sh.example slurm/env.sh": Elsewhere("slurm/test_cluster.py"),
    "python -m slurm.grid method.rank=2,4,8 method.refresh_every=5,10,30 --out slurm/sweeps/rank_and_k.txt": Run(
        places=(("slurm/sweeps/rank_and_k.txt", "rank_and_k.txt"),)
    ),
    "slurm/submit.sh rank_and_k --time=8:00:00": Elsewhere("slurm/test_cluster.py"),
    "slurm/status.sh rank_and_k": Elsewhere("slurm/test_cluster.py"),
    "docker build --tag ogpsa .": Needs("Docker"),
    "docker save ogpsa --output ogpsa.tar": Needs("Docker"),
    "apptainer build ogpsa.sif docker-archive://ogpsa.tar": Needs("Apptainer"),
    'apptainer exec --nv --bind "$PWD" --pwd "$PWD" ogpsa.sif python /ogpsa/train.py method=ogpsa': Needs("Apptainer"),
    'exec apptainer exec --nv --bind "$PWD,/path/to/repository,$HF_HOME" --pwd "$PWD" /path/to/ogpsa.sif python "$@"':
        Needs("Apptainer"),
}  # fmt: skip
RUN = {words: how for words, how in COMMANDS.items() if isinstance(how, Run)}


def documented() -> list[str]:
    """The commands of all code blocks, without their comments, each on one line."""
    found = []
    for page in PAGES:
        blocks = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), flags=re.S | re.M)
        typed = "\n".join(block for language, block in blocks if not language)
        for line in re.sub(r"\s*\\\n\s*", " ", typed).splitlines():
            command = re.sub(r"\s+# .*", "", line).strip()
            # Places in a run's folder stand in blocks as well, and a script's first line.
            if command and not command.startswith(("outputs/", "#!")):
                found.append(command)
    return list(dict.fromkeys(found))


def test_every_command_is_accounted_for() -> None:
    assert sorted(documented()) == sorted(COMMANDS)


def test_what_runs_elsewhere_is_there() -> None:
    for how in COMMANDS.values():
        if isinstance(how, Elsewhere):
            assert (ROOT / how.test).is_file() or (ROOT / "tests" / how.test).is_file(), how.test


@pytest.mark.parametrize(
    "command", [words for words, how in COMMANDS.items() if isinstance(how, Needs) and "train.py" in shlex.split(words)]
)
def test_what_needs_more_is_composed(command: str) -> None:
    """Words of the program are valid, but for the files that they name."""
    words = shlex.split(command)
    assert compose_config(words[words.index("train.py") + 1 :]).model.path


@pytest.mark.parametrize("command", [words for words, how in RUN.items() if how.small and "train.py" in words])
def test_what_is_run_small_has_its_rows_at_full_size(command: str) -> None:
    words = shlex.split(command)
    assert load_data(compose_config(words[words.index("train.py") + 1 :])).safety


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that looks like the repository, but for what commands write."""
    for entry in ROOT.iterdir():
        if entry.name not in {"outputs", ".git", ".cache", "wandb"} and not entry.name.endswith("_cache"):
            (tmp_path / entry.name).symlink_to(entry)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [pytest.param(words, marks=[pytest.mark.long] * how.weekly) for words, how in RUN.items()]
)
def test_runs(command: str, checkout: Path, small: list[str]) -> None:
    how = RUN[command]
    (checkout / "answers.csv").write_text("prompt,completion\nhow ?,I cannot help with that request .\n")
    typed = command
    for name, value in how.places:
        typed = typed.replace(name, value)
    more = [*(small if how.small else ()), *how.more]
    if typed.startswith("make "):
        typed += f" ARGS={shlex.quote(shlex.join(more))}"
        more = []
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(checkout),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", shlex.join(["eval", " ".join([typed, *map(shlex.quote, more)])])],
        cwd=checkout, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
