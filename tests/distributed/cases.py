"""The stages that every mode trains, and what must hold of each."""

from dataclasses import dataclass
from typing import Literal

StageName = Literal["sft", "dpo", "grpo"]
Break = Literal["signal", "kill"]
Matrix = Literal["short", "long"]

# A kill at this step leaves the checkpoint of step 3, a signal one of the step after: no K below but 1 divides both.
BREAK_AT = 4
COMMON = [
    "data.safety_rows=56",
    "data.reference_rows=24",
    "stage.batch_size=8",
    "stage.micro_batch_size=2",
    "stage.max_steps=7",
    "stage.save_every=3",
    "stage.log_every=1",
    # The gradient's norm is about 2 at first, so clipping takes part.
    "stage.max_grad_norm=1",
    "tracker=none",
]
# Neither micro-batches nor processes divide the samples.
SAMPLES = ["method.samples=7", "method.refresh_every=2"]
BASELINE = ["method=baseline"]
OGPSA = ["method=ogpsa", *SAMPLES]
SELECTED = [*OGPSA, "method.selection=conflict"]
ANCHOR = ["method=anchor", "method.strength=100"]
NSPO = ["method=nspo", "method.samples=7", "method.variant=exact"]
# Processes would draw different dropout masks.
LORA = ["method=ogpsa_lora", *SAMPLES, "method.lora_dropout=0"]
TENSOR = ["method.scope=tensor", "method.rank=4"]
# Step 7 ends the epoch on one row; three of its first are repeated to fill both processes.
UNEVEN = ["data.safety_rows=53"]
BEST = ["stage.eval_every=1", "stage.keep=best"]
CONFLICT = ["method.sided=conflict"]
# Does not divide the samples either.
STREAMING = ["method.streaming=true", "method.refresh_every=3"]
SGD = ["stage.optimizer=sgd", "stage.learning_rate=1e-1"]
ADAMW = ["stage.optimizer=adamw", "stage.learning_rate=1e-3"]
BF16 = ["model.precision=bf16"]
CHECKPOINTING = ["model.gradient_checkpointing=true"]
ZERO = ("zero2", "zero3")
# Stages that train on given answers.
ANSWERED: tuple[StageName, ...] = ("sft", "dpo")
# One prompt a step, whose group is spread over the processes.
GRPO = ["stage.num_generations=8", "stage.updates_per_generation=1", "stage.max_new_tokens=12"]

KL = [*GRPO, "stage.beta=0.5", "stage.measure_kl=true"]


@dataclass(frozen=True)
class Case:
    """One stage.

    Attributes:
        tolerance: largest difference in a weight from the single process; None: there is only to be a finite loss.
            Completions are not sampled then, but follow from the prompt.
        breaks: how a second run of it is interrupted, to be resumed by new processes.
        same_as: the case whose weights it must equal bit for bit, in the same mode.
        refused_by: modes that do not support it.
        weekly_in: modes that train it in the long matrix alone, which has a case like it or takes this one.
        resized: whether the second run is also resumed by other numbers of processes.
        model: the folder of the model that is trained: of words, or one that reads images too.
    """

    name: str
    stage: StageName
    overrides: list[str]
    tolerance: float | None
    breaks: Break | None = None
    same_as: str | None = None
    refused_by: tuple[str, ...] = ()
    resized: bool = False
    weekly_in: tuple[str, ...] = ()
    model: Literal["model", "images"] = "model"


def sgd(
    name: str, stage: StageName, overrides: list[str], breaks: Break | None = None, weekly_in: tuple[str, ...] = ()
) -> Case:
    return Case(name, stage, [*overrides, *SGD], 1e-7, breaks, weekly_in=weekly_in)


def adamw(
    name: str,
    stage: StageName,
    overrides: list[str],
    breaks: Break | None = None,
    same_as: str | None = None,
    refused_by: tuple[str, ...] = (),
    resized: bool = False,
    weekly_in: tuple[str, ...] = (),
) -> Case:
    return Case(name, stage, [*overrides, *ADAMW], 1e-5, breaks, same_as, refused_by, resized, weekly_in)


