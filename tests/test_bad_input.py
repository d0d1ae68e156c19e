"""Mistakes of users: each takes one line that names it, exits with code 2 and touches nothing."""

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest

import train
from eval.benchmarks.definition import find_benchmarks
from ogpsa.app.compose import compose_config
from ogpsa.runs.directory import LOCK_FILE
from ogpsa.testbed.cache import ensure_base
from ogpsa.utils.files import COMPLETE_FILE, exclusive, read_jsonl, write_json, write_jsonl
from tests.program import contents, options, run, run_here

TESTBED = ["stage=sft", "hydra.run.dir=run"]
FILES = [
    "data=files", "data.safety=rows.jsonl", "model.path=model", "eval.data_dir=benchmarks", "method=baseline",
    "stage=sft", "stage.batch_size=1", "stage.micro_batch_size=1", "tracker=none", "hydra.run.dir=run",
]  # fmt: skip
REFERENCE = [
    "method=ogpsa",
    "method.samples=1",
    "+data.reference_sets={helpfulness: rows.jsonl, truthfulness: b.jsonl}",
]
ROW = {"prompt": "How do I bake bread?", "chosen": "I cannot help.", "rejected": "Take flour."}


@dataclass(frozen=True)
class Mistake:
    """Overrides after those of a small run that would succeed, and the lines after ``error: ``.

    ``spoil`` is called in the working directory. HERE, SMALL and HOLDER stand for that directory, the small
    run's overrides and this process.
    """

    overrides: list[str]
    lines: list[str]
    spoil: Callable[[], None] = lambda: None
    files: bool = False  # the user's own rows and model instead of the testbed's
    finished: bool = False  # run/ holds a finished run of the same overrides
    held: bool = False  # another process runs in run/
    sweep: bool = False


def files(lines: str, spoil: Callable[[], None] = lambda: None, *overrides: str) -> Mistake:
    return Mistake([*overrides], [lines], spoil, files=True)


def finished(lines: str, spoil: Callable[[], None] = lambda: None, *overrides: str) -> Mistake:
    return Mistake([*overrides], [lines], spoil, finished=True)


def rows(*found: object) -> Callable[[], None]:
    """Make these the rows of the safety set."""
    return lambda: write_jsonl(Path("rows.jsonl"), list(found))  # type: ignore[arg-type]


def write(path: str, content: bytes | str) -> Callable[[], None]:
    data = content.encode() if isinstance(content, str) else content

    def act() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(data)

    return act


def half_a_model() -> None:
    first, second = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    Path("model/model.safetensors").rename(f"model/{first}")
    write_json(Path("model/model.safetensors.index.json"), {"weight_map": {"a": first, "b": second}})


def remove(*paths: str) -> Callable[[], None]:
    def act() -> None:
        for path in paths:
            Path(path).unlink()

    return act


def cut(path: str, size: int) -> Callable[[], None]:
    return lambda: os.truncate(path, size)


def pickled() -> None:
    Path("model/model.safetensors").rename("model/pytorch_model.bin")


def locked_folder() -> None:
    Path("locked").mkdir(mode=0o500)


KEYS = (
    "name, recipe_rate, rank, refresh_every, samples, reference_sets, selection, scope, sided, target, streaming, "
    "basis_dtype, basis_device"
)
BENCHMARKS = (
    "addition, benign_how_to, category, category_yes_no, facts, harmful_heldout, harmful_seen, look_alike, maximum, "
    "repeat, reverse"
)
TOKENIZER = "tokenizer.json, tokenizer.model, vocab.json"

