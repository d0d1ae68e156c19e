"""Generation: a checkpoint's greedy responses, or the log-likelihoods of texts, each kept as it is made."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM

from eval.benchmarks.definition import Benchmark
from eval.generation.isolation import isolated_and_silent
from eval.generation.likelihoods import SharingLM
from eval.generation.questions import Answer, Question, Questions, Row
from ogpsa.config import Evaluation, Precision
from ogpsa.models.generate import Generator, NotFiniteLogitsError, ReplyDecoder, load_for_generation
from ogpsa.models.template import Chat
from ogpsa.models.tokenizer import end_tokens, load_tokenizer, stop_tokens
from ogpsa.utils.answers import template_opens_thought
from ogpsa.utils.errors import UserError
from ogpsa.utils.journal import Journal
from ogpsa.utils.progress import Progress
from ogpsa.utils.signals import deaf_children


class Answering(Protocol):
    """A model that answers questions."""

    def chat_template(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt that the messages become."""

    def text_start(self) -> str:
        """The tokenizer's own beginning of a text that no template begins: ``<|begin_of_text|>``, or nothing."""

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
    """The questions of a benchmark, in the order of its rows.

    Raises:
        UserError: as the backend's ``check_questions``.
    """
    questions = Questions(benchmark, rows, backend.chat_template).all
    if benchmark.plain_text and (start := backend.text_start()):
        questions = [question.behind(start) for question in questions]
    backend.check_questions(benchmark, questions)
    if not benchmark.generates or benchmark.task.get("gen_prefix"):
        return questions
    in_thought = template_opens_thought(backend.chat_template)
    return [replace(question, in_thought=in_thought) for question in questions]


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

    Raises:
        UserError: the model's logits for a row are not finite, or as the backend's ``answer``.
    """
    kept = Journal(journal, stamp)
    progress = Progress(len(questions), label, start=len(kept.pieces))

    def keep(answers: dict[str, Answer]) -> None:
        kept.keep(answers)
        progress.show(len(kept.pieces))

    # The longest first, so that a batch pads little and a memory that is too small shows at once.
    ordered = sorted(questions, key=lambda question: (-question.length, question.row_id))
    pending = [question for question in ordered if question.row_id not in kept.pieces]
    try:
        with progress:
            backend.answer(pending, keep, safe_point)
    except NotFiniteLogitsError as error:
        row = pending[error.rows[0]].row_id
        raise UserError(f"{label}: row '{row}': {error}, so the row has neither answer nor score") from None
    return [kept.pieces[question.row_id] for question in questions]


class Replying(Protocol):
    """Writes the replies of a model in this process."""

    def __call__(self, prompts: list[str], max_tokens: int, stop: list[str], in_thought: bool) -> list[dict[str, str]]:
        """Each prompt's greedy reply, its ``text`` and ``finish_reason``."""