# Short: one case of each kind. A case that is killed comes last: nothing can follow it.
CASES: dict[Matrix, list[Case]] = {
    "short": [
        sgd("sft-sgd", "sft", OGPSA, weekly_in=("zero3",)),
        adamw("sft-baseline", "sft", BASELINE),
        adamw("sft-rank-0", "sft", [*OGPSA, "method.rank=0"], same_as="sft-baseline"),
        adamw(
            "sft-held-out",
            "sft",
            [*BASELINE, "stage.eval_every=2"],
            same_as="sft-baseline",
            weekly_in=("fsdp2", "zero3"),
        ),
        adamw("sft-adamw", "sft", [*OGPSA, *TENSOR, *CHECKPOINTING], "signal", resized=True, weekly_in=("zero3",)),
        Case("sft-bf16", "sft", [*OGPSA, *ADAMW, *BF16], None, "signal", weekly_in=("ddp", "zero3")),
        Case("sft-uneven", "sft", [*BASELINE, *ADAMW, *UNEVEN], None, "signal", weekly_in=("fsdp2", "zero3")),
        adamw("sft-lora", "sft", LORA, "signal", weekly_in=("ddp", "zero3")),
        adamw("sft-nspo", "sft", NSPO, refused_by=ZERO),
        adamw("grpo-baseline", "grpo", [*BASELINE, *GRPO], refused_by=ZERO, weekly_in=("fsdp2",)),
        adamw(
            "grpo-rank-0",
            "grpo",
            [*OGPSA, *GRPO, "method.rank=0"],
            same_as="grpo-baseline",
            refused_by=ZERO,
            weekly_in=("fsdp2",),
        ),
        adamw("grpo-adamw", "grpo", [*OGPSA, *GRPO], refused_by=ZERO),
        adamw("grpo-kl", "grpo", [*BASELINE, *KL], "signal", refused_by=ZERO),
        Case("sft-images", "sft", [*OGPSA, *ADAMW], 1e-5, "signal", weekly_in=("ddp", *ZERO), model="images"),
        adamw("dpo-adamw", "dpo", [*OGPSA, *CONFLICT, "method.rank=3"], "kill"),
    ],
    "long": [
        adamw("sft-best", "sft", [*BASELINE, *BEST], "signal", refused_by=("fsdp2", *ZERO), resized=True),
        adamw("sft-osf", "sft", ["method=osf"], "signal", refused_by=("fsdp2", *ZERO), resized=True),
        adamw("sft-ema", "sft", ["method=ema", "method.decay=0.5"], "signal", refused_by=ZERO, resized=True),
        adamw("sft-soft", "sft", ["method=soft_sft"], "signal", refused_by=ZERO, resized=True),
        adamw("sft-adapters", "sft", LORA, "signal", resized=True),
        # The weights are rounded twice: a unit in the last place of those near one is 1.2e-7.
        Case(
            "sft-streamed-update",
            "sft",
            [*OGPSA, *STREAMING, *SGD, "method.target=update"],
            2.4e-7,
            "signal",
            resized=True,
        ),
        adamw("sft-nspo", "sft", NSPO, "signal", refused_by=ZERO, resized=True),
        sgd("dpo-tensor-rank-4-sgd", "dpo", [*OGPSA, *TENSOR]),
        adamw("grpo-conflict", "grpo", [*OGPSA, *CONFLICT, *TENSOR, *GRPO], refused_by=ZERO),
        adamw("grpo-replay", "grpo", ["method=replay", "method.weight=0.5", "method.ratio=1", *GRPO], refused_by=ZERO),
        adamw("grpo-nspo", "grpo", [*NSPO, *GRPO], refused_by=ZERO),
        adamw("grpo-kl-lora", "grpo", ["method=lora", "method.lora_dropout=0", *KL], refused_by=ZERO),
        # Each process samples its own completions, which the reward finds alike: only that it runs and resumes.
        Case(
            "grpo-sampled",
            "grpo",
            [*BASELINE, *GRPO, *ADAMW, "stage.updates_per_generation=3"],
            None,
            "signal",
            refused_by=ZERO,
        ),
    ]
    + [
        case
        for stage in ANSWERED
        for case in [
            sgd(f"{stage}-baseline-sgd", stage, BASELINE),
            adamw(f"{stage}-baseline", stage, BASELINE, "signal"),
            Case(f"{stage}-uneven", stage, [*BASELINE, *ADAMW, *UNEVEN], None, "signal"),
            adamw(f"{stage}-rank-0", stage, [*OGPSA, "method.rank=0"], same_as=f"{stage}-baseline"),
            sgd(f"{stage}-conflict-sgd", stage, [*OGPSA, *CONFLICT]),
            sgd(f"{stage}-tensor-sgd", stage, [*OGPSA, *TENSOR, *CHECKPOINTING]),
            adamw(f"{stage}-every-step", stage, [*OGPSA, "method.refresh_every=1", "method.rank=4"]),
            adamw(f"{stage}-once", stage, [*OGPSA, "method.refresh_every=never"], "signal"),
            sgd(f"{stage}-streaming-sgd", stage, [*OGPSA, *STREAMING]),
            adamw(f"{stage}-streaming", stage, [*OGPSA, *STREAMING, "method.scope=tensor"], "signal"),
            adamw(f"{stage}-host", stage, [*OGPSA, "method.basis_device=host"]),
            Case(f"{stage}-bf16-basis", stage, [*OGPSA, *ADAMW, "method.basis_dtype=bf16"], 1e-4, "signal"),
            # Its blocks begin where a shard does, so that processes round differently.
            Case(f"{stage}-int8-basis", stage, [*OGPSA, *ADAMW, "method.basis_dtype=int8"], None, "signal"),
            Case(f"{stage}-bf16", stage, [*OGPSA, *ADAMW, *BF16, *CHECKPOINTING], None, "signal"),
            adamw(f"{stage}-selected", stage, SELECTED, "signal", resized=True),
            adamw(f"{stage}-anchor", stage, ANCHOR, "signal", refused_by=ZERO),
            adamw(f"{stage}-nspo-paper", stage, [*NSPO, "method.variant=paper"], refused_by=ZERO),
            adamw(f"{stage}-update", stage, [*OGPSA, "method.target=update"], "signal"),
            sgd(f"{stage}-lora-sgd", stage, LORA),
            adamw(f"{stage}-lora", stage, [*LORA, *TENSOR, *CHECKPOINTING], "signal"),
            Case(f"{stage}-lora-bf16", stage, [*LORA, *ADAMW, *BF16, "model.dtype=bf16"], None, "signal"),
        ]
    ],
}


