"""What the processes of one mode do: ``worker.py MODE short|long train|resume|doubled|alone PLACE``.

``train`` trains every case to its end into ``PLACE/<case>``, then breaks second runs off in
``PLACE/broken/<case>``. ``resume`` resumes those in new processes, the tasks in ``RESIZED`` a copy of them each, in
``PLACE/<task>``.
"""

import os
import random
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from trl import GRPOTrainer

from ogpsa.app.compose import compose_config
from ogpsa.data.rows import load_data
from ogpsa.distributed import processes
from ogpsa.testbed.tokenizer import build_tokenizer
from ogpsa.testbed.world import REFUSAL, World
from ogpsa.utils.errors import EXIT_REQUEUE
from ogpsa.utils.files import is_complete
from ogpsa.utils.libraries import quiet_libraries
from ogpsa.utils.signals import Interruption
from tests.distributed.cases import BREAK_AT, COMMON, RESIZED, Case, Matrix, broken, cases, resized
from tests.distributed.shims import allow
from tests.stage import train_alone
from tests.tiny import image_reader, tiny_model


class AtStep:
    """A tracker that acts in the middle of a training."""

    def __init__(self, step: int, act: Callable[[], None]) -> None:
        self.step, self.act = step, act

    def log(self, values: Mapping[str, Any]) -> None:
        if values["train/global_step"] == self.step:
            self.act()

    def summarize(self, metrics: Mapping[str, Any]) -> None:
        pass


def save_models(place: Path) -> None:
    """Random models with tied embeddings."""
    tokenizer = build_tokenizer(World(0).vocabulary())
    for name, model in (
        ("model", tiny_model(tokenizer, tie_word_embeddings=True)),
        ("images", image_reader(tokenizer)),
    ):
        model.save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)


def train(mode: str, case: Case, place: Path, folder: Path, break_off: bool = False) -> None:
    placed = [f"distributed={mode}", f"stage={case.stage}", f"cache_dir={place / 'cache'}"]
    config = compose_config([*placed, *COMMON, *case.overrides])
    interruption = Interruption()

    def act() -> None:
        if case.breaks == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        # As by a signal that reaches one process alone.
        interruption.requested = not processes.is_main()

    tracker = AtStep(BREAK_AT if break_off else -1, act)
    with pytest.MonkeyPatch.context() as patch:
        if case.tolerance is not None:
            patch.setattr(GRPOTrainer, "_generate_single_turn", same_completions)
        train_alone(config, load_data(config), place / case.model, folder, interruption, tracker)


def same_completions(
    trainer: GRPOTrainer, prompts: list[list[int]], *_: Any, **__: Any
) -> tuple[list[list[int]], None]:
    """In place of samples: refusals and other words, by the prompt and the place in its group, whoever makes them."""
    vocabulary, end = trainer.processing_class.get_vocab(), trainer.processing_class.eos_token_id
    refusal = [vocabulary[word] for word in REFUSAL.split()]
    first, made = trainer.accelerator.process_index * len(prompts), []
    for number, prompt in enumerate(prompts, start=first):
        draw = random.Random(f"{prompt} {number % trainer.num_generations}")
        words = draw.choices(sorted(vocabulary.values())[10:], k=draw.randint(1, 9))
        made.append([*(refusal if draw.random() < 0.5 else words), end])
    return made, None


def main(mode: str, matrix: Matrix, task: str, place: Path) -> None:
    quiet_libraries()
    allow(mode)
    if task == "train":
        processes.on_main_process(lambda: save_models(place))
        for case in cases(matrix, mode):
            # One process has what the others are compared with.
            if mode != "single" or case.tolerance is not None:
                train(mode, case, place, place / case.name)
    if task in RESIZED:
        for case in resized(matrix, mode, task):
            train(mode, case, place, place / task / case.name)
        return
    for case in broken(matrix, mode):
        folder = place / "broken" / case.name
        if task == "resume":
            train(mode, case, place, folder)
            continue
        with pytest.raises(SystemExit, match=f"^{EXIT_REQUEUE}$"):
            train(mode, case, place, folder, break_off=True)
        # GRPO stops where the next step generates.
        last = 6 if "stage.updates_per_generation=3" in case.overrides else BREAK_AT + 1
        assert is_complete(folder / "checkpoints" / f"checkpoint-{last}")


if __name__ == "__main__":
    main(sys.argv[1], cast(Matrix, sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
