"""Short runs of everything that trains, and the hashes of what they leave: the same before and after a rebuild.

    python tests/nothing_moved.py --tree DIR --out hashes.json     run DIR's revision
    python tests/nothing_moved.py --compare before.json after.json

Rows that are in the output already are not run again.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SMALL = [
    "data.safety_rows=64", "data.reference_rows=200", "data.evaluation_rows=8", "model.base.steps=2",
    "model.base.accuracy=0",
    "model.base.hidden_size=32", "model.base.layers=2", "tracker=none", "eval.limit=4",
]  # fmt: skip
SHORT = ["stage.batch_size=8", "stage.micro_batch_size=4", "stage.max_steps=9"]
BOTH = [
    "stage=sft_dpo", "stage.sft.batch_size=8", "stage.sft.micro_batch_size=4", "stage.sft.max_steps=9",
    "stage.dpo.batch_size=8", "stage.dpo.micro_batch_size=4", "stage.dpo.max_steps=5",
]  # fmt: skip
OGPSA = ["method=ogpsa", "method.samples=8", "method.refresh_every=3"]
LORA = ["method=ogpsa_lora", "method.samples=8", "method.refresh_every=3"]
# Removed in favour of a key: the old option, and what stands for it now.
RENAMED = {"method=ogpsa_selected": ("conf/method/ogpsa_selected.yaml", ["method=ogpsa", "method.selection=conflict"])}

ROWS: dict[str, list[str]] = {
    "baseline_sft": ["method=baseline", "stage=sft", *SHORT],
    "baseline_dpo": ["method=baseline", "stage=dpo", *SHORT],
    "baseline_sft_dpo": ["method=baseline", *BOTH],
    "lora_sft_dpo": ["method=lora", *BOTH],
    "lora_dropout": ["method=lora", "stage=sft", *SHORT, "method.lora_dropout=0.1", "method.lora_rank=4"],
    "replay_sft_dpo": ["method=replay", *BOTH],
    "merge_end": ["method=merge", *BOTH],
    "merge_each": ["method=merge", "method.merge_after=stage", "method.weight=0.75", *BOTH],
    "anchor": ["method=anchor", *BOTH],
    "nspo": ["method=nspo", "method.samples=60", *BOTH],
    "ogpsa_merge": ["method=ogpsa_merge", "method.samples=8", "method.refresh_every=3", *BOTH],
    "ogpsa_selected": ["method=ogpsa_selected", "method.samples=8", "method.refresh_every=3", "stage=sft", *SHORT],
    "ogpsa_lora": [*LORA, *BOTH],
    "ogpsa_sft": [*OGPSA, "stage=sft", *SHORT],
    "ogpsa_dpo": [*OGPSA, "stage=dpo", *SHORT],
    "ogpsa_paper_keys": ["method=ogpsa", "method.samples=16", *BOTH],
    "ogpsa_rank_0": [*OGPSA, "method.rank=0", "stage=sft", *SHORT],
    "ogpsa_rank_8": [*OGPSA, "method.rank=8", *BOTH],
    "ogpsa_never": [*OGPSA, "method.refresh_every=never", "stage=sft", *SHORT],
    "ogpsa_tensor": [*OGPSA, "method.scope=tensor", *BOTH],
    "ogpsa_conflict": [*OGPSA, "method.sided=conflict", *BOTH],
    "ogpsa_conflict_tensor": [*OGPSA, "method.sided=conflict", "method.scope=tensor", "stage=sft", *SHORT],
    "ogpsa_update": [*OGPSA, "method.target=update", *BOTH],
    "ogpsa_streaming": [*OGPSA, "method.streaming=true", *BOTH],
    "ogpsa_bf16_basis": [*OGPSA, "method.basis_dtype=bf16", "stage=sft", *SHORT],
    "ogpsa_int8_basis": [*OGPSA, "method.basis_dtype=int8", "stage=sft", *SHORT],
    "ogpsa_bf16": [*OGPSA, "model.precision=bf16", *BOTH],
    "ogpsa_checkpointing": [*OGPSA, "model.gradient_checkpointing=true", "stage=sft", *SHORT],
    "ogpsa_sgd": [*OGPSA, "stage.optimizer=sgd", "stage=sft", *SHORT],
    "stage_store": [*OGPSA, "stage_store=store", *BOTH],
}
DISTRIBUTED = {
    f"{mode}_{name}": (mode, row)
    for mode in ("ddp", "fsdp2", "zero2", "zero3")
    for name, row in {
        "baseline": ["method=baseline", *BOTH],
        "ogpsa": [*OGPSA, "method.samples=7", *BOTH],
        "lora": [*LORA, "method.samples=7", "stage=sft", *SHORT],
        "update": [*OGPSA, "method.target=update", "stage=sft", *SHORT],
    }.items()
}
RESUMED = [*OGPSA, *BOTH, "stage.sft.save_every=4", "stage.dpo.save_every=2"]
SHIM = "import runpy, sys; from tests.distributed.shims import allow; allow(sys.argv[1]); sys.argv = sys.argv[2:]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tree", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--compare", type=Path, nargs=2)
    options = parser.parse_args()
    if options.compare:
        sys.exit(compare(*options.compare))
    tree, out = options.tree.resolve(), options.out.resolve()
    done = json.loads(out.read_text()) if out.is_file() else {}
    with tempfile.TemporaryDirectory() as work:
        for name in [*ROWS, *DISTRIBUTED, "resumed", "demo"]:
            if name in done or options.only not in name:
                continue
            began = time.monotonic()
            done[name] = hashes(run(name, tree, Path(work)))
            out.write_text(json.dumps(done, indent=2) + "\n")
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)


def run(name: str, tree: Path, work: Path) -> Path:
    """Do one row's run and return its directory."""
    directory = work / name
    command = [sys.executable, str(tree / "train.py")]
    overrides = [*SMALL, f"cache_dir={work / 'cache'}", f"hydra.run.dir={directory}"]
    if name == "demo":
        overrides = ["method=ogpsa", "stage=sft_dpo", "tracker=none", *overrides[-2:]]
    elif name in DISTRIBUTED:
        mode, row = DISTRIBUTED[name]
        wrapper = work / "shimmed.py"
        wrapper.write_text(f"{SHIM}\nrunpy.run_path(sys.argv[0], run_name='__main__')\n")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        command += [str(wrapper), mode, str(tree / "train.py"), f"distributed={mode}"]
        overrides += row
    else:
        overrides += RESUMED if name == "resumed" else ROWS[name]
    for old, (file, new) in RENAMED.items():
        if old in overrides and not (tree / file).exists():
            overrides[overrides.index(old) : overrides.index(old) + 1] = new
    environment = os.environ | {
        "PYTHONPATH": str(tree), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    if name == "resumed":
        killed = subprocess.Popen([*command, *overrides], cwd=work, env=environment, stderr=subprocess.DEVNULL)
        while not list(directory.glob("01-sft/checkpoints/checkpoint-4/COMPLETE.json")) and killed.poll() is None:
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    done = subprocess.run(
        [*command, *overrides], cwd=work, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(f"{name}: exit code {done.returncode}\n{done.stderr[-3000:]}", file=sys.stderr, flush=True)
    return directory


def hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of the weights and of ``metrics.json`` in a run's directory.

    Without the verdicts' own hashes: they hold that of the judges' code, whose imports a rebuild changes.
    """
    found = {
        file.relative_to(directory).as_posix(): file.read_bytes()
        for file in sorted(directory.glob("*/model.safetensors"))
    }
    metrics = directory / "metrics.json"
    if metrics.is_file():
        lines = metrics.read_text(encoding="utf-8").splitlines()
        found[metrics.name] = "\n".join(line for line in lines if '"verdicts_hash"' not in line).encode()
    return {name: hashlib.sha256(content).hexdigest()[:16] for name, content in found.items()}


def compare(before: Path, after: Path) -> int:
    """Say which rows differ; returns how many."""
    old, new = json.loads(before.read_text()), json.loads(after.read_text())
    different = [name for name in old if not old[name] or old[name] != new.get(name)]
    for name in different:
        print(f"{name}: {old[name]} before, {new.get(name, 'not run')} after")
    print(f"{len(old) - len(different)} of {len(old)} rows are equal")
    return len(different)


if __name__ == "__main__":
    main()