def cases(matrix: Matrix, mode: str) -> list[Case]:
    if matrix == "short":
        return [case for case in CASES["short"] if mode not in (*case.refused_by, *case.weekly_in)]
    named = {case.name for case in CASES["long"]}
    # One process trains all that a mode is compared with.
    late = [case for case in CASES["short"] if case.weekly_in and mode in ("single", *case.weekly_in)]
    wanted = [*(case for case in late if case.name not in named), *CASES["long"]]
    return [case for case in wanted if mode not in case.refused_by]


def broken(matrix: Matrix, mode: str) -> list[Case]:
    """The cases that a mode of several processes breaks off."""
    return [case for case in cases(matrix, mode) if case.breaks and mode != "single"]


def measured(matrix: Matrix, mode: str) -> list[Case]:
    """The cases whose loss on held-out rows is measured."""
    return [case for case in cases(matrix, mode) if any(key.startswith("stage.eval_every=") for key in case.overrides)]


# Numbers of processes that resume what two began.
RESIZED = {"doubled": 4, "alone": 1}


def resized(matrix: Matrix, mode: str, task: str) -> list[Case]:
    """The cases that are broken off and then resumed by another number of processes."""
    # FSDP2 has nothing to shard on one process.
    modes = ("ddp", "fsdp2") if task == "doubled" else ("ddp",) if matrix == "long" else ()
    return [case for case in broken(matrix, mode) if case.resized and mode in modes]