MISTAKES = {
    # Options, keys, types.
    "option": Mistake(
        ["method=ogspa"],
        [f"method: 'ogspa' is not an option; allowed: {options('method')}; did you mean 'ogpsa'?"],
    ),
    "key": Mistake(["method.rnak=4"], [f"method.rnak: unknown key; allowed: {KEYS}; did you mean 'rank'?"]),
    "name of a section": Mistake(
        ["data.name=smal", "stage.name=sftdpo"],
        [
            "stage.name: found 'sftdpo'; allowed: sft, dpo, grpo, sft_dpo, sft_grpo; did you mean 'sft_dpo'?",
            "data.name: found 'smal'; allowed: testbed, files, nspo, paper, small; did you mean 'small'?",
        ],
    ),
    "type": Mistake(
        ["stage.batch_size=many"],
        ["stage.batch_size: found 'many'; allowed is an integer"],
    ),
    "no value": Mistake(
        ["method.rank=null"],
        ["method.rank: found null; allowed is an integer, or 'per_set', or a mapping by stage"],
    ),
    "a switch": Mistake(
        ["method.streaming=perhaps", "stage.batch_size=true"],
        [
            "stage.batch_size: found true; allowed is an integer",
            "method.streaming: found 'perhaps'; allowed is true or false, or a mapping by stage",
        ],
    ),
    "rank": Mistake(
        ["method.rank=33"],
        ["method.rank: found 33; allowed is less than or equal to 32, or 'per_set', or a mapping by stage"],
    ),
    "streaming without a period": Mistake(
        ["method.streaming=true", "method.refresh_every=never"],
        ["method.streaming: needs a number of steps in refresh_every (in sft)"],
    ),
    "more steps than samples to stream": Mistake(
        ["method.streaming=true", "method.samples=20"],
        [
            "method.streaming: chunks of 20 rows (samples=20) cannot be spread over refresh_every=30 "
            "steps; allowed: at most 20 steps, or more samples (in sft)"
        ],
    ),
    "a stage without a value": Mistake(
        ["method.rank={dpo: 4}"],
        ["method.rank: found {dpo: 4}, which has no value for sft; write {dpo: 4, sft: ...}"],
    ),
    "a target that was retired": Mistake(
        ["method.target=gradient+momentum"],
        [
            "method.target: found 'gradient+momentum'; allowed is 'gradient' or 'update', or a mapping by stage; "
            "did you mean 'gradient'?"
        ],
    ),
    "weights that would not move": Mistake(
        ["model.dtype=bf16", "model.precision=bf16"],
        [
            "model.dtype: weights stored in bf16 do not move at the learning rates of full fine-tuning, so "
            "method=ogpsa would not train; allowed: fp32 (model.precision=bf16 is autocast over it), or method=lora, "
            "ogpsa_lora"
        ],
    ),
    "choice": Mistake(
        ["model.precision=fp16"],
        ["model.precision: found 'fp16'; allowed is 'fp32' or 'bf16'; did you mean 'bf16'?"],
    ),
    # Ranges.
    "learning rate zero": Mistake(
        ["stage.learning_rate=0"], ["stage.learning_rate: found 0; allowed is greater than 0"]
    ),
    "learning rate infinite": Mistake(
        ["stage.learning_rate=inf"], ["stage.learning_rate: found inf; allowed is a finite number"]
    ),
    "learning rate no number": Mistake(
        ["stage.learning_rate=nan"], ["stage.learning_rate: found nan; allowed is a finite number"]
    ),
    "rank negative": Mistake(
        ["method.rank=-1"],
        ["method.rank: found -1; allowed is greater than or equal to 0, or 'per_set', or a mapping by stage"],
    ),
    "refresh_every zero": Mistake(
        ["method.refresh_every=0"],
        [
            "method.refresh_every: found 0; allowed is greater than or equal to 1, or 'never', or a share of the "
            "training's rows such as '10%', or a mapping by stage"
        ],
    ),
    "refresh_every zero in one stage": Mistake(
        ["method.refresh_every={sft: 0}"],
        [
            "method.refresh_every.sft: found 0; allowed is greater than or equal to 1, or 'never', or a share of the "
            "training's rows such as '10%'"
        ],
    ),
    "refresh_every of no rows": Mistake(
        ["method.refresh_every={sft: 0%, dpo: 5}"],
        ["method.refresh_every: found a share of 0; allowed: one above 0, and no K with it (in sft)"],
    ),
    "seed too large": Mistake(["seed=4294967296"], ["seed: found 4294967296; allowed is less than 4294967296"]),
    "warm-up": Mistake(["stage.warmup_ratio=2"], ["stage.warmup_ratio: found 2; allowed is less than 1"]),
    # Processes (tests/distributed/test_launch.py has the rest).
    "mode without torchrun": Mistake(
        ["distributed=ddp"],
        [
            "distributed.name: ddp needs several processes, but one was started; "
            "type: torchrun --nproc-per-node 2 train.py distributed=ddp ..."
        ],
    ),
    "processes of a single one": Mistake(
        ["distributed.processes=2"], ["distributed.processes: found 2 with distributed=single; allowed: 1 or null"]
    ),
    "mode misspelt": Mistake(
        ["distributed=fsdp"],
        [
            "distributed: 'fsdp' is not an option; allowed: ddp, fsdp2, fsdp2_two_nodes, single, zero2, zero3; "
            "did you mean 'fsdp2'?"
        ],
    ),
    # Settings that do not go together.
    "batch and micro-batch": Mistake(
        ["stage.batch_size=10", "stage.micro_batch_size=4"],
        ["stage: batch_size=10 is not a multiple of micro_batch_size=4"],
    ),
    "batch larger than the safety set": Mistake(
        ["stage.batch_size=128"],
        [
            "stage.batch_size: 128 rows a step, but the safety set holds only 64; "
            "lower it (and micro_batch_size) or add rows"
        ],
    ),
    "rank larger than the chunks": Mistake(
        ["method.samples=4", "method.rank=9"],
        ["method.rank: 9 needs 5 chunks a set, but samples=4 rows can be cut into 4; allowed: 0 to 8 (in sft)"],
    ),
    "samples larger than the set": Mistake(
        ["method.samples=201"],
        [
            "method.samples: 201 rows wanted for sft, but each testbed set holds data.reference_rows=200; "
            "lower the one or raise the other"
        ],
    ),
    "reference set unknown": Mistake(
        ["method.reference_sets=[helpfulnes]"],
        [
            "method.reference_sets: 'helpfulnes' is not among data=testbed's sets for sft; "
            "allowed: helpfulness, truthfulness, preference, general, mathematics, knowledge, harmful_answers; "
            "did you mean 'helpfulness'?"
        ],
    ),
    "reference set twice": Mistake(
        ["method.reference_sets=[helpfulness, helpfulness]"],
        ["method.reference_sets: a set is named twice for sft: give each once"],
    ),
    "heads": Mistake(["model.base.heads=3"], ["model.base: hidden_size=32 is not a multiple of twice heads=3"]),
    "replay of no row": Mistake(
        ["stage=grpo", "method=replay", "method.ratio=0.05"],
        ["method.ratio: 0.05 of the 8 prompts of a step in grpo are no row; allowed: 0, or more than 0.0625"],
    ),
    "flash attention that is not installed": Mistake(
        ["model.attention=flash_attention_2"],
        [
            "model.attention: flash_attention_2 needs flash_attn or kernels, which are not installed; type: pip "
            "install flash-attn",
            "model.attention: flash_attention_2 computes in bf16 alone, and found model.precision=fp32",
        ],
    ),
    "a set that is called as the trainer's own": Mistake(
        ["+data.reference_sets.training=b.jsonl"],
        ["data.reference_sets: 'training' is what a trainer calls rows of its own; name the set otherwise"],
        files=True,
    ),
    "a server in place of a run's checkpoints": Mistake(
        ["eval.backend.name=server", "eval.backend.base_url=http://localhost:1/v1", "eval.backend.model=m"],
        [
            "eval.backend.name: a server holds one model, which would answer for every checkpoint of a run; allowed "
            "here: model, vllm; python -m eval asks a server"
        ],
    ),
    "tracker project": Mistake(
        ["tracker.project=a/b"],
        [r"tracker.project: found 'a/b'; allowed is String should match pattern '^[^/\\#?%:]+$'"],
    ),
    # The user's rows.
    "safety set missing": files("data.safety: nowhere.jsonl: no such file", lambda: None, "data.safety=nowhere.jsonl"),
    "safety set a folder": files(
        "data.safety: model: a folder; expected a file of one JSON object a line", lambda: None, "data.safety=model"
    ),
    "reference file missing": files(
        "data.reference_sets.truthfulness: b.jsonl: no such file", lambda: None, *REFERENCE
    ),
    "reference set too small": files(
        "method.samples: 2 rows wanted for sft, but reference set 'helpfulness' holds 1; "
        "lower method.samples or add rows",
        write("b.jsonl", json.dumps(ROW)),
        *REFERENCE,
        "method.samples=2",
    ),
    "rows without the column": files(
        "data.safety: rows.jsonl:1 has no text in column 'completion' or 'chosen' (columns found: choosen, prompt); "
        "sft need completion or chosen, prompt; did you mean 'choosen'?",
        rows({"prompt": "a", "choosen": "b"}),
    ),
    "rows with the name of another program": files(
        "data.safety: rows.jsonl:1 has no text in column 'completion' or 'chosen' (columns found: Completion, prompt); "
        "sft need completion or chosen, prompt; did you mean 'Completion'?",
        rows({"prompt": "a", "Completion": "b"}),
    ),
    "rows in the file of a list": files(
        "data.safety: rows.json: not readable as JSON (Extra data: line 2 column 1 (char 33)); expected a list of "
        "objects, or an object of such lists; a file with an object a line is named .jsonl",
        write("rows.json", '{"prompt": "a", "chosen": "b c"}\n{"prompt": "d", "chosen": "e f"}\n'),
        "data.safety=rows.json",
    ),
    "rows with an empty completion": files(
        "data.safety: rows.jsonl:1 has no text in column 'completion' or 'chosen' (columns found: completion, prompt); "
        "sft need completion or chosen, prompt",
        rows({"prompt": "a", "completion": ""}),
    ),
    "rows with a completion that is none": files(
        "data.safety: rows.jsonl:1: column 'completion' holds null; allowed: a text; sft need completion "
        "or chosen, prompt",
        rows({"prompt": "a", "completion": None}),
    ),
    "reference sets that are not named": files(
        "method.reference_sets: 'general' is not among data=files's sets for sft; allowed: none yet; name its rows: "
        "'+data.reference_sets={general: FILE}'",
        rows({"prompt": "a", "completion": "b"}),
        "method=ogpsa",
        "method.reference_sets=[general]",
    ),
    "rows of training and of a test by the hub's names": files(
        "data.safety: rows.json holds the parts test_sft, train_sft, and all of it would be trained on; keep the rows "
        "of 'test_sft' in another file",
        write("rows.json", json.dumps({part: [{"prompt": "a", "chosen": "b"}] for part in ("train_sft", "test_sft")})),
        "data.safety=rows.json",
    ),
    "rows without the column of DPO": files(
        "data.safety: rows.jsonl:1 has no text in column 'rejected' (columns found: completion, prompt); "
        "dpo need chosen, prompt, rejected",
        rows({"prompt": "a", "completion": "b"}),
        "stage=dpo",
    ),
    "row with an empty prompt": files(
        "data.safety: rows.jsonl:2 has no text in column 'prompt' (columns found: chosen, prompt, rejected); "
        "sft need chosen, prompt",
        rows(ROW, ROW | {"prompt": " "}),
    ),
    "empty file": files(
        "data.safety: rows.jsonl holds no rows; expected one JSON object a line", write("rows.jsonl", "")
    ),
    "not JSON": files(
        "data.safety: rows.jsonl:2: not a JSON object; expected one JSON object a line (Expecting property name "
        "enclosed in double quotes at column 2)",
        write("rows.jsonl", json.dumps(ROW) + "\n{'prompt': 'a'}\n"),
    ),
    "not an object": files(
        "data.safety: rows.jsonl:1: not a JSON object; expected one JSON object a line (a JSON list is read from a "
        "file that is named .json)",
        rows(["prompt", "chosen"]),
    ),
    "not UTF-8": files(
        "data.safety: rows.jsonl: not a UTF-8 text file; expected one JSON object a line (line 1 holds the byte 0xC4: "
        "save it as UTF-8, for example by iconv -f WINDOWS-1252 -t UTF-8)",
        write("rows.jsonl", '{"prompt": "Äpfel", "chosen": "b"}'.encode("latin-1")),
    ),
    "binary": files(
        "data.safety: rows.jsonl: not a UTF-8 text file; expected one JSON object a line (UTF-16 or UTF-32: save it as "
        "UTF-8, for example by iconv -f UTF-16 -t UTF-8)",
        write("rows.jsonl", bytes(range(256))),
    ),
    # The user's model.
    "model missing": files(
        "model.path: nowhere does not exist; give a folder or a hub id such as Qwen/Qwen2.5-7B-Instruct",
        lambda: None,
        "model.path=./nowhere",
    ),
    "model a file": files(
        "model.path: rows.jsonl is a file; expected a folder with config.json and *.safetensors",
        lambda: None,
        "model.path=rows.jsonl",
    ),
    "model of the testbed without the testbed": files(
        "model.path: null is the base of data=testbed, but data=files; give a path", lambda: None, "model.path=null"
    ),
    "revision of a folder": files(
        "model.revision: main, but model.path model is a folder; allowed: null (only the hub has revisions)",
        lambda: None,
        "model.revision=main",
    ),
    "revision of the testbed's base": Mistake(
        ["model.revision=main"],
        ["model.revision: main, but the model is the testbed's own base; allowed: null (only the hub has revisions)"],
    ),
    "model without config.json": files(
        "model.path: model holds no config.json; give a folder written by save_pretrained",
        remove("model/config.json"),
    ),
    "model with a damaged config.json": files(
        "model.path: model/config.json holds a list of 0; expected an object; write the checkpoint again",
        write("model/config.json", "[]"),
    ),
    "model without weights": files(
        "model.path: model holds no *.safetensors; convert the weights (pickled ones are not loaded)",
        remove("model/model.safetensors"),
    ),
    "model with pickled weights": files(
        "model.path: model holds no *.safetensors; convert the weights (pickled ones are not loaded)", pickled
    ),
    "model without one of its files of weights": files(
        "model.path: model lacks model-00002-of-00002.safetensors, which model.safetensors.index.json names; write the "
        "checkpoint again",
        half_a_model,
    ),
    "model with truncated weights": files(
        "model.path: model/model.safetensors is damaged or truncated; write the checkpoint again",
        cut("model/model.safetensors", 5000),
    ),
    "model with another file as weights": files(
        "model.path: model/model.safetensors is damaged or truncated; write the checkpoint again",
        write("model/model.safetensors", (8).to_bytes(8, "little") + b'{"a": 1}'),
    ),
    "model without tokenizer": files(
        f"model.path: model holds no tokenizer; expected one of {TOKENIZER}", remove("model/tokenizer.json")
    ),
    "model without chat template": files(
        "model.path: the tokenizer in model has no chat template; use an instruct model",
        remove("model/chat_template.jinja"),
    ),
    # Evaluation.
    "benchmark": Mistake(
        ["eval.safety=[harmful_sen]"],
        ["eval: unknown benchmark 'harmful_sen' (python -m eval benchmarks lists them); did you mean 'harmful_seen'?"],
    ),
    "benchmark twice": Mistake(["eval.safety=[look_alike]"], ["eval: benchmark 'look_alike' is listed twice"]),
    "benchmark folder missing": Mistake(
        ["eval.data_dir=nowhere"],
        [
            "eval.data_dir: nowhere: no such folder; it is to hold harmful_seen.jsonl, harmful_heldout.jsonl, "
            "facts.jsonl, addition.jsonl, reverse.jsonl, repeat.jsonl, maximum.jsonl, category.jsonl, "
            "category_yes_no.jsonl, benign_how_to.jsonl, look_alike.jsonl"
        ],
    ),
    "benchmark rows missing": files("benchmarks/facts.jsonl: no such file", remove("benchmarks/facts.jsonl")),
    "several files missing": Mistake(
        ["data.safety=nowhere.jsonl", "model.path=./nowhere"],
        [
            "data.safety: nowhere.jsonl: no such file",
            "model.path: nowhere does not exist; give a folder or a hub id such as Qwen/Qwen2.5-7B-Instruct",
            "benchmarks/facts.jsonl: no such file",
            "benchmarks/addition.jsonl: no such file",
        ],
        remove("benchmarks/facts.jsonl", "benchmarks/addition.jsonl"),
        files=True,
    ),
    "benchmark row without a target": files(
        "benchmarks/facts.jsonl:1: target: found None; a row holds the texts id, prompt, target",
        write("benchmarks/facts.jsonl", '{"id": "1", "prompt": "a"}\n'),
    ),
    "benchmarks of the testbed without the testbed": Mistake(
        ["eval.data_dir=null", "eval.safety=[harmful_seen]", "eval.utility=[facts]", "eval.over_refusal=[]"],
        [
            "eval.data_dir: data=files brings no rows for harmful_seen, facts; choose other benchmarks, as with "
            "eval=quick, or name a folder that holds harmful_seen.jsonl, facts.jsonl"
        ],
        files=True,
    ),
    # The run directory.
    "output below a file": Mistake(
        ["hydra.run.dir=file/run"],
        ["hydra.run.dir: file/run lies below file, which is a file; choose another directory"],
        write("file", "mine"),
    ),
    "output a file": Mistake(
        ["hydra.run.dir=file"], ["hydra.run.dir: file is a file; choose another directory"], write("file", "mine")
    ),
    "output in a folder without permission": Mistake(
        ["hydra.run.dir=locked/run"],
        ["hydra.run.dir: locked/run cannot be written: no permission on locked; choose another directory"],
        locked_folder,
    ),
    "cache a file": Mistake(
        ["cache_dir=file"], ["cache_dir: file is a file; choose another directory"], write("file", "")
    ),
    "directory of another configuration": finished(
        "hydra.run.dir: run holds a run of another configuration; differing: seed (0 there, 1 here), "
        "stage.epochs (3.0 there, 2.0 here); choose another directory",
        lambda: None,
        "seed=1",
        "stage.epochs=2",
    ),
    "config.yaml damaged": finished(
        "run/config.yaml: not readable as a configuration; move run away or choose another",
        write("run/config.yaml", "seed: ["),
    ),
    "config.yaml no configuration": finished(
        "run/config.yaml: not readable as a configuration; move run away or choose another",
        write("run/config.yaml", "- seed"),
    ),
    "finished stage truncated": finished(
        "hydra.run.dir: run/01-sft/model.safetensors has 5000 of 142200 bytes; delete run/01-sft to recreate it",
        cut("run/01-sft/model.safetensors", 5000),
    ),
    "metrics.json damaged": finished(
        "run/metrics.json: not readable as JSON (Unterminated string starting at: line 1 column 2 (char 1)); "
        "delete it to recreate it",
        write("run/metrics.json", '{"safe'),
    ),
    "metrics.json of something else": finished(
        "run/metrics.json: holds no result of a run; delete it to recreate it",
        write("run/metrics.json", "{}"),
    ),
    "two runs in one directory": Mistake(
        [],
        ["hydra.run.dir: another process runs in HERE/run; wait for it or choose another directory (HOLDER)"],
        held=True,
    ),
    # Sweeps.
    "two points in one directory": Mistake(
        ["stage=sft", "seed=0,1", "hydra.sweep.subdir=mine"],
        [
            "SMALL stage=sft seed=1: would run in the same directory as SMALL stage=sft seed=0, outputs/mine; "
            "drop one, or tell them apart in hydra.sweep.subdir"
        ],
        sweep=True,
    ),
    "one point out of range": Mistake(
        ["stage=sft", "seed=0,-1"],
        ["SMALL stage=sft seed=-1: seed: found -1; allowed is greater than or equal to 0"],
        sweep=True,
    ),
}
# Through a process of its own, for the exit code that a shell sees.
STARTED = ["learning rate zero", "model with truncated weights", "two points in one directory"]


