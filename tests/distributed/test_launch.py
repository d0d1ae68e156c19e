"""Processes and batches that do not fit are refused by name, before torch is there."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from trl import SFTConfig

from ogpsa.app.compose import compose_config
from ogpsa.distributed import launch, processes
from ogpsa.distributed.arguments import one_gpu_and_fp32_sums
from ogpsa.distributed.launch import accumulation_steps, check_device, check_launch
from ogpsa.distributed.processes import LAUNCHER_VARIABLES
from ogpsa.utils.errors import UserError

Refusals = Callable[..., list[str]]


@pytest.fixture
def refusals(monkeypatch: pytest.MonkeyPatch) -> Refusals:
    """``refusals(started, *overrides)``: what a run in so many processes is told."""

    def get(started: int, *overrides: str, deepspeed: bool = True, torchrun: bool = False) -> list[str]:
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        if torchrun or started > 1:
            for name in ("WORLD_SIZE", *LAUNCHER_VARIABLES):
                monkeypatch.setenv(name, str(started))
        monkeypatch.setattr(launch, "find_spec", lambda name: object() if deepspeed else None)
        try:
            check_launch(compose_config([*overrides]))
        except UserError as error:
            return list(error.problems)
        return []

    return get


@pytest.mark.parametrize(
    "mode",
    [
        "ddp",
        pytest.param("fsdp2", marks=pytest.mark.long),
        pytest.param("zero2", marks=pytest.mark.slow),
        pytest.param("zero3", marks=pytest.mark.long),
    ],
)
def test_modes_need_torchrun(refusals: Refusals, mode: str) -> None:
    needs = f"distributed.name: {mode} needs several processes, but one was started; type: torchrun --nproc-per-node"
    small = "stage.sft.micro_batch_size=2", "stage.dpo.micro_batch_size=2"
    assert refusals(1, f"distributed={mode}") == [f"{needs} 2 train.py distributed={mode} ..."]
    assert refusals(1, f"distributed={mode}", "distributed.processes=4") == [
        f"{needs} 4 train.py distributed={mode} ..."
    ]
    assert refusals(2, f"distributed={mode}", *small) == []
    assert refusals(2, f"distributed={mode}", "distributed.processes=2", *small) == []
    assert refusals(1, f"distributed={mode}", "distributed.processes=8", "preflight=true", *small) == []
    assert refusals(2, f"distributed={mode}", "distributed.processes=4", *small) == [
        "distributed.processes: found 4, but torchrun started 2; "
        f"type: torchrun --nproc-per-node 4 train.py distributed={mode} ..."
    ]


def test_one_process_of_torchrun_resumes_what_several_began(
    refusals: Refusals, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refusals(1, "distributed=ddp", torchrun=True) == []
    assert refusals(1, "distributed=fsdp2", torchrun=True) == refusals(1, "distributed=fsdp2") != []
    # A cluster's own WORLD_SIZE is no torchrun.
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.delenv("RANK")
    assert not processes.launched()


def test_one_process_is_one_process(refusals: Refusals) -> None:
    assert refusals(1) == refusals(1, "distributed.processes=1") == []
    assert refusals(2) == [
        "distributed.name: found single, but torchrun started 2 processes; allowed: ddp, fsdp2, zero2, zero3"
    ]
    assert refusals(1, "distributed.processes=2") == [
        "distributed.processes: found 2 with distributed=single; allowed: 1 or null"
    ]


@pytest.mark.parametrize("mode", ["zero2", "zero3"])
def test_deepspeed_missing(refusals: Refusals, mode: str) -> None:
    assert refusals(2, f"distributed={mode}", deepspeed=False) == [
        f"distributed.name: {mode} needs DeepSpeed, which is not installed; type: make install-deepspeed"
    ]


LORA, NF4 = "method=lora", "method.lora_quantize=nf4"
SMALL = "stage.sft.micro_batch_size=2", "stage.dpo.micro_batch_size=2"


@pytest.mark.parametrize(
    ("started", "overrides", "line"),
    [
        (2, (LORA, NF4, "distributed=ddp"), "method.lora_quantize: nf4 is for one process, and found distributed=ddp;"),
        (1, (LORA, NF4, "model.compile=true"), "model.compile: true is not tested with method.lora_quantize=nf4;"),
        (2, ("model.compile=true", "distributed=fsdp2"), "model.compile: true is not tested with distributed=fsdp2;"),
        (
            2,
            ("model.activation_offload=true", "distributed=zero2"),
            "model.activation_offload: true is not tested with",
        ),
        (
            2,
            ("stage.dpo.optimizer=paged_adamw_8bit", "distributed=fsdp2"),
            "stage.dpo.optimizer: paged_adamw_8bit cannot be sharded by distributed=fsdp2; allowed: adamw, sgd",
        ),
        (1, ("model.compile=true", "stage=sft_grpo"), "model.compile: true is not supported in grpo"),
        (1, ("model.activation_offload=true", "stage=grpo"), "model.activation_offload: true is not supported in grpo"),
        (
            1,
            ("model.activation_offload=true", "model.compile=true"),
            "model.compile: true with model.activation_offload=true, whose hooks it would leave out",
        ),
    ],
)
def test_savings_where_they_have_no_place(
    started: int, overrides: tuple[str, ...], line: str, refusals: Refusals
) -> None:
    small = () if any("grpo" in override for override in overrides) else SMALL
    [problem] = refusals(started, *overrides, *small)
    assert problem.startswith(line)


def test_packages_missing(refusals: Refusals, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusals(1, LORA, NF4, deepspeed=False) == [
        "method.lora_quantize: nf4 needs bitsandbytes, which is not installed; type: make install-8bit"
    ]
    assert refusals(1, "model.attention=kernels-community/flash-attn2@main", deepspeed=False) == [
        "model.attention: kernels-community/flash-attn2@main needs kernels, which is not installed; "
        "type: pip install kernels"
    ]
    assert refusals(1, "model.attention=kernels-community/flash-attn2") == []
    monkeypatch.setattr(launch, "which", lambda name: None)
    assert refusals(1, "model.compile=true") == [
        "model.compile: true needs a C++ compiler; install g++ or clang++, or write false"
    ]


@pytest.mark.parametrize("attention", ["flash", "somebody/flash-attn2", "kernels-community/", "kernels-community/a b"])
def test_attention_of_another_name(attention: str) -> None:
    with pytest.raises(UserError, match=r"^model\.attention: found '.*'; allowed is 'eager', 'sdpa' or"):
        compose_config([f"model.attention='{attention}'"])


def test_what_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose_config(["model.activation_offload=true", "stage.dpo.optimizer=paged_adamw_8bit"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError) as raised:
        check_device(config)
    assert [line.partition(":")[0] for line in raised.value.problems] == [
        "stage.dpo.optimizer", "model.activation_offload",
    ]  # fmt: skip
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    check_device(config)


@pytest.mark.slow
def test_batches_that_processes_cannot_share(refusals: Refusals) -> None:
    def told(started: int, batch: int, micro: int, stage: str = "sft") -> list[str]:
        sizes = f"stage.batch_size={batch}", f"stage.micro_batch_size={micro}"
        return refusals(started, "distributed=ddp", f"stage={stage}", *sizes)

    assert told(2, 16, 8) == told(4, 16, 4) == told(4, 16, 1) == told(4, 48, 4) == []
    assert told(2, 16, 16) == [
        "stage.batch_size: found 16; allowed is a multiple of 32 = micro_batch_size 16 × 2 processes; nearest: 32, "
        "or keep it with stage.micro_batch_size=8"
    ]
    assert told(4, 12, 2) == [
        "stage.batch_size: found 12; allowed is a multiple of 8 = micro_batch_size 2 × 4 processes; nearest: 8, 16, "
        "or keep it with stage.micro_batch_size=1"
    ]
    assert told(4, 10, 2) == [
        "stage.batch_size: found 10; allowed is a multiple of 8 = micro_batch_size 2 × 4 processes; nearest: 8, 16"
    ]
    both = refusals(2, "distributed=ddp", "stage.sft.micro_batch_size=16", "stage.dpo.micro_batch_size=32")
    assert [line.partition(":")[0] for line in both] == ["stage.sft.batch_size", "stage.dpo.batch_size"]
    imagined = refusals(1, "distributed=fsdp2", "distributed.processes=3", "preflight=true", "stage=sft")
    assert imagined == [
        "stage.batch_size: found 16; allowed is a multiple of 48 = micro_batch_size 16 × 3 processes; nearest: 48"
    ]


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_the_global_batch_is_the_same_on_any_world_size(processes: int) -> None:
    config = compose_config(["stage=sft", "stage.batch_size=16", "stage.micro_batch_size=2"])
    [stage] = config.stages
    assert stage.micro_batch_size * processes * accumulation_steps(stage, processes) == 16


def test_a_process_without_a_gpu_of_its_own_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHER_VARIABLES:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    processes._control.cache_clear()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    said = r"^torchrun: 4 processes on a node that shows 1 GPUs; start one for each GPU$"
    with pytest.raises(UserError, match=said):
        processes.on_main_process(lambda: None)
    # One line for all of them.
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(SystemExit) as left:
        processes.on_main_process(lambda: None)
    assert left.value.code == 2


@pytest.mark.parametrize(("seen", "used"), [(8, 1), (1, 1), (0, 0)])
def test_a_process_uses_one_gpu_of_those_that_it_sees(tmp_path: Path, seen: int, used: int) -> None:
    arguments = SFTConfig(str(tmp_path), use_cpu=True, bf16=False)
    # As transformers finds them.
    arguments._n_gpu = seen
    assert one_gpu_and_fp32_sums(arguments).n_gpu == used
