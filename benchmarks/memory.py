"""The pre-flight's estimate (``ogpsa/preflight/report.py``) against the peak that training really reaches.

On a CPU the allocations of every operation are recorded, so that the figure is exact; on a GPU it is
``torch.cuda.max_memory_allocated``. Needs torch and transformers; the loop is that of ``Subspace``'s README example.
"""

import gc
import itertools
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.architectures import ARCHITECTURES, Architecture, architecture
from benchmarks.common import Row, parser, run, write
from ogpsa.config import Optimizer
from ogpsa.preflight.memory import GB, Setup, estimate, shape_of
from ogpsa.subspace.shards import ParameterShards
from ogpsa.subspace.subspace import Subspace

SHAPES = {
    "smoke": ARCHITECTURES["smoke"],
    "llama_6m": Architecture("llama", 256, 4, 768, 4, 4, 4096),
    "qwen_11m": Architecture("qwen2", 256, 6, 1024, 8, 2, 12288),
    "llama_50m": ARCHITECTURES["llama_50m"],
}
# Rank, optimizer, bf16 autocast.
SETTINGS: list[tuple[int, Optimizer, bool]] = [(0, "adamw", False), (2, "adamw", True), (8, "sgd", False)]
NOTES = (
    "estimate, measured: peak of one device in GB (1e9 bytes); ratio: the one over the other. moment: when the "
    "estimate expects the peak.",
    "Two optimizer steps of two micro-batches each, a refresh before either, r references of one micro-batch each. "
    "padded: some rows are shorter, so that attention needs a mask.",
    "CPU: every allocation of torch's is recorded; GPU: `torch.cuda.max_memory_allocated`. head: fused is TRL's, in "
    "tiles; full holds all logits.",
)


@dataclass(frozen=True)
class Case:
    """One measured setting; ``rows`` of a micro-batch, of pairs in DPO."""

    model: str
    stage: Literal["sft", "dpo"]
    checkpointing: bool
    rank: int
    optimizer: Optimizer
    autocast: bool = False
    padded: bool = False
    fused: bool = True
    rows: int = 2
    tokens: int = 256

    def setup(self, device: torch.device) -> Setup:
        """The same for ``ogpsa.preflight.memory.estimate``."""
        return Setup(
            rows=self.rows,
            length=self.tokens,
            pairs=self.stage == "dpo",
            padded=self.padded,
            reference_accumulates=False,
            checkpointing=self.checkpointing,
            autocast=self.autocast,
            optimizer=self.optimizer,
            rank=self.rank,
            references=self.rank,
            device="cuda" if device.type == "cuda" else "cpu",
            output_head="fused" if self.fused else "full",
        )


