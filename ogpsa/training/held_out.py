"""The loss on rows that no stage trains on, measured while it trains."""

from typing import Any

from transformers import Trainer

from ogpsa.runs.tracking import HELD_OUT
from ogpsa.subspace.references import preserved_random_state


class HeldOutTrainer(Trainer):
    """Mixed in before TRL's trainer: an evaluation reads the held-out sets alone, and draws no random number.

    A loss is the stage's own of each row, averaged over the rows: ``eval_held_out_<set>_loss``.
    """

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        trainer: Any = super()
        if eval_dataset is not None or not isinstance(self.eval_dataset, dict):
            measured: dict[str, float] = trainer.evaluate(eval_dataset, *args, **kwargs)
            return measured
        found: dict[str, float] = {}
        with preserved_random_state():
            for name in self.eval_dataset:
                if str(name).startswith(HELD_OUT):
                    found |= trainer.evaluate(name, *args, **kwargs | {"metric_key_prefix": f"eval_{name}"})
        return found
