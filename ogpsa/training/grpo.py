"""GRPO's trainer: TRL's, with our rewards, resumable over epochs, and with measures of its rollouts.

TRL keeps the completions of a generation, which several updates use, in no checkpoint, so a stage saves and stops only
where the next step generates again (``updates_per_generation``).
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState
from trl import GRPOTrainer

from ogpsa.config import GRPOSettings, Rollout, Scorer
from ogpsa.data.conversations import as_text
from ogpsa.distributed import processes
from ogpsa.models.generate import ReplyDecoder
from ogpsa.training.finite import FiniteTrainer
from ogpsa.training.start import frozen_copy, prepared
from ogpsa.utils.refusal_rules import declines

log = logging.getLogger(__name__)
# TRL's name of the share of prompts from which nothing is learned.
FLAT = "frac_reward_zero_std"
Messages = list[dict[str, str]]


class ScoredRollouts:
    """A reward as TRL calls it: plain texts to the scorer, and the share that was refused to the log.

    Args:
        decoder: makes the texts: TRL's own lack the marks of a thought that are special tokens.
        in_thought: the template begins a thought.
        generations: completions of each prompt.

    Attributes:
        flat: share of the last prompts, of all processes, whose completions' rewards are equal, or fewer than two.
    """

    def __init__(self, scorer: Scorer, decoder: ReplyDecoder, in_thought: bool, generations: int) -> None:
        self._scorer = scorer
        self._decoder = decoder
        self._in_thought = in_thought
        self._generations = generations
        self.flat = 0.0
        # TRL names its metrics by it.
        self.__name__ = "reward"

    def __call__(
        self,
        prompts: Sequence[Messages],
        completion_ids: Sequence[Sequence[int]],
        harmful: Sequence[bool],
        target: Sequence[str | None],
        log_metric: Callable[[str, float], None],
        **_: Any,
    ) -> list[float | None]:
        rollouts = []
        for prompt, tokens, bad, right in zip(prompts, completion_ids, harmful, target, strict=True):
            reply = self._decoder.reply(tokens, (), self._in_thought)
            finished = reply["finish_reason"] == "stop"
            rollouts.append(Rollout(as_text(prompt), reply["text"], bad, right, finished, self._in_thought))
        for rollout in rollouts:
            kind = "harmful" if rollout.harmful else "answerable"
            log_metric(f"refused/{kind}", float(declines(rollout.answer or "")))
        # One process asks for all: a judge's budget, journal and failure are then those of the run.
        parts = processes.gather(rollouts)
        before = sum(map(len, parts[: processes.rank()]))
        scored = processes.on_main_process(lambda: self._scorer(list(chain.from_iterable(parts))))
        groups = [scored[at : at + self._generations] for at in range(0, len(scored), self._generations)]
        self.flat = sum(len({*group} - {None}) < 2 for group in groups) / len(groups)
        rewards = scored[before : before + len(rollouts)]
        for reward in rewards:
            log_metric("reward_missing", float(reward is None))
        return rewards


class _EpochSampler(Sampler[int]):
    """TRL's order of prompts, redrawn by seed and epoch, so that a resumed run has that of the unbroken one."""

    def __init__(self, order: Any, seed: int, epoch: Callable[[], int]) -> None:
        self._order = order
        self._seed = seed
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self._order.generator.manual_seed(self._seed + self._epoch())
        yield from self._order

    def __len__(self) -> int:
        return len(self._order)


