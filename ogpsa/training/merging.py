"""Averages of two checkpoints' weights, file by file and tensor by tensor: neither model is ever in memory."""

import logging
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from os import fsync
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ogpsa.models.load import load_model
from ogpsa.runs.directory import HISTORY_FILE
from ogpsa.utils.files import COMPLETE_FILE, build_folder, is_undamaged, mark_complete, read_json

log = logging.getLogger(__name__)


def merge(base: Path, tuned: Path, target: Path, weight: float, safe_point: Callable[[], None] = lambda: None) -> None:
    """Make ``target`` the checkpoint ``tuned`` with the weights ``weight · tuned + (1 - weight) · base``.

    It is complete or absent, and is left alone if it exists. Sums are fp32; files, names and dtypes are
    ``tuned``'s. ``safe_point`` is called before each tensor, and may stop the work by raising.

    Args:
        base: the untuned model's folder, in any division into files.
        tuned: a stage's folder, trained from it.
        weight: in [0, 1]; at 0 the weights are ``base``'s bit for bit, at 1 ``tuned``'s.
    """
    if is_undamaged(target):
        return
    log.info("averaging %s with the untuned model, weight %g", tuned.name, weight)
    trained = tensor_files(tuned)
    with build_folder(target) as folder, ExitStack() as stack:
        files = tensor_files(base)
        if not trained.keys() <= files.keys():
            # Under names of another release, or the other of two that are tied: write it as the stage was written.
            rewritten = folder / "base"
            load_model(base, torch.float32)[0].save_pretrained(rewritten)
            files = tensor_files(rewritten)
        opened = {file: stack.enter_context(safe_open(file, framework="pt")) for file in sorted(set(files.values()))}

        def averaged(name: str, after: Tensor) -> Tensor:
            safe_point()
            return average(opened[files[name]].get_tensor(name), after, weight)

        for file in sorted(set(trained.values())):
            _write_changed(file, folder / file.name, averaged)
        shutil.rmtree(folder / "base", ignore_errors=True)
        left_out = {COMPLETE_FILE, HISTORY_FILE, *(file.name for file in trained.values())}
        for file in tuned.iterdir():
            if file.is_file() and file.name not in left_out:
                shutil.copyfile(file, folder / file.name)
        mark_complete(folder, {"merged": tuned.name, "weight": weight})


def average(before: Tensor, after: Tensor, weight: float) -> Tensor:
    """``weight · after + (1 - weight) · before``, computed in fp32, in the dtype of ``after``."""
    if weight in (0, 1):
        # A zero share would change the sign of some zeros.
        return (after if weight else before).to(after.dtype)
    return (weight * after.float() + (1 - weight) * before.float()).to(after.dtype)


def tensor_files(folder: Path) -> dict[str, Path]:
    """The file of each tensor, as transformers looks for it."""
    whole = folder / SAFE_WEIGHTS_NAME
    if whole.is_file():
        with safe_open(whole, framework="pt") as opened:
            return dict.fromkeys(opened.keys(), whole)
    weight_map: dict[str, str] = read_json(folder / SAFE_WEIGHTS_INDEX_NAME)["weight_map"]
    return {name: folder / file for name, file in weight_map.items()}


def _write_changed(source: Path, target: Path, change: Callable[[str, Tensor], Tensor]) -> None:
    """Rewrite a safetensors file, each tensor changed but for shape and dtype.

    The header stays (8 bytes of length, JSON); the data follow in the order of their offsets, without gaps.
    """
    with safe_open(source, framework="pt") as opened, target.open("wb") as handle:
        with source.open("rb") as original:
            length = original.read(8)
            handle.write(length + original.read(int.from_bytes(length, "little")))
        for name in opened.offset_keys():
            tensor = change(name, opened.get_tensor(name))
            handle.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
        handle.flush()
        fsync(handle.fileno())
