"""NSPO: keep the steps of the linear layers in the null space of their inputs on general rows.

Paper: arXiv 2512.11391 (there under GRPO). Its public code is another algorithm; ``variant`` says which is run. The
mathematics is ``ogpsa/nullspace/space.py``, its place in a step ``ogpsa/nullspace/projector.py``.
"""

import logging
import random
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import Field, PrivateAttr

from ogpsa.config import ExtraMemory, Method, SetUse, StageName, mode_problems, sample_problems, set_name_problems
from ogpsa.nullspace.settings import Modules, Rule, SpaceSettings, Variant

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

    from ogpsa.config import Config
    from ogpsa.nullspace.kept import KeptSpaces
    from ogpsa.runs.run import Run

log = logging.getLogger(__name__)
Share = Annotated[float, Field(ge=0, le=1)]


class Nspo(Method):
    """``modules`` is one value, or a mapping by variant; the other keys are one value for all stages."""

    variant: Variant
    retract_every: int = Field(ge=1)
    modules: Modules | dict[Variant, Modules]
    others: Literal["train", "freeze"]
    basis: Literal["activations", "random"]
    rule: Rule
    threshold: float = Field(gt=0, le=1)
    null_shares: Annotated[list[Share], Field(min_length=2, max_length=2)]
    skip_first_token: bool
    general_sets: Annotated[list[str], Field(min_length=1)]
    samples: int = Field(ge=1)
    max_length: int = Field(ge=8)

    # Those of this run's untuned model, once ``prepare`` has run.
    _spaces: "KeptSpaces | None" = PrivateAttr(None)

    def problems(self, config: "Config") -> list[str]:
        problems = set_name_problems("method.general_sets", self.general_sets, config.stages[0].name, config)
        problems += mode_problems(config, "since DeepSpeed keeps the gradients and weights to itself")
        if isinstance(self.modules, dict) and self.variant not in self.modules:
            given = ", ".join(f"{variant}: …" for variant in self.modules)
            problems.append(f"method.modules: found {{{given}}}, which has no value for method.variant={self.variant}")
        elif "lm_head" in self._modules():
            problems.append("method.modules: lm_head is the output head, which is never protected; leave it out")
        if self.null_shares[0] > self.null_shares[1]:
            problems.append(f"method.null_shares: found {self.null_shares}; expected the least and the largest")
        problems += sample_problems(self.samples, config)
        return problems

    def _modules(self) -> Modules:
        return self.modules[self.variant] if isinstance(self.modules, dict) else self.modules

    def prepared_from(self) -> list[SetUse]:
        return [SetUse(name, self.samples, "samples") for name in self.general_sets]

    def prepare(self, base: Path, run: "Run") -> None:
        self._spaces = run.on_main_process(partial(self._ensure_spaces, base, run))

    def _ensure_spaces(self, base: Path, run: "Run") -> "KeptSpaces":
        from ogpsa.data.conversations import conversation
        from ogpsa.nullspace.kept import ensure_spaces

        rows = []
        for name in self.general_sets:
            held = run.data.reference_sets[name]
            drawn = random.Random(f"{run.config.seed} {name}").sample(range(len(held)), self.samples)
            rows += [conversation(held[row]["prompt"], held[row]["chosen"]) for row in drawn]
        settings = SpaceSettings(self.rule, self.threshold, self.skip_first_token, self.max_length)
        cache = Path(run.config.cache_dir)
        return ensure_spaces(
            cache, base, run.config.model, rows, settings, self._modules(), self.null_shares, run.safe_point
        )

    def trainer_class(self, base: type["Trainer"], stage: StageName) -> type["Trainer"]:
        from ogpsa.nullspace.projector import NullSpaceTrainer

        return type(f"NullSpace{base.__name__}", (NullSpaceTrainer, base), {})

    def attach(self, trainer: "Trainer", stage: StageName, seed: int) -> None:
        import torch
        from trl import GRPOConfig

        from ogpsa.nullspace.projector import NullSpaceProjector, NullSpaceTrainer, describe
        from ogpsa.nullspace.space import random_space
        from ogpsa.training.callbacks import StepCallback

        if self._spaces is None:
            raise RuntimeError("Method.prepare was not called before the stages")
        spaces = self._spaces.load()
        if self.basis == "random":
            for group, space in spaces.items():
                drawn = random.Random(f"{seed} {group}").getrandbits(63)
                spaces[group] = random_space(space, torch.Generator().manual_seed(drawn))
        spaces = {group: space.to(trainer.args.device) for group, space in spaces.items()}
        protected = {layer: spaces[group] for group, layers in self._spaces.groups.items() for layer in layers}
        model = cast("PreTrainedModel", trainer.model)
        for line in describe(model, protected):
            log.info("%s: %s: %s", stage, self.name, line)
        # An outer step of the public code is a generation with all of its updates.
        updates = 1
        if isinstance(trainer.args, GRPOConfig):
            updates = (trainer.args.steps_per_generation or 1) // trainer.args.gradient_accumulation_steps
        projector = NullSpaceProjector(
            trainer, protected, self.variant, self.retract_every, updates, self._spaces.seconds
        )
        cast(NullSpaceTrainer, trainer).null_spaces = projector
        trainer.add_callback(StepCallback(on_train_begin=projector.begin, on_optimizer_step=projector.after_step))

    def freeze(self, model: "PreTrainedModel", stage: StageName) -> None:
        from ogpsa.models.text import linear_layers
        from ogpsa.nullspace.settings import selected_layers

        if self.others == "freeze":
            layers = linear_layers(model)
            kept = {layers[name].weight for name in selected_layers(layers, self._modules())}
            for parameter in model.parameters():
                parameter.requires_grad_(parameter in kept)

    def training_key(self, stage: StageName) -> dict[str, Any]:
        # The untuned model and the general rows matter too; a later stage's starting weights do not identify them.
        spaces = None if self._spaces is None else self._spaces.folder.name
        return super().training_key(stage) | {"spaces": spaces}

    def memory(self, model: "PreTrainedModel", stage: StageName) -> ExtraMemory:
        from ogpsa.nullspace.kept import sizes

        protected, bases = sizes(model.config, self._modules())
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        # The protected layers' starting weights in fp32.
        if self.variant == "paper":
            return ExtraMemory(whole_bytes=bases, host_bytes=4 * protected)
        return ExtraMemory(whole_bytes=bases, bytes_per_weight=4 * protected / trained)

    def preflight(self, model: "PreTrainedModel") -> list[str]:
        from ogpsa.nullspace.kept import cost

        rows = self.samples * len(self.general_sets)
        return [f"{self.name}, once before the stages: {cost(model.config, rows, self.max_length, self._modules())}"]


METHOD = Nspo
