"""The evaluated model: where its files are, and what identifies it in the artefacts."""

import hashlib
from pathlib import Path

from ogpsa.config import Backend
from ogpsa.models.files import adapter_problem, cached_folder
from ogpsa.utils.errors import UserError, closest_folder
from ogpsa.utils.files import find_damage, is_complete


def checkpoint_folder(checkpoint: Path) -> Path:
    """The local folder of a checkpoint, or of a hub id that is in the local cache.

    Raises:
        UserError: neither is there, the folder holds no weights, or a file is not as its stage wrote it.
    """
    folder = checkpoint
    if not checkpoint.is_dir():
        cached = cached_folder(str(checkpoint))
        if cached is None:
            raise UserError(
                f"checkpoint: {checkpoint} is neither a folder nor a model in the local hub cache"
                f"{closest_folder(checkpoint)}"
            )
        folder = cached
    names = {path.name for path in folder.iterdir()}
    absent = [
        expected
        for expected, found in {
            "config.json": "config.json" in names,
            "*.safetensors": any(name.endswith(".safetensors") for name in names),
            # Without its files transformers makes up a tokenizer from the model's type.
            "tokenizer.json": names & {"tokenizer.json", "tokenizer.model", "vocab.json"},
        }.items()
        if not found
    ]
    if "adapter_config.json" in names and "config.json" in absent:
        raise UserError(f"checkpoint: {folder} {adapter_problem(folder)}")
    if absent:
        raise UserError(f"checkpoint: {folder} is not a checkpoint: {', '.join(absent)} missing")
    if is_complete(folder) and (damage := find_damage(folder, contents=True)):
        raise UserError(f"checkpoint: {folder}: {damage}; make the checkpoint again")
    return folder


def server_fingerprint(backend: Backend) -> str:
    """Sixteen hexadecimal digits over a server's address and its model's name: its weights cannot be read."""
    return hashlib.sha256(f"{backend.base_url} {backend.model}".encode()).hexdigest()[:16]