def peak_bytes(work: Callable[[], None], device: torch.device) -> int:
    """Most memory that tensors made inside ``work`` take at once on ``device``."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return int(torch.cuda.max_memory_allocated(device)) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    assert recorded.profiler is not None and recorded.profiler.kineto_results is not None
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return int(max(itertools.accumulate(changes)))


def train(shape: Architecture, case: Case, device: torch.device) -> None:
    """Two steps with a refresh before each."""
    torch.manual_seed(0)
    model = shape.build(device)
    if case.checkpointing:
        model.activation_checkpointing_enable()
    if case.fused:
        from trl.trainer.utils import add_fused_lm_head

        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    kind: Any = torch.optim.AdamW if case.optimizer == "adamw" else torch.optim.SGD
    optimizer = kind(model.parameters(), lr=1e-6)
    sequences = case.rows * (2 if case.stage == "dpo" else 1)
    ids = torch.randint(shape.vocabulary, (sequences, case.tokens), device=device)
    mask = torch.ones_like(ids)
    if case.padded:
        mask[0, : case.tokens // 4] = 0
    shards = ParameterShards(model)
    subspace = Subspace(case.rank)

    def backward() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=case.autocast):
            loss = _loss(model, ids, mask, case)
        loss.backward()

    def refresh() -> None:
        subspace.clear()
        # No wider than the basis is stored.
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        rows = [torch.empty(case.rank, len(piece), dtype=dtype, device=device) for piece in shards.weights()]
        for index in range(case.rank):
            ids.random_(shape.vocabulary)
            with shards.reference_pass():
                backward()
                for target, gradient in zip(rows, shards.gradients(), strict=True):
                    target[index] = gradient
        # Names that still refer to a row would keep it in memory.
        del target, gradient
        subspace.estimate(rows, [str(index) for index in range(case.rank)])

    for _ in range(2):
        if case.rank:
            refresh()
        for _ in range(2):
            backward()
        if case.rank:
            subspace.project_(shards.gradients())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def _loss(model: Any, ids: Tensor, mask: Tensor, case: Case) -> Tensor:
    """The mean over tokens; in DPO the sigmoid loss of the first half of the rows over the second."""
    if case.fused:
        log_probs: Tensor = model(input_ids=ids, attention_mask=mask, labels=ids, fused_lm_head=True).log_probs
        if case.stage == "sft":
            return -log_probs.mean()
        chosen, rejected = log_probs.sum(dim=1).chunk(2)
        return -torch.nn.functional.logsigmoid(0.1 * (chosen - rejected)).mean()
    loss: Tensor = model(input_ids=ids, attention_mask=mask, labels=ids).loss
    return loss


def compare(case: Case, device: torch.device) -> Row:
    """A row of the table: the estimate beside the measurement."""
    shape = SHAPES[case.model] if case.model in SHAPES else architecture(case.model)
    expected = estimate(shape_of(shape.build(torch.device("meta"))), case.setup(device))
    measured = peak_bytes(lambda: train(shape, case, device), device)
    return {
        "model": case.model,
        "stage": case.stage,
        "head": "fused" if case.fused else "full",
        "compute": "bf16" if case.autocast else "fp32",
        "checkpointing": "on" if case.checkpointing else "off",
        "padded": "yes" if case.padded else "no",
        "optimizer": case.optimizer,
        "rank": case.rank,
        "moment": expected.peak_moment,
        "estimate": round(expected.peak / GB, 4),
        "measured": round(measured / GB, 4),
        "ratio": round(expected.peak / measured, 3),
    }


def cases(device: torch.device) -> list[Case]:
    """Three small models on a CPU; on a GPU a 7B model, which fits with plain gradient descent."""
    fused = find_spec("trl") is not None
    stages: list[Literal["sft", "dpo"]] = ["sft", "dpo"] if fused else ["sft"]
    if device.type == "cuda":
        part = [
            Case("qwen2_5_7b:4", stage, checkpointing, rank, "adamw", True, True, fused, rows=2, tokens=2048)
            for stage in stages
            for checkpointing, rank in ((False, 2), (True, 8))
        ]
        whole = [
            Case("qwen2_5_7b", "sft", True, rank, "sgd", True, fused=fused, rows=1, tokens=2048) for rank in (0, 2)
        ]
        return [*part, *whole]
    small = [
        Case(name, stage, checkpointing, rank, optimizer, autocast, padded=autocast, fused=fused, tokens=tokens)
        for name, tokens in (("llama_6m", 256), ("qwen_11m", 128))
        for stage in stages
        for checkpointing in (False, True)
        for rank, optimizer, autocast in SETTINGS
    ]
    large = [
        Case("llama_50m", stage, checkpointing, rank, "adamw", autocast, fused=fused, rows=1, tokens=128)
        for stage in stages
        for checkpointing, rank, autocast in ((False, 2, False), (True, 2, True), (True, 8, False))
    ]
    return [*small, *large]


def main() -> None:
    command = parser(__doc__.splitlines()[0])
    command.add_argument(
        "--model", default=None, help="one architecture, name or name:layers, instead of the small ones"
    )
    options = command.parse_args()
    device = torch.device(options.device)
    warnings.filterwarnings("ignore", category=FutureWarning)
    smoke = [Case("smoke", "sft", False, rank, "adamw", fused=False, tokens=64) for rank in (0, 2)]
    chosen = smoke if options.smoke else cases(device)
    rows = [compare(case, device) for case in chosen]
    errors = [abs(row["ratio"] - 1) for row in rows]
    settings = {"largest_error": round(max(errors), 3)}
    write("memory", options.out, device, settings, {"Estimate against measured peak": rows}, NOTES)


if __name__ == "__main__":
    sys.exit(run(main))
