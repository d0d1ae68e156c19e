"""The pre-flight of a run: memory per device, steps and reference passes, before anything starts.

``report`` is what ``python train.py … preflight=true`` prints, from the configuration, the rows and the model's
own configuration; no weights are read. The memory is ``ogpsa/preflight/memory.py``'s.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ogpsa.config import (
    NO_JUDGES,
    Config,
    GRPOSettings,
    Judges,
    Mode,
    OneStage,
    Section,
    SFTSettings,
    StageName,
    config_problems,
)
from ogpsa.data.conversations import as_text
from ogpsa.data.rows import Data, Row
from ogpsa.distributed import processes
from ogpsa.distributed.launch import accumulation_steps, batch_problems, saving_problems
from ogpsa.preflight.memory import GB, SHARDING_WEIGHTS, Estimate, ModelShape, Setup, estimate, shape_of
from ogpsa.subspace.settings import SAFETY_SAMPLE, ProjectionSettings
from ogpsa.utils.endpoint import CHARACTERS_PER_TOKEN
from ogpsa.utils.errors import UserError, first_line
from ogpsa.utils.network import ask_hub
from ogpsa.utils.table import in_columns

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedModel


# Values by dotted keys of a configuration.
Changes = dict[str, Any]


def report(config: Config, data: Data, judges: Judges = NO_JUDGES) -> str:
    """The pre-flight of a run: one paragraph and one table a stage.

    Args:
        judges: of the evaluation, whose own weights a reward may bring along.

    Raises:
        UserError: the model's configuration cannot be found or is of another kind.
    """
    count = config.distributed.processes or processes.world_size()
    memory = device_memory()
    stages = [_stage_report(config, stage, data, count, memory, judges) for stage in config.stages]
    return "\n\n".join([*stages, *config.method.preflight(meta_model(config))])


@dataclass(frozen=True)
class Fit:
    """Whether a run's highest stage fits.

    Attributes:
        peak: bytes per GPU.
        text: that it fits, or what would make it fit.
    """

    peak: float
    fits: bool
    text: str


def fit(config: Config, processes: int, memory: float, judges: Judges) -> Fit:
    """Compare the stage that takes most with ``memory``, in GB per GPU.

    Raises:
        UserError: as ``meta_model``.
    """
    found = []
    for stage in config.stages:
        _, shape = stage_shapes(config, stage.name)
        setup = stage_setup(config, stage, config.distributed.name, processes, judges)
        peak = estimate(shape, setup).peak
        if peak <= memory * GB:
            found.append(Fit(peak, True, "fits"))
            continue
        ways = remedies(config, stage, shape, processes, memory * GB, judges)
        enough = [f"{change} ({changed.peak / GB:.0f} GB)" for change, changed in ways if changed.peak <= memory * GB]
        text = (
            f"{peak / GB:.0f} GB are too much for {memory:g} GB: {' or '.join(enough[:2]) or 'no one change is enough'}"
        )
        found.append(Fit(peak, False, text))
    return max(found, key=lambda one: one.peak)


MEMORY = "OGPSA_GPU_MEMORY_GB"


def told_memory() -> float | None:
    """GB of the run's GPU, from ``OGPSA_GPU_MEMORY_GB``; None if it is not set.

    Raises:
        UserError: it is not a positive number.
    """
    text = os.environ.get(MEMORY, "").strip()
    try:
        memory = float(text) if text else None
    except ValueError:
        memory = math.nan
    if memory is not None and not 0 < memory < math.inf:
        raise UserError(f"{MEMORY}: found '{text}'; expected a number of GB, as 80")
    return memory


def device_memory() -> float | None:
    """Bytes of a GPU: what ``OGPSA_GPU_MEMORY_GB`` says, or this machine's first one's, if it has one.

    Raises:
        UserError: as ``told_memory``.
    """
    told = told_memory()
    if told is not None:
        return told * GB
    import torch

    return float(torch.cuda.mem_get_info()[1]) if torch.cuda.is_available() else None


def _stage_report(
    config: Config, stage: OneStage, data: Data, processes: int, memory: float | None, judges: Judges
) -> str:
    whole, shape = stage_shapes(config, stage.name)
    if config.method.trains_adapters:
        trained = f"and {_count(shape.trained)} trained in adapters"
    else:
        trained = f"{'all' if shape.trained == shape.parameters else _count(shape.trained)} of them trained"
    lines = [f"{config.model.name}: {_count(whole.parameters)} parameters, {trained}"]
    projection = config.method.projection(stage.name)
    rows = len(data.training(stage.name))
    counts = count(stage, projection, data, config.model.gradient_checkpointing, processes)
    asked, trained = f"{rows} rows", "rows"
    if isinstance(stage, GRPOSettings):
        asked, trained = f"{rows} prompts × {stage.num_generations} completions", "completions"
    lines.append(
        f"{stage.name}: {asked} × {stage.epochs:g} epochs in batches of {stage.batch_size}: "
        f"{counts.steps} steps, {counts.samples} {trained}"
        f"{'; fewer steps, since the rows are packed' if isinstance(stage, SFTSettings) and stage.packing else ''}"
    )
    if projection is not None:
        estimates = "streamed estimates" if projection.streaming else "refreshes"
        lines.append(
            f"{config.method.name}: {counts.refreshes} {estimates}, {counts.reference_samples} reference rows: "
            f"{counts.share:.1%} of all rows, {counts.work:.1%} of the work by length of the texts"
        )
    own = stage_setup(config, stage, config.distributed.name, processes, judges)
    if own.judge_bytes:
        lines.append(
            f"reward: {own.judge_bytes / GB:.3g} GB of judges' weights on the main process's GPU, among the weights"
        )
    if config.method.trains_adapters:
        lines.append(
            f"merge: {shape.merging / GB:.3g} GB of the main process's host memory after the stage, for its start in "
            "fp32 with the adapters"
        )
    loaded = (2 if config.model.dtype == "bf16" else 4) * whole.elements
    if own.frozen_copy and own.mode == "fsdp2" and not config.method.trains_adapters:
        # The copy of the start is made before the shards are; elsewhere on the GPU.
        loaded *= 2
    lines.append(
        f"loading: {loaded / GB:.3g} GB of host memory per process, {processes * loaded / GB:.3g} GB in all, until the "
        "weights are on the GPUs"
    )
    lines.append(
        f"GB per GPU, {processes} process{'es' if processes > 1 else ''}, micro-batches of {stage.micro_batch_size} "
        f"{'pairs' if own.pairs else 'rows'} of {stage.max_length} tokens:"
    )
    lines += in_columns([_cells(shape, replace(own, mode=mode)) for mode in get_args(Mode)], ">")
    lines.append(
        "peak: the highest moment, not the sum: a refresh holds the references and no basis; gradient checkpointing is "
        f"{'on: checkpointed' if own.checkpointing else 'off: activations'} counts"
    )
    peak = estimate(shape, own).peak
    if memory is None:
        return "\n".join([*lines, f"no GPU on this machine to compare with; {MEMORY}=80 says what another has"])
    whose = "this GPU's" if told_memory() is None else f"{MEMORY}'s"
    if peak <= memory:
        return "\n".join([*lines, f"fits: {peak / GB:.1f} of {whose} {memory / GB:.1f} GB"])
    lines.append(f"does not fit: {peak / GB:.1f} GB of {whose} {memory / GB:.1f} GB; by what it saves:")
    for change, changed in remedies(config, stage, shape, processes, memory, judges):
        fits = "fits" if changed.peak <= memory else "not enough alone"
        lines.append(f"  {change}: {changed.peak / GB:.1f} GB, {fits}")
    return "\n".join(lines)


def _cells(shape: ModelShape, setup: Setup) -> dict[str, str]:
    found = estimate(shape, setup)
    plain, checkpointed = (
        estimate(shape, replace(setup, checkpointing=checkpointing)).activations for checkpointing in (False, True)
    )
    sizes = {
        "weights": found.weights,
        "gradients": found.gradients,
        "optimizer": found.optimizer,
        "basis": found.basis,
        "references": found.references + found.streams,
        "buffers": found.communication,
        "activations": plain,
        "checkpointed": checkpointed,
        "peak": found.peak,
        "host": found.host,
    }
    cells = {name: f"{size / GB:.1f}" if size >= GB else f"{size / GB:.3g}" for name, size in sizes.items()}
    return {"distributed": setup.mode, **cells, "moment": found.peak_moment}


def remedies(
    config: Config, stage: OneStage, shape: ModelShape, processes: int, memory: float, judges: Judges = NO_JUDGES
) -> list[tuple[str, Estimate]]:
    """Changes that lower a stage's peak, the largest saving first: what to type, and the estimate with it.

    Each is accepted wherever the configuration itself is.

    Args:
        shape: the model's sizes in ``stage``; ``processes``: those of ``config``.
        memory: bytes of a device; sharding is proposed over as few processes as make it fit, up to 64 times these.
    """
    key, problems = config.stage_key(stage.name), {*_problems(config, processes)}
    now = estimate(shape, stage_setup(config, stage, config.distributed.name, processes, judges)).peak

    def lower(changes: Changes, count: int) -> Estimate | None:
        changed = _changed(config, changes)
        if changed is None or not problems.issuperset(_problems(changed, count)):
            return None
        [same] = (one for one in changed.stages if one.name == stage.name)
        found = estimate(shape, stage_setup(changed, same, changed.distributed.name, count, judges))
        return found if found.peak < now else None

    savings: list[Changes] = [
        {"method.basis_dtype": "int8"},
        {"method.basis_device": "host"},
        {"method.streaming": False},
        {f"{key}.micro_batch_size": 1},
        {"model.gradient_checkpointing": True},
        # Autocast is what it goes with.
        {"model.dtype": "bf16"} | ({} if config.model.precision == "bf16" else {"model.precision": "bf16"}),
        {"method.lora_quantize": "nf4"},
        {f"{key}.optimizer": "adamw_8bit"},
        *([{"model.activation_offload": True}] if config.model.gradient_checkpointing else []),
    ]
    ways = {_typed(changes): lower(changes, processes) for changes in savings}
    # What cannot be sharded.
    off: Changes = {
        f"{config.stage_key(one.name)}.optimizer": "adamw" for one in config.stages if one.optimizer.endswith("8bit")
    }
    off |= {"model.activation_offload": False} if config.model.activation_offload else {}
    off |= {"method.lora_quantize": None} if config.method.quantization(stage.name) else {}
    given_up = f", {_typed(off)}" if off else ""
    for mode in SHARDING_WEIGHTS:
        spread: dict[str, Estimate] = {}
        for count in (processes * 2**power for power in range(1, 7)):
            if found := lower(off | {"distributed.name": mode, "distributed.processes": count}, count):
                spread = {f"distributed={mode} with {count} processes{given_up}": found}
                if found.peak <= memory:
                    break
        ways |= spread
    return sorted(((words, found) for words, found in ways.items() if found), key=lambda way: way[1].peak)


def _problems(config: Config, processes: int) -> list[str]:
    """Why a configuration is refused on ``processes`` processes, but for packages that can be installed."""
    return [*config_problems(config), *batch_problems(config, processes), *saving_problems(config)]


def _changed(section: Section, changes: Changes) -> Any:
    """``section`` with other values at some dotted keys; None if it has no such key."""
    for key, value in changes.items():
        first, _, rest = key.partition(".")
        if first not in type(section).model_fields:
            return None
        changed = _changed(vars(section)[first], {rest: value}) if rest else value
        if rest and changed is None:
            return None
        section = section.model_copy(update={first: changed})
    return section


def _typed(changes: Changes) -> str:
    """Changes as they are typed on the command line."""
    return " ".join(f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changes.items())


def _count(elements: int) -> str:
    return f"{elements / 1e9:.2f} B" if elements >= 1e9 else f"{elements / 1e6:.2f} M"


@dataclass(frozen=True)
class Counts:
    """Steps and rows of one stage.

    Attributes:
        steps: optimizer steps; ``samples``: training rows over all of them.
        refreshes: estimates of the subspace (streaming: one per step); ``reference_samples``: rows of their passes.
        share: of the reference rows among all rows; ``work``: of their passes in the work of all passes.
        characters: that work, in characters of training passes.
    """

    steps: int
    samples: int
    refreshes: int
    reference_samples: int
    share: float
    work: float
    characters: float


def count(
    stage: OneStage,
    projection: ProjectionSettings | None,
    data: Data,
    checkpointing: bool,
    processes: int = 1,
) -> Counts:
    """Steps as transformers' trainer takes them, and the passes of the projection.

    Work is forward passes over characters: a training or reference pass counts three (four where
    checkpointing repeats the forward pass), the precomputed log-probabilities of DPO's reference policy one. A
    completion of GRPO counts one for its generation, which takes longer than its work, and one for its likelihood.
    """
    training = data.training(stage.name)
    rows = len(training)
    if isinstance(stage, GRPOSettings):
        steps = stage.max_steps or math.ceil(stage.epochs * (rows // stage.prompts_per_generation)
                                             * stage.updates_per_generation)  # fmt: skip
        samples = steps * stage.batch_size
    else:
        micro_batches = math.ceil(math.ceil(rows / stage.micro_batch_size) / processes)
        per_epoch = math.ceil(micro_batches / max(1, accumulation_steps(stage, processes)))
        steps = stage.max_steps or math.ceil(stage.epochs * per_epoch)
        whole, rest = divmod(steps, per_epoch)
        samples = whole * rows + min(rows, rest * stage.batch_size)
    projection = projection and projection.resolved(steps, stage.batch_size)
    refreshes, passes = _passes(projection, steps, stage.warmup_ratio > 0)
    references = {name: data.reference_sets[name] for name in projection.reference_sets} if projection else {}
    if isinstance(stage, GRPOSettings):
        length = (
            sum(len(as_text(row["prompt"])) for row in training) / rows + CHARACTERS_PER_TOKEN * stage.max_new_tokens
        )
    else:
        length = _mean_length(training, stage.name)
    trained = samples * length
    estimated = passes * sum(_mean_length(part, stage.name) for part in references.values())
    reference_samples = passes * len(references)
    if projection is not None and projection.selection == "conflict":
        # One more pass over every row of each set, and over some rows of the safety set.
        sample = len(references) * min(SAFETY_SAMPLE, rows)
        estimated += sum(len(part) * _mean_length(part, stage.name) for part in references.values())
        estimated += sample * length
        reference_samples += sum(map(len, references.values())) + sample
    forward = 0.0
    if stage.name == "dpo":
        forward = sum(len(part) * _mean_length(part, "dpo") for part in (training, *references.values()))
    elif stage.name == "grpo":
        forward = 2 * trained
    characters = trained + estimated + forward / (4 if checkpointing else 3)
    return Counts(
        steps=steps,
        samples=samples,
        refreshes=refreshes,
        reference_samples=reference_samples,
        share=reference_samples / (samples + reference_samples),
        work=estimated / characters,
        characters=characters,
    )


def _passes(projection: ProjectionSettings | None, steps: int, warmup: bool) -> tuple[int, int]:
    """Number of estimates of the subspace, and of the rows of each set that they take.

    Args:
        warmup: the first step has learning rate zero.
    """
    if projection is None:
        return 0, 0
    every = projection.refresh_every
    if projection.streaming and every is not None:
        whole, rest = divmod(steps, every)
        chunks = [len(range(chunk, projection.samples, projection.chunks)) for chunk in range(projection.chunks)]
        begun = sum(len(range(position, size, every)) for size in chunks for position in range(rest))
        return steps, whole * projection.samples + begun
    due = 1 if every is None else -(-steps // every)
    moved = 2 if warmup else 1
    extra = projection.refresh_after_first_step and moved < steps and (every is None or moved % every != 0)
    return due + extra, (due + extra) * projection.samples


def _mean_length(rows: Sequence[Row], stage: StageName) -> float:
    """Characters that one row sends through the model; a pair of DPO sends its prompt twice."""
    columns = ("prompt", "prompt", "chosen", "rejected") if stage == "dpo" else ("prompt", "chosen")
    return sum(len(as_text(row[column])) for row in rows for column in columns) / len(rows)


def stage_setup(config: Config, stage: OneStage, mode: Mode, processes: int, judges: Judges = NO_JUDGES) -> Setup:
    """A stage's training on GPUs, with every row of full length but one.

    Raises:
        UserError: as ``meta_model``, or the method refuses the model.
    """
    projection = config.method.projection(stage.name)
    references = len(projection.reference_sets) * projection.chunks if projection else 0
    micro = stage.micro_batch_size
    rollouts = stage if isinstance(stage, GRPOSettings) else None
    extra = config.method.memory(_stage_model(config, stage.name), stage.name)
    asked = config.reward.judges() if rollouts and config.reward is not None else ()
    # The packs of a micro-batch are one sequence.
    packs = micro if isinstance(stage, SFTSettings) and stage.packing is not None else 1
    return Setup(
        rows=micro // packs,
        length=stage.max_length * packs,
        pairs=stage.name == "dpo",
        mode=mode,
        processes=processes,
        accumulates=stage.batch_size > micro * processes,
        reference_accumulates=projection is not None and _in_several(projection, micro, processes),
        checkpointing=config.model.gradient_checkpointing,
        offloads=config.model.activation_offload,
        autocast=config.model.precision == "bf16",
        weight_bytes=2 if config.model.dtype == "bf16" else 4,
        quantized=config.method.quantization(stage.name) is not None,
        attention=config.model.attention,
        optimizer=stage.optimizer,
        rank=projection.rank if projection else 0,
        references=references,
        basis_dtype=projection.basis_dtype if projection else "auto",
        basis_device=projection.basis_device if projection else "device",
        extra_bytes=extra.bytes_per_weight,
        generated=rollouts.batch_size * rollouts.updates_per_generation // processes if rollouts else 0,
        prompt=rollouts.max_length - rollouts.max_new_tokens if rollouts else 0,
        frozen_copy=extra.frozen_copy or (rollouts is not None and (rollouts.beta > 0 or rollouts.measure_kl)),
        whole_bytes=extra.whole_bytes,
        host_bytes=extra.host_bytes,
        answers_first=extra.answers_first,
        judge_bytes=sum(judges.memory(name, config.eval.judge) for name in asked),
        streamed_sums=(1 if projection.refresh_every == 1 else 2) if projection and projection.streaming else 0,
    )


def _in_several(projection: ProjectionSettings, micro: int, processes: int) -> bool:
    """Whether a process takes a chunk of reference rows in more than one micro-batch.

    Rows that the processes cannot share evenly are a micro-batch of their own.
    """
    sizes = {projection.samples // projection.chunks, -(-projection.samples // projection.chunks)}
    shares = [divmod(size, processes) for size in sizes]
    return any(each > micro or (each and rest) for each, rest in shares)


def stage_shapes(config: Config, stage: StageName) -> tuple[ModelShape, ModelShape]:
    """The model's sizes, and those with the adapters that the method puts on it in ``stage``.

    Raises:
        UserError: as ``meta_model`` and ``shape_of``, or the method refuses the model.
    """
    model = _stage_model(config, stage)
    whole = shape_of(model)
    adapter = config.method.adapter(model, stage)
    if adapter is None:
        return whole, whole
    from peft import get_peft_model

    inside: Any = get_peft_model(model, adapter).get_base_model()
    named = dict(inside.named_parameters())
    # The first of the matrices that an input passes through, in LoRA and in OSF.
    inputs = sum(p.shape[1] for name, p in named.items() if "lora_A" in name or "V_low" in name)
    magnitudes = sum(p.numel() for name, p in named.items() if "lora_magnitude_vector" in name)
    return whole, shape_of(inside, inputs // whole.layers, magnitudes // whole.layers)


def check_layers(config: Config) -> None:
    """Refuse layers to adapt or to freeze that the model does not have, before anything is evaluated.

    Raises:
        UserError: as ``meta_model``, or the method refuses the model.
    """
    for stage in config.stages:
        config.method.adapter(_stage_model(config, stage.name), stage.name)


def _stage_model(config: Config, stage: StageName) -> "PreTrainedModel":
    """``meta_model``, without the adapters of ``stage`` and frozen as its method freezes it."""
    model = meta_model(config)
    config.method.freeze(model, stage)
    return model


def meta_model(config: Config) -> "PreTrainedModel":
    """The model without weights, from its configuration alone: a folder's, the one in ``conf/model``, the hub's, or
    the testbed base's.

    Raises:
        UserError: the configuration cannot be found or read, or is not a causal language model's.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from ogpsa.models.text import freeze_what_text_misses

    model = config.model
    if model.path is None:
        described: Any = _testbed_config(config)
    elif model.architecture is not None and model.architecture.of == model.path and not Path(model.path).is_dir():
        described = AutoConfig.for_model(**model.architecture.described())
    else:
        try:
            folder = _config_folder(model.path, model.revision)
            described = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"model.path: {model.path} has no readable configuration ({first_line(error)})") from None
    with torch.device("meta"):
        try:
            made: PreTrainedModel = AutoModelForCausalLM.from_config(described, dtype=torch.float32)
            freeze_what_text_misses(made)
        except ValueError:
            kind = described.model_type
            raise UserError(f"model.path: {model.path} ({kind}) is not a causal language model") from None
    return made


def _config_folder(path: str, revision: str | None) -> Path:
    if Path(path).is_dir():
        return Path(path)
    ask_hub()
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(path, "config.json", revision=revision)).parent
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise UserError(
            f"model.path: config.json of {path} is not in the hub's cache and cannot be fetched ({first_line(error)}); "
            "give a local folder"
        ) from None


def _testbed_config(config: Config) -> "LlamaConfig":
    """The model that ``ogpsa/testbed/base.py`` trains, whose own bytes are part of every base's key."""
    data, base = config.testbed_base()
    from transformers import LlamaConfig

    from ogpsa.testbed.tokenizer import build_tokenizer
    from ogpsa.testbed.world import World

    return LlamaConfig(
        vocab_size=len(build_tokenizer(World(data.seed).vocabulary())),
        hidden_size=base.hidden_size,
        intermediate_size=base.hidden_size * 5 // 2,
        num_hidden_layers=base.layers,
        num_attention_heads=base.heads,
        num_key_value_heads=base.heads,
        tie_word_embeddings=True,
    )
