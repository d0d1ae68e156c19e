"""DeepSpeed's ZeRO-2 and ZeRO-3: this process's pieces of gradients and weights, and the moment before the step.

DeepSpeed steps inside ``backward``, keeps the reduced gradients in buffers of its own, and offers no public way
to change a piece of them in place. Its private attributes are used in this file and nowhere else, and only of
the one release that they were read in.

Communication: the pieces are read where they lie, so under either stage the projection adds nothing but its one
all-reduce of inner products. (DeepSpeed's own ``safe_get_full_grad`` would all-reduce every parameter under
ZeRO-2.) Both stages reduce the gradients of every micro-batch, not once a step: a reference pass of m
micro-batches costs m reductions of all gradients, as m training micro-batches do; ZeRO-3 also gathers the weights
for it twice. ``publish`` costs ZeRO-2 one more all-gather of the weights.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import torch
from accelerate.utils.deepspeed import DeepSpeedEngineWrapper
from torch import Tensor, nn

from ogpsa.utils.errors import UserError

DEEPSPEED_VERSION = "0.19.8"
# Elements of a communication buffer: 200 MB in fp32, where DeepSpeed's default takes 2 GB.
BUCKET_SIZE = 50_000_000


def deepspeed_config(stage: Literal[2, 3], precision: Literal["fp32", "bf16"]) -> dict[str, Any]:
    """The configuration for ``TrainingArguments(deepspeed=…, bf16=False)``; batch and clipping follow the arguments.

    ``bf16`` is autocast over fp32 weights, and gradients and weights travel in fp32. ``bf16=True`` in the
    arguments would instead turn the weights into bf16.
    """
    zero: dict[str, Any] = {"stage": stage, "reduce_bucket_size": BUCKET_SIZE}
    if stage == 3:
        # Without it a save holds no weights. Despite the key's name, DeepSpeed keeps their dtype.
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    config: dict[str, Any] = {"zero_optimization": zero, "gradient_clipping": "auto"}
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        config[key] = "auto"
    if precision == "bf16":
        # The modules named here would have their gradients reduced in bf16.
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    return config


def check_deepspeed() -> None:
    """Refuse any release of DeepSpeed but the one whose internals are known.

    Raises:
        UserError: DeepSpeed is not installed, or another release of it.
    """
    try:
        found = version("deepspeed")
    except PackageNotFoundError:
        found = "not installed"
    if found.partition("+")[0] != DEEPSPEED_VERSION:
        raise UserError(
            f"distributed: deepspeed is {found}, but only {DEEPSPEED_VERSION} is known from inside; "
            "run `make install-deepspeed`"
        )


class ZeroShards:
    """The pieces of one DeepSpeed engine (``ogpsa.subspace.shards.Shards``): each element is on exactly one process.

    Raises:
        UserError: DeepSpeed is of another release, or set up in a way whose pieces are not known.
    """

    sharded = True

    def __init__(self, engine: Any) -> None:
        check_deepspeed()
        _check_supported(engine)
        self._engine = engine
        self.in_reference_pass = False
        self._optimizer = engine.optimizer
        self._stage: int = engine.zero_optimization_stage()
        trained = [(name, weight) for name, weight in engine.module.named_parameters() if weight.requires_grad]
        self.names: list[str] = [name for name, _ in trained]
        self._parameters: list[Any] = [parameter for _, parameter in trained]
        self.copies = [1] * len(trained)

    def gradients(self) -> list[Tensor]:
        """Flat fp32 views [n] of the reduced gradients, after ``backward`` and before ``step``."""
        if self._stage == 3:
            return [
                self._without_padding(parameter, self._optimizer.get_local_fp32_grad_for_param(parameter))
                for parameter in self._parameters
            ]
        groups = self._optimizer.averaged_gradients
        if any(groups.get(group) is None for group in range(len(self._optimizer.bit16_groups))):
            # In a reference pass no backward is the last one.
            self._optimizer.finalize_gradient_accumulation_boundary()
        return [
            self._nothing(parameter)
            if parameter._hp_mapping is None
            else parameter._hp_mapping.get_lp_grad_fragment(parameter._index_in_param_group).view(-1)
            for parameter in self._parameters
        ]

    def weights(self) -> list[Tensor]:
        """Flat fp32 views [n] of the weights that the optimizer updates; call ``publish`` after changing them."""
        if self._stage == 3:
            return [
                self._without_padding(parameter, self._optimizer.get_local_fp32_param(parameter).detach())
                for parameter in self._parameters
            ]
        return [
            self._nothing(parameter) if parameter._hp_mapping is None else parameter._hp_mapping.hp_fragment.detach()
            for parameter in self._parameters
        ]

    def publish(self) -> None:
        """Copy weights that were changed after the step to the model on every process."""
        optimizer = self._optimizer
        if self._stage == 2:
            optimizer.update_lp_params()
            return
        optimizer._partition_all_parameters()
        for group in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if optimizer.persistent_parameters:
            # Small ones stay whole between the steps.
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)

    @contextmanager
    def reference_pass(self) -> Iterator[None]:
        boundary = self._engine._is_gradient_accumulation_boundary
        self.in_reference_pass = True
        try:
            yield
        finally:
            self.in_reference_pass = False
            self._clear()
            self._engine._is_gradient_accumulation_boundary = boundary

    def _clear(self) -> None:
        """Drop the gradients in flight, as the optimizer's step does."""
        optimizer = self._optimizer
        optimizer.zero_grad()
        if self._stage == 3:
            # A weight that the next loss does not touch would keep them.
            optimizer.grad_partitions_flat_buffer.zero_()
            return
        optimizer.micro_step_id = -1
        for group in range(len(optimizer.bit16_groups)):
            optimizer.averaged_gradients[group] = None
            optimizer.all_grad_tensors[group] = None

    def _without_padding(self, parameter: Any, piece: Tensor) -> Tensor:
        start = self._optimizer._get_param_partition_rank(parameter) * len(piece)
        return piece[: max(0, parameter.ds_numel - start)]

    @staticmethod
    def _nothing(parameter: nn.Parameter) -> Tensor:
        return torch.empty(0, device=parameter.device)


