"""Provenance of a result: every session that worked on it, nothing secret."""

import platform
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ogpsa import __version__
from ogpsa.config import Config
from ogpsa.distributed import processes
from ogpsa.utils.files import read_json, write_json
from ogpsa.utils.signals import deaf_children

PACKAGES = (
    "torch", "transformers", "trl", "peft", "accelerate", "datasets", "lm_eval", "hydra-core", "numpy", "wandb",
)  # fmt: skip
REPOSITORY = Path(__file__).resolve().parents[2]
# Where files count that git does not know yet, as a method just added, in git's patterns; the lists of runs that
# slurm=true writes do not.
CODE = ("ogpsa", "eval", "conf", "experiments/*.py", "experiments/definitions", "slurm", ":!slurm/sweeps", "train.py")


def record(file: Path, config: Config, data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Write this run's provenance to ``file`` and return it; a run that is resumed adds a session."""
    earlier: dict[str, Any] = read_json(file) if file.exists() else {}
    facts = earlier | {"seeds": {"seed": config.seed, "data.seed": config.data.seed}, "data": dict(data)}
    facts["sessions"] = [*earlier.get("sessions", []), _session(overrides)]
    write_json(file, facts)
    return facts


def _session(overrides: Sequence[str]) -> dict[str, Any]:
    import torch

    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "overrides": list(overrides),
        "git": git_state(),
        "python": sys.version.split()[0],
        "packages": {"ogpsa": __version__} | {name: version(name) for name in PACKAGES},
        "host": {
            "name": socket.gethostname(),
            "platform": platform.platform(),
            "threads": torch.get_num_threads(),
            "world_size": processes.world_size(),
        },
    }


def git_state() -> dict[str, Any] | None:
    """Revision, and whether tracked files differ from it or the code has others; None outside a git checkout."""
    revision = _git("rev-parse", "HEAD")
    if revision is None:
        return None
    changed = _git("status", "--porcelain", "--untracked-files=no")
    added = _git("ls-files", "--others", "--exclude-standard", "--", *CODE)
    return {"revision": revision, "dirty": bool(changed or added)}


def _git(*arguments: str) -> str | None:
    try:
        with deaf_children():
            done = subprocess.run(
                # Of a checkout that belongs to somebody else git would say nothing.
                ["git", "-c", "safe.directory=*", "-C", str(REPOSITORY), *arguments],
                capture_output=True,
                text=True,
                check=False,
            )
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