class RolloutTrainer(FiniteTrainer, GRPOTrainer):
    """Group relative policy optimization.

    Attributes:
        scored: its reward.
        measures: whether ``kl_to_start`` is measured.
    """

    model: PreTrainedModel
    scored: ScoredRollouts
    measures: bool = False

    def __init__(self, model: PreTrainedModel, reward_funcs: ScoredRollouts, **kwargs: Any) -> None:
        super().__init__(model, reward_funcs, **kwargs)
        self.scored = reward_funcs

    def keep_start(self, stage: GRPOSettings) -> None:
        """Penalise and measure, as ``stage`` asks, the divergence from the policy as it is now.

        Without adapters, which can be switched off, that takes a copy of the model, one for both. TRL's own would be
        loaded by name, and FSDP2 would gather it whole.
        """
        self.beta, self.measures = stage.beta, stage.measure_kl
        if is_peft_model(self.model) or not (stage.beta or stage.measure_kl):
            return
        self.ref_model: Any = prepared(self, frozen_copy(self))

    def resume_rollouts(self) -> None:
        """Count the micro-batches that a restored checkpoint has behind it, so that the next one generates."""
        self._step = self.state.global_step * self.args.gradient_accumulation_steps

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        order = super()._get_train_sampler(dataset)
        return _EpochSampler(order, self.args.seed, lambda: int(self.state.epoch or 0))

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        found: dict[str, Any] = super()._generate_and_score_completions(inputs)
        # TRL counts no prompt with fewer than two rewards and, where the batch scales them, looks at the whole batch.
        self._metrics["train"][FLAT][-1] = self.scored.flat
        if self.measures:
            self._metrics["train"]["kl_to_start"].append(self._distance(found))
        return found

    def _distance(self, rollouts: dict[str, Any]) -> float:
        """KL divergence from the start, in nats per token at the sampling temperature, by the estimator of TRL."""
        ids = torch.cat([rollouts["prompt_ids"], rollouts["completion_ids"]], dim=1)
        seen = torch.cat([rollouts["prompt_mask"], rollouts["completion_mask"]], dim=1)
        mask, size = rollouts["completion_mask"], self.args.per_device_train_batch_size

        def likelihoods(model: Any) -> Tensor:
            found: Tensor = self._get_per_token_logps_and_entropies(model, ids, seen, mask.size(1), batch_size=size)[0]
            return found

        with torch.no_grad():
            now = rollouts["old_per_token_logps"] if "old_per_token_logps" in rollouts else likelihoods(self.model)
            if "ref_per_token_logps" in rollouts:
                start = rollouts["ref_per_token_logps"]
            elif self.ref_model is not None:
                start = likelihoods(self.ref_model)
            else:
                with self.accelerator.unwrap_model(self.model).disable_adapter():
                    start = likelihoods(self.model)
            ratio = (start - now).clamp(max=20)
        sums = torch.stack([((ratio.exp() - ratio - 1) * mask).sum(), mask.sum().float()])
        divergence, tokens = self.accelerator.reduce(sums, "sum").tolist()
        return float(divergence / max(tokens, 1))

    def _rows_of_the_step(self) -> list[int]:
        # A step is taken on the model's own completions.
        return []


def _flat_steps(history: Sequence[Mapping[str, Any]]) -> int:
    """Steps up to the last log for which nothing was learned from any prompt."""
    lines = [(line["step"], line[FLAT] >= 1) for line in history if FLAT in line]
    if not lines or not lines[-1][1]:
        return 0
    return int(lines[-1][0] - max((step for step, flat in lines if not flat), default=0))


class RolloutCallback(TrainerCallback):
    """Resumes the count of rollouts, and says when no prompt has had anything to learn from for a while."""

    def __init__(self, trainer: RolloutTrainer, stage: GRPOSettings, key: str) -> None:
        self._trainer = trainer
        self._stage = stage
        self._key = key

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._trainer.resume_rollouts()

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **event: Any) -> None:
        if FLAT not in event["logs"]:
            return
        # The history is the checkpoint's as well: a resumed run counts on.
        steps = _flat_steps(state.log_history)
        if steps >= self._stage.flat_steps > _flat_steps(state.log_history[:-1]):
            self._warn(steps)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # A stage of fewer steps than flat_steps that has learned nothing at all; one that a signal stopped goes on.
        steps = _flat_steps(state.log_history)
        flat = all(line[FLAT] >= 1 for line in state.log_history if FLAT in line)
        if flat and 0 < steps < self._stage.flat_steps and state.global_step >= state.max_steps:
            self._warn(steps)

    def _warn(self, steps: int) -> None:
        log.warning(
            "%s: all completions of a prompt have had the same reward, or none, for %d steps: nothing is learned; "
            "raise %s.temperature (%g) or num_generations (%d), or choose a reward that tells them apart",
            self._stage.name, steps, self._key, self._stage.temperature, self._stage.num_generations,
        )  # fmt: skip