class LocalModel:
    """A model in this process, by one of lm-eval's classes.

    Args:
        batch: rows that are given to it at once, if they are short enough.
        tokens: cap on a batch's tokens, prompts and longest responses included.
        replies: writes the responses, since lm-eval's classes do not say how they ended.
    """

    def __init__(self, lm: TemplateLM, batch: int, tokens: int, replies: Replying) -> None:
        self._lm: Any = lm
        self._batch, self._tokens = batch, tokens
        self._replies = replies
        # lm-eval's own way leaves out a system's turn that the template refuses.
        self._chat = Chat(self._lm.tokenizer)

    def chat_template(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self._chat.render(messages, add_generation_prompt)

    def text_start(self) -> str:
        bare, whole = (self._lm.tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
        return str(self._lm.tokenizer.decode(whole[: whole.index(bare[0])]))

    def check_questions(self, benchmark: Benchmark, questions: Sequence[Question]) -> None:
        """lm-eval would cut a long prompt from the left, its chat header first, and only warn."""
        reserved = benchmark.task["generation_kwargs"]["max_gen_toks"] if benchmark.generates else 0
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
        start = 0
        while start < len(questions):
            safe_point()
            batch = questions[start : start + self._rows_at_once(questions[start : start + self._batch])]
            try:
                answers = self._answers(batch)
            except NotFiniteLogitsError:
                # lm-eval reorders a batch, so a position in it does not identify the row.
                alone = [number for number, question in enumerate(batch, start=start) if self._fails(question)]
                raise NotFiniteLogitsError(alone or range(start, start + len(batch))) from None
            keep({question.row_id: answer for question, answer in zip(batch, answers, strict=True)})
            start += len(batch)

    def _rows_at_once(self, candidates: Sequence[Question]) -> int:
        """Number of next rows in a batch: as many as fit, each padded to the longest of them."""
        if candidates[0].requests[0].request_type != "generate_until":
            return len(candidates)
        longest = 0
        for count, question in enumerate(candidates):
            prompt, settings = question.requests[0].args
            # Rows come by characters: a shorter one may hold more tokens.
            longest = max(longest, len(self._lm.tok_encode(prompt)))
            if count and (count + 1) * (longest + settings["max_gen_toks"]) > self._tokens:
                return count
        return len(candidates)

    def _fails(self, question: Question) -> bool:
        try:
            self._answers([question])
        except NotFiniteLogitsError:
            return True
        return False

    def _answers(self, batch: Sequence[Question]) -> list[Answer]:
        requests = [request for question in batch for request in question.requests]
        with isolated_and_silent():
            if requests[0].request_type == "generate_until":
                return self._responses(batch)
            if len(batch[0].requests) == 1:
                return self._likelihoods(batch)
            found = iter(getattr(self._lm, requests[0].request_type)(requests, disable_tqdm=True))
        return [_options([next(found) for _ in question.requests]) for question in batch]

    def _likelihoods(self, batch: Sequence[Question]) -> list[Answer]:
        """Each text's own likelihood behind its prompt, and its number of tokens.

        The text's tokens are those after the prompt's. lm-eval would move whitespace from the end of the prompt, such
        as a template's line break, to the text. An empty prompt is replaced by lm-eval's prefix token.
        """
        asked = []
        for question in batch:
            prompt, text = question.requests[0].args
            before = self._lm.tok_encode(prompt) if prompt else []
            tokens = self._lm.tok_encode(prompt + text)[len(before) :]
            asked.append(((prompt, text), before or [self._lm.prefix_token_id], tokens))
        found = self._lm._loglikelihood_tokens(asked, disable_tqdm=True)
        return [_options([one]) | {"tokens": [len(tokens)]} for one, (_, _, tokens) in zip(found, asked, strict=True)]

    def _responses(self, batch: Sequence[Question]) -> list[Answer]:
        # The same for every row of a benchmark.
        settings, in_thought = batch[0].requests[0].args[1], batch[0].in_thought
        until = settings.get("until") or []
        stop = [text for text in ([until] if isinstance(until, str) else until) if text]
        prompts = [question.requests[0].args[0] for question in batch]
        replies = self._replies(prompts, settings["max_gen_toks"], stop, in_thought)
        thought = {"in_thought": True} if in_thought else {}
        return [{"response": reply["text"], "finish_reason": reply["finish_reason"], **thought} for reply in replies]


def _options(responses: list[Any]) -> Answer:
    if not all(math.isfinite(value) for value, _ in responses):
        raise NotFiniteLogitsError(range(len(responses)))
    return {"options": [float(value) for value, _ in responses], "greedy": [bool(top) for _, top in responses]}


def local_model(checkpoint: Path, settings: Evaluation, precision: Precision = "bf16") -> LocalModel:
    """A checkpoint in this process, or in vLLM; on a GPU in ``precision``.

    Raises:
        UserError: the folder cannot be loaded, or vLLM is not installed.
    """
    if settings.backend.name == "vllm":
        return _in_vllm(checkpoint, settings, precision)
    with isolated_and_silent():
        model, tokenizer = load_for_generation(checkpoint, settings.template_kwargs, precision)
        lm = SharingLM(model, tokenizer, settings.batch_size)
    return LocalModel(lm, settings.batch_size, settings.batch_tokens, replies_by(lm))


def replies_by(lm: HFLM) -> Replying:
    """One of transformers' models, writing replies."""
    tokenizer = lm.tokenizer
    ends = end_tokens(lm.model.generation_config, tokenizer)

    def replies(prompts: list[str], max_tokens: int, stop: list[str], in_thought: bool) -> list[dict[str, str]]:
        generator = Generator(lm.model, tokenizer, ends, max_tokens)
        return generator.replies(prompts, special_tokens=False, stop=stop, in_thought=in_thought)

    return replies


def _in_vllm(checkpoint: Path, settings: Evaluation, precision: Precision) -> LocalModel:
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        raise UserError("eval.backend.name: vllm is not installed; install it, or use model or server")
    from lm_eval.models.vllm_causallms import VLLM
    from vllm import SamplingParams

    tokenizer = load_tokenizer(checkpoint, settings.template_kwargs)
    # Not the checkpoint's own sampling settings. vLLM makes its batches itself, out of many rows, in another
    # process.
    with deaf_children():
        lm = VLLM(
            pretrained=str(checkpoint), trust_remote_code=False, batch_size="auto", generation_config="vllm",
            add_bos_token=False, dtype="bfloat16" if precision == "bf16" else "float32",
        )  # fmt: skip
    lm.tokenizer.chat_template = tokenizer.chat_template
    ends = stop_tokens(checkpoint, tokenizer)
    decoder = ReplyDecoder(lm.tokenizer, ends)

    def replies(prompts: list[str], max_tokens: int, stop: list[str], in_thought: bool) -> list[dict[str, str]]:
        # A stop text would end a thought as well.
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, stop_token_ids=ends)
        outputs = lm._model_generate(lm.tok_encode(prompts), generate=True, sampling_params=[sampling] * len(prompts))
        found = [output.outputs[0] for output in outputs]
        return [{"text": decoder.text(one.token_ids), "finish_reason": str(one.finish_reason)} for one in found]

    return LocalModel(lm, 16 * settings.batch_size, 16 * settings.batch_tokens, replies)
