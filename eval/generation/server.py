"""Generation by a server that holds the checkpoint and speaks OpenAI's protocol, as vLLM's."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eval.benchmarks.definition import Benchmark
from eval.generation.questions import Answer, Question
from ogpsa.config import Backend
from ogpsa.models.template import CLOCK
from ogpsa.utils.endpoint import Completion, Endpoint, TooLongError
from ogpsa.utils.errors import UserError


class Server:
    """Answers by greedy decoding; the server applies the model's chat template.

    Args:
        template_kwargs: variables that it is asked to pass to the template.

    Raises:
        UserError: a clock is among them, which a server has of its own.
    """

    def __init__(self, settings: Backend, template_kwargs: Mapping[str, Any]) -> None:
        if CLOCK in template_kwargs:
            raise UserError(
                f"model.template_kwargs.{CLOCK}: a server renders by its own clock; pin what its template reads"
            )
        self._endpoint = Endpoint.of("eval.backend", settings, str(settings.model))
        self._template_kwargs = template_kwargs

    def chat_template(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return json.dumps(messages)

    def text_start(self) -> str:
        return ""

    def check_questions(self, benchmark: Benchmark, questions: Sequence[Question]) -> None:
        if not benchmark.generates:
            raise UserError(
                f"eval.backend.name: '{benchmark.name}' needs log-likelihoods, which a server of chat completions does "
                "not give; use model or vllm for it"
            )
        if benchmark.task.get("gen_prefix") or benchmark.plain_text:
            why = "is asked without the chat template" if benchmark.plain_text else "begins the answer itself"
            raise UserError(
                f"eval.backend.name: '{benchmark.name}' {why}, which a server of chat completions cannot do; use model "
                "or vllm for it"
            )

    def answer(
        self, questions: Sequence[Question], keep: Callable[[dict[str, Answer]], None], safe_point: Callable[[], None]
    ) -> None:
        if not questions:
            return
        asked = [question.requests[0].args for question in questions]
        # The same for every row of a benchmark.
        settings = asked[0][1]

        def done(index: int, completion: Completion) -> None:
            if completion.finish_reason == "too_long":
                row = questions[index].row_id
                raise TooLongError(f"row '{row}': its prompt is longer than the server's context")
            thought = {"in_thought": True} if completion.in_thought else {}
            answer = {"response": completion.text, "finish_reason": completion.finish_reason, **thought}
            keep({questions[index].row_id: answer})
            safe_point()

        safe_point()
        self._endpoint.complete(
            [json.loads(prompt) for prompt, _ in asked],
            done,
            # The texts that end an answer are not asked for: a server would end a thought at them as well.
            max_tokens=settings["max_gen_toks"],
            template_kwargs=self._template_kwargs,
        )