@pytest.fixture(scope="session")
def base(small: list[str]) -> Path:
    return ensure_base(compose_config(small))


@pytest.fixture(scope="session")
def finished_run(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("finished")
    assert run_here(*small, *TESTBED, cwd=place).code == 0
    return place / "run"


@contextmanager
def _lay_out(mistake: Mistake, small: list[str], request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Put into the working directory what the mistake needs and yield the whole command line."""
    if mistake.files:
        _write_files(request.getfixturevalue("base"))
    if mistake.finished:
        shutil.copytree(request.getfixturevalue("finished_run"), "run")
    mistake.spoil()
    holding: AbstractContextManager[None] = exclusive(Path("run", LOCK_FILE), "busy") if mistake.held else nullcontext()
    with holding:
        start = FILES if mistake.files else small if mistake.sweep else [*small, *TESTBED]
        yield [*(["-m"] if mistake.sweep else []), *start, *mistake.overrides]


def _write_files(base: Path) -> None:
    rows(ROW)()
    # A user's model has no record of its complete files.
    shutil.copytree(base, "model", ignore=shutil.ignore_patterns(COMPLETE_FILE))
    for benchmark in find_benchmarks(BENCHMARKS.split(", ")):
        write_jsonl(Path("benchmarks", f"{benchmark.rows}.jsonl"), [{"id": "1", "prompt": "a", "target": "b"}])


def _expected(mistake: Mistake, small: list[str]) -> list[str]:
    words = {
        "HERE": str(Path.cwd()),
        "SMALL": " ".join(small),
        "HOLDER": f"host {socket.gethostname()}, pid {os.getpid()}, job {os.environ.get('SLURM_JOB_ID', 'none')}",
    }
    lines = mistake.lines
    for word, text in words.items():
        lines = [line.replace(word, text) for line in lines]
    return [f"error: {line}" for line in lines]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * mistake.finished) for name, mistake in MISTAKES.items()]
)
def test_is_refused_in_a_line_and_touches_nothing(
    name: str, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    mistake = MISTAKES[name]
    if mistake.spoil is locked_folder and os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    monkeypatch.chdir(tmp_path)
    with _lay_out(mistake, small, request) as arguments:
        before = contents(tmp_path)
        result = run_here(*arguments, cwd=tmp_path)
        assert contents(tmp_path) == before
    assert result.stderr.splitlines() == _expected(mistake, small)
    assert (result.code, result.stdout) == (2, "")


@pytest.mark.slow
@pytest.mark.parametrize("name", STARTED)
def test_exit_code_of_the_process(
    name: str, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    with _lay_out(MISTAKES[name], small, request) as arguments:
        before = contents(tmp_path)
        result = run(*arguments, cwd=tmp_path)
        assert contents(tmp_path) == before
    assert result.stderr.splitlines() == _expected(MISTAKES[name], small)
    assert (result.code, result.stdout) == (2, "")


@pytest.mark.slow
def test_what_the_mistakes_spoil_is_sound(
    small: list[str], base: Path, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _write_files(base)
    train.check(compose_config(FILES), Path("run"))
    shutil.copytree(finished_run, "run")
    train.check(compose_config([*small, *TESTBED]), Path("run"))


@pytest.mark.slow
def test_model_that_is_neither_here_nor_fetched(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _write_files(base)
    result = run_here(*FILES, "model.path=models/nowhere", cwd=tmp_path)
    assert result.stderr.splitlines()[-1].startswith("error: model.path: models/nowhere is ")
    assert "Traceback" not in result.stderr
    assert (result.code, result.stdout) == (2, "")


def test_separators_inside_a_text_do_not_end_a_line(tmp_path: Path) -> None:
    found = [{"prompt": "one\u2028two\u2029three\u0085four"}, {"prompt": "five"}]
    write_jsonl(tmp_path / "rows.jsonl", found)
    assert read_jsonl(tmp_path / "rows.jsonl") == found
