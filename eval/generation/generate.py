"""Generation: a checkpoint's greedy responses, or the log-likelihoods of the options, each kept as it is made."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM

from eval.benchmarks.definition import Benchmark
from eval.generation.isolation import isolated_and_silent
from eval.generation.questions import Answer, Question, Questions, Row
from ogpsa.config import Evaluation
from ogpsa.models.generate import load_for_generation
from ogpsa.utils.errors import UserError
from ogpsa.utils.journal import Journal
from ogpsa.utils.progress import Progress
from ogpsa.utils.signals import deaf_children


class Answering(Protocol):
    """What answers questions."""

    def chat_template(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt that the messages become."""

    def check_questions(self, benchmark: Benchmark, questions: Sequence[Question]) -> None:
        """Refuse questions that cannot be asked.

        Raises:
            UserError: names the row, or the benchmark.
        """

    def answer(
        self, questions: Sequence[Question], keep: Callable[[dict[str, Answer]], None], safe_point: Callable[[], None]
    ) -> None:
        """Give ``keep`` every answer by its row's id; ``safe_point`` may end the work between two batches."""


def prepare(backend: Answering, benchmark: Benchmark, rows: Sequence[Row]) -> list[Question]:
    """What a benchmark asks, in the order of its rows.

    Raises:
        UserError: as the backend's ``check_questions``.
    """
    questions = Questions(benchmark, rows, backend.chat_template).all
    backend.check_questions(benchmark, questions)
    return questions


def generate(
    backend: Answering, questions: Sequence[Question], label: str, journal: Path, stamp: Mapping[str, Any],
    safe_point: Callable[[], None],
) -> list[Answer]:  # fmt: skip
    """Answers to the questions, in their order; those in the journal are not asked for again.

    The batches are the same whether or not some are in the journal, and the random state of Python, NumPy and torch
    is the same after each call as before.

    Args:
        label: what the progress is called.
        stamp: what the answers rest on.
    """
    kept = Journal(journal, stamp)
    progress = Progress(len(questions), label, start=len(kept.pieces))

    def keep(answers: dict[str, Answer]) -> None:
        kept.keep(answers)
        progress.show(len(kept.pieces))

    # The longest first, so that a batch pads little and a memory that is too small shows at once.
    ordered = sorted(questions, key=lambda question: (-question.length, question.row_id))
    try:
        with progress:
            backend.answer([question for question in ordered if question.row_id not in kept.pieces], keep, safe_point)
    finally:
        kept.close(discard=False)
    return [kept.pieces[question.row_id] for question in questions]


class LocalModel:
    """A model in this process, by one of lm-eval's classes.

    Args:
        batch: rows that are given to it at once.
    """

    def __init__(self, lm: TemplateLM, batch: int) -> None:
        self._lm: Any = lm
        self._batch = batch

    def chat_template(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        prompt: str = self._lm.apply_chat_template(messages, add_generation_prompt=add_generation_prompt)
        return prompt

    def check_questions(self, benchmark: Benchmark, questions: Sequence[Question]) -> None:
        """lm-eval would cut a long prompt from the left, its chat header first, and only warn."""
        reserved = 0 if benchmark.multiple_choice else benchmark.task["generation_kwargs"]["max_gen_toks"]
        room = self._lm.max_length - reserved
        for question in questions:
            for request in question.requests:
                text = "".join(part for part in request.args if isinstance(part, str))
                # No tokenizer makes more tokens of a text than it has bytes, and one at the beginning.
                length = 1 + len(text.encode())
                if length > room:
                    length = len(self._lm.tok_encode(text))
                if length > room:
                    left = f"leaves {room} beside the response" if reserved else "is all there is"
                    raise UserError(
                        f"{benchmark.name}: row '{question.row_id}': a prompt of {length} tokens; the model's context "
                        f"of {self._lm.max_length} {left}"
                    )

    def answer(
        self, questions: Sequence[Question], keep: Callable[[dict[str, Answer]], None], safe_point: Callable[[], None]
    ) -> None:
        for start in range(0, len(questions), self._batch):
            safe_point()
            batch = questions[start : start + self._batch]
            requests = [request for question in batch for request in question.requests]
            with isolated_and_silent():
                found = iter(getattr(self._lm, requests[0].request_type)(requests, disable_tqdm=True))
            keep({question.row_id: _answer([next(found) for _ in question.requests]) for question in batch})


def _answer(responses: list[Any]) -> Answer:
    if isinstance(responses[0], str):
        return {"response": responses[0]}
    return {"options": [float(value) for value, _ in responses], "greedy": [bool(top) for _, top in responses]}


def local_model(checkpoint: Path, settings: Evaluation) -> LocalModel:
    """A checkpoint in this process, or in vLLM.

    Raises:
        UserError: the folder cannot be loaded, or vLLM is not installed.
    """
    if settings.backend.name == "vllm":
        return _in_vllm(checkpoint, settings)
    with isolated_and_silent():
        model, tokenizer = load_for_generation(checkpoint)
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=settings.batch_size)
    return LocalModel(lm, settings.batch_size)


def _in_vllm(checkpoint: Path, settings: Evaluation) -> LocalModel:
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        raise UserError("eval.backend.name: vllm is not installed; install it, or use model or server")
    from lm_eval.models.vllm_causallms import VLLM

    # Not the checkpoint's own sampling settings. vLLM makes its batches itself, out of many rows, in another
    # process.
    with deaf_children():
        lm = VLLM(pretrained=str(checkpoint), trust_remote_code=False, batch_size="auto", generation_config="vllm")
    return LocalModel(lm, 16 * settings.batch_size)
