"""Null spaces of an untuned model, computed once and kept on disk under a key of all that decides them."""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from ogpsa.config import Model
from ogpsa.models.files import fingerprint
from ogpsa.models.load import load_model
from ogpsa.models.text import linear_layers, other_matrices
from ogpsa.models.tokenizer import conversation_tokens, load_tokenizer
from ogpsa.nullspace.moments import empty_model, in_portions, second_moments, shared_inputs
from ogpsa.nullspace.settings import Modules, SpaceSettings, last_parts, meant, selected_layers
from ogpsa.nullspace.space import NullSpace, fitting_thresholds, null_space
from ogpsa.utils.errors import UserError, first_few
from ogpsa.utils.files import (
    COMPLETE_FILE,
    build_folder,
    exclusive,
    hash_files,
    is_undamaged,
    mark_complete,
    read_json,
)

log = logging.getLogger(__name__)
SPACE_FILE = "space.safetensors"
# In it: the threshold above which each direction is null.
LEVELS = "levels"
# Second moments that are summed up in one pass over the rows; a layer whose own are larger takes a pass alone.
MOMENTS_BYTES = 8e9
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Layers that a message names.
NAMED = 3


@dataclass(frozen=True)
class KeptSpaces:
    """A folder of null spaces, one folder in it for each group of layers with the same input.

    Attributes:
        folder: its name is the key of all that decides the spaces.
        groups: the chosen layers of each group, by the group's first layer.
    """

    folder: Path
    groups: dict[str, list[str]]

    @property
    def layers(self) -> list[str]:
        return [layer for layers in self.groups.values() for layer in layers]

    @property
    def seconds(self) -> float:
        """The time that computing them took, on the machine that did."""
        return sum(float(read_json(self.folder / group / COMPLETE_FILE)["seconds"]) for group in self.groups)

    def load(self) -> dict[str, NullSpace]:
        """The space of each group."""
        return {group: self._load(group) for group in self.groups}

    def _load(self, group: str) -> NullSpace:
        facts = read_json(self.folder / group / COMPLETE_FILE)
        return NullSpace(load_file(self.folder / group / SPACE_FILE)["basis"], facts["of_null_side"])


def ensure_spaces(
    cache: Path,
    base: Path,
    model: Model,
    rows: Sequence[Sequence[dict[str, str]]],
    settings: SpaceSettings,
    modules: Modules,
    shares: Sequence[float],
    safe_point: Callable[[], None],
) -> KeptSpaces:
    """The null spaces of the model in ``base`` for the layers that ``modules`` names, computing those not yet kept.

    ``safe_point`` is called while they are computed, and may stop it by raising; the next call resumes.

    Args:
        rows: conversations, each a general row's prompt and answer.
        shares: the least and the largest null share that a layer may have.

    Raises:
        UserError: as ``chosen_groups``, or a null share lies outside ``shares``.
    """
    tokenizer = load_tokenizer(base, model.template_kwargs)
    # Sorted, so that the order of the draw does not matter.
    tokens = sorted(row[: settings.max_length] for row in conversation_tokens(tokenizer, rows))
    folder = cache / "nullspaces" / _key(base, model, tokens, settings)
    described = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    kept = KeptSpaces(folder, chosen_groups(empty_model(described), modules))
    with exclusive(folder.with_suffix(".lock"), "another process computes the null spaces", wait=safe_point):
        missing = [group for group in kept.groups if not is_undamaged(folder / group)]
        if missing:
            _compute(folder, base, model, tokens, settings, missing, safe_point)
    _check_shares(kept, settings, shares)
    return kept