class SteppedEngine(DeepSpeedEngineWrapper):  # type: ignore[misc]
    """Accelerate's wrapper of a DeepSpeed engine, with a call before and after the step inside ``backward``.

    Replaces ``accelerator.deepspeed_engine_wrapped``.
    """

    def __init__(
        self, engine: Any, shards: ZeroShards, before_step: Callable[[], None], after_step: Callable[[], None]
    ) -> None:
        super().__init__(engine)
        self._shards = shards
        self._before_step = before_step
        self._after_step = after_step

    def backward(self, loss: Tensor, sync_gradients: bool = True, **kwargs: Any) -> None:
        """Accumulate and reduce; with ``sync_gradients``, the last micro-batch's, step as well."""
        last = sync_gradients and not self._shards.in_reference_pass
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss, **kwargs)
        if last:
            self._before_step()
            self.engine.step()
            self._after_step()


def _check_supported(engine: Any) -> None:
    stage = engine.zero_optimization_stage()
    if stage not in (2, 3):
        raise UserError(f"deepspeed zero_optimization.stage: is {int(stage)}; expected 2 or 3")
    settings = engine._config.zero_config
    used = {
        "offload_optimizer": settings.offload_optimizer is not None and settings.offload_optimizer.device != "none",
        "offload_param": settings.offload_param is not None and settings.offload_param.device != "none",
        "round_robin_gradients": settings.round_robin_gradients,
        "zenflow": settings.zenflow is not None,
    }
    problems = [f"deepspeed zero_optimization.{key}: not supported with the projection" for key in used if used[key]]
    if engine.optimizer.gradient_accumulation_dtype != torch.float32:
        found = engine.optimizer.gradient_accumulation_dtype
        problems.append(
            f"deepspeed data_types.grad_accum_dtype: gradients are kept as {found}; expected fp32 (for autocast over "
            "fp32 weights: bf16=False and a torch_autocast section, as in ogpsa.distributed.deepspeed.deepspeed_config)"
        )
    if problems:
        raise UserError(*problems)