def _key(base: Path, model: Model, tokens: Sequence[Sequence[int]], settings: SpaceSettings) -> str:
    facts = {
        "model": fingerprint(base),
        "computed_in": model.model_dump(mode="json", include={"attention", "precision", "dtype"}),
        "tokens": tokens,
        "settings": asdict(settings),
        "code": sorted(hash_files(sorted(Path(__file__).parent.glob("*.py"))).values()),
        "torch": torch.__version__,
        "device": _device().type,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def chosen_groups(model: PreTrainedModel, modules: Modules) -> dict[str, list[str]]:
    """The layers that ``modules`` names, in groups with one input, by each group's first layer, chosen or not.

    Raises:
        UserError: as ``selected_layers`` and ``shared_inputs``, ``modules`` stands for matrices that are no linear
            layers, or not every token passes through a layer.
    """
    layers, matrices = linear_layers(model), other_matrices(model)
    if lost := [name for names in meant(matrices, modules).values() for name in names]:
        size = sum(matrices[name] for name in set(lost)) / 1e6
        found = modules if isinstance(modules, str) else ", ".join(modules)
        raise UserError(
            f"method.modules: '{found}' also stands for {first_few(lost, NAMED)}, {size:.3g} M weights that are not "
            "torch.nn.Linear and would be unprotected; allowed: endings of names of linear layers alone, here "
            f"{', '.join(last_parts(layers)) or 'none'}"
        )
    groups, chosen = shared_inputs(model), selected_layers(layers, modules)
    reached = {layer for together in groups.values() for layer in together}
    if lost := [layer for layer in chosen if layer not in reached]:
        raise UserError(
            f"method.modules: a forward pass does not send every token through {first_few(lost, NAMED)}, whose "
            "inputs are not known; leave it out"
        )
    members = {group: [layer for layer in together if layer in chosen] for group, together in groups.items()}
    return {group: together for group, together in members.items() if together}


def _compute(
    folder: Path,
    base: Path,
    model: Model,
    tokens: Sequence[Sequence[int]],
    settings: SpaceSettings,
    groups: Sequence[str],
    safe_point: Callable[[], None],
) -> None:
    began, device = time.monotonic(), _device()
    loaded, _ = load_model(base, DTYPES[model.dtype], model.attention, model.template_kwargs)
    torch.nn.Module.to(loaded, device)
    layers = linear_layers(loaded)
    portions = list(in_portions({group: layers[group].in_features for group in groups}, MOMENTS_BYTES))
    log.info("null spaces: %d inputs of linear layers, %d rows, %d passes", len(groups), len(tokens), len(portions))
    for portion in portions:
        portion_began = time.monotonic()
        with torch.autocast(device.type, torch.bfloat16, enabled=model.precision == "bf16"):
            moments = second_moments(loaded, portion, tokens, settings.skip_first_token, safe_point)
        of_passes = (time.monotonic() - portion_began) / len(portion)
        for group in portion:
            safe_point()
            group_began = time.monotonic()
            space, levels = null_space(moments.pop(group), settings.rule, settings.threshold)
            with build_folder(folder / group) as temporary:
                save_file({"basis": space.basis.cpu(), LEVELS: levels.cpu()}, temporary / SPACE_FILE)
                seconds = of_passes + time.monotonic() - group_began
                facts = {"of_null_side": space.of_null_side, "share": space.share, "seconds": round(seconds, 4)}
                mark_complete(temporary, facts)
    log.info("null spaces: computed in %.0f s, kept in %s", time.monotonic() - began, folder)


def sizes(config: PretrainedConfig, modules: Modules) -> tuple[int, int]:
    """Weights of the layers that ``modules`` names, and bytes of their null spaces, at most.

    Args:
        config: the model's own.
    """
    model = empty_model(config)
    layers, groups = linear_layers(model), chosen_groups(model, modules)
    weights = sum(layers[name].weight.numel() for names in groups.values() for name in names)
    return weights, _basis_bytes(layers[group].in_features for group in groups)


def _basis_bytes(widths: Iterable[int]) -> int:
    """In fp32, of at most half as many columns as an input has components."""
    return sum(2 * width**2 for width in widths)


def cost(config: PretrainedConfig, rows: int, tokens: int, modules: Modules) -> str:
    """The cost of ``ensure_spaces`` in words.

    Args:
        config: the model's own.
        tokens: of the longest row.
    """
    model = empty_model(config)
    layers = linear_layers(model)
    widths = {group: layers[group].in_features for group in chosen_groups(model, modules)}
    portions = list(in_portions(widths, MOMENTS_BYTES))
    moments = max(8 * sum(widths[group] ** 2 for group in portion) for portion in portions)
    largest, cubes = max(widths.values()), sum(width**3 for width in widths.values())
    return (
        f"{len(portions)} forward pass{'es' * (len(portions) > 1)} over {rows} rows of at most {tokens} tokens with "
        f"{moments / 1e9:.3g} GB of second moments in addition to the weights; {len(widths)} eigendecompositions in "
        f"fp64, up to {largest} × {largest} in {24 * largest**2 / 1e9:.3g} GB, about {9 * cubes / 1e12:.3g} TFLOP "
        f"together; at most {_basis_bytes(widths.values()) / 1e9:.3g} GB on disk and on each device"
    )


def _check_shares(kept: KeptSpaces, settings: SpaceSettings, shares: Sequence[float]) -> None:
    """Refuse layers whose space would freeze them, or would protect next to nothing of them."""
    found = {group: float(read_json(kept.folder / group / COMPLETE_FILE)["share"]) for group in kept.groups}
    least, most = shares
    frozen = [group for group in kept.groups if found[group] < least]
    unprotected = [group for group in kept.groups if found[group] > most]
    if not frozen and not unprotected:
        return
    harms = []
    for groups, harm in ((frozen, "frozen or nearly so"), (unprotected, "hardly protected")):
        layers = [f"{layer} {found[group]:.1%}" for group in groups for layer in kept.groups[group]]
        if layers:
            harms.append(
                f"{len(layers)} of {len(kept.layers)} layers would be {harm} (null shares: {first_few(layers, NAMED)})"
            )
    raise UserError(
        f"method.threshold: found {settings.threshold:g} with method.rule={settings.rule}, by which "
        f"{' and '.join(harms)}; allowed: null shares from {least:.3g} to {most:.3g}, and "
        f"{_fitting_threshold(kept, settings.threshold, shares)}; or take another method.rule, leave layers out of "
        f"method.modules, or allow these by method.null_shares=[{0 if frozen else least:g}, "
        f"{1 if unprotected else most:g}]"
    )


def _fitting_threshold(kept: KeptSpaces, threshold: float, shares: Sequence[float]) -> str:
    """Which threshold, the nearest to ``threshold``, gives all layers an allowed share, if one does."""
    ranges = []
    for group in kept.groups:
        with safe_open(kept.folder / group / SPACE_FILE, framework="pt") as opened:
            ranges.append(fitting_thresholds(opened.get_tensor(LEVELS), *shares))
    low, high = max(low for low, _ in ranges), min(high for _, high in ranges)
    if low >= high:
        return "no threshold gives them to all layers"
    nearest = _short(low, high, upwards=threshold <= low)
    return f"the nearest threshold that gives them to all layers is method.threshold={nearest}"


def _short(low: float, high: float, upwards: bool) -> str:
    """A number between the two in few digits, close above the first or close below the second."""
    for digits in range(2, 17):
        unit = 10.0 ** (math.floor(math.log10(low if upwards else high)) + 1 - digits)
        found = f"{(math.floor(low / unit) + 1 if upwards else math.ceil(high / unit) - 1) * unit:.{digits}g}"
        if low < float(found) < high:
            break
    return found
