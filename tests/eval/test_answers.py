"""What is not an answer: thoughts, unfinished ones, empty ones; whoever generates and whoever judges."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from eval import __main__ as command
from eval.judging.judge import Item, RuleJudge, judge_files, load_judge
from eval.judging.judges.refusal_match import refusal_match
from eval.judging.verdicts import judge_responses, open_journal
from ogpsa.app.compose import compose_config
from ogpsa.models.generate import Generator
from ogpsa.utils.answers import says_nothing, split_reply
from ogpsa.utils.errors import EXIT_DONE
from tests.endpoint_server import Reply, Request, serve
from tests.tiny import byte_tokenizer, tiny_model

Answering = Callable[[str], Reply]


def with_thought(text: str | None, reasoning: str, finish_reason: str = "stop") -> Reply:
    """The reply of a server that parts thought and answer itself."""
    message = {"role": "assistant", "content": text, "reasoning_content": reasoning}
    return Reply(body=json.dumps({"choices": [{"message": message, "finish_reason": finish_reason}]}).encode())


def evaluated(
    tmp_path: Path, replies: list[Reply], benchmark: str, group: str, rows: list[dict[str, str]]
) -> tuple[dict[str, Any], list[dict[str, Any]], list[Request]]:
    """A benchmark's entry in ``scores.json``, its verdicts and what was asked; row i is answered by reply i."""
    folder = tmp_path / "rows"
    folder.mkdir()
    made = [
        {"id": str(number), "prompt": f"Question {number}?", "target": "", **row} for number, row in enumerate(rows)
    ]
    (folder / f"{benchmark}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    groups = dict.fromkeys(("safety", "utility", "over_refusal", "reported"), "[]") | {group: f"[{benchmark}]"}

    def script(request: Request, before: int) -> Reply:
        return next(reply for number, reply in enumerate(replies) if f"uestion {number}?" in request.text)

    with serve(script) as server:
        arguments = [
            "eval=quick", "eval.limit=null", "eval.composites={}", f"eval.data_dir={folder}",
            *(f"eval.{name}={names}" for name, names in groups.items()), "eval.backend.name=server",
            f"eval.backend.base_url={server.url}", "eval.backend.model=m", f"output={tmp_path / 'out'}",
        ]  # fmt: skip
        assert command.main(arguments) == EXIT_DONE
        asked = list(server.requests)
    entry = json.loads((tmp_path / "out" / "scores.json").read_text())["benchmarks"][benchmark]
    lines = (tmp_path / "out" / "verdicts" / f"{benchmark}.jsonl").read_text().splitlines()
    return entry, [json.loads(line) for line in lines], asked


def arithmetic(number: int) -> list[dict[str, str]]:
    return [{"question": f"Question {index}?", "answer": "so it is\n#### 2"} for index in range(number)]


THOUGHTS: list[tuple[Reply, float | None]] = [
    (Reply("<think>Could it be 2? Let me", "length"), None),
    (Reply("<think>Could it be 2? Let me"), None),
    (Reply("<think>3? Q: no.</think>The answer is 2."), 1.0),
    (Reply("<think>2?</think>The answer is 3."), 0.0),
    (Reply("[THINK]2[/THINK]The answer is 3."), 0.0),
    (Reply("◁think▷2◁/think▷The answer is 3."), 0.0),
    (Reply("<|channel|>analysis<|message|>It is 2.", "length"), None),
    (Reply("<|channel|>analysis<|message|>3<|end|><|start|>assistant<|channel|>final<|message|>It is 2"), 1.0),
    (with_thought(None, "It is 2", "length"), None),
    (with_thought("", "It is 2", "length"), None),
    (with_thought("It is 2.", "It is 3."), 1.0),
    # What comes after the text that ends an answer is none of it.
    (Reply("It is 2.\nQ: 3 apples?", "length"), 1.0),
    (Reply(""), 0.0),
    (Reply("...", "length"), 0.0),
]


def test_a_thought_is_not_an_answer_to_a_question(tmp_path: Path) -> None:
    replies, values = [reply for reply, _ in THOUGHTS], [value for _, value in THOUGHTS]
    entry, verdicts, requests = evaluated(tmp_path, replies, "gsm8k", "utility", arithmetic(len(THOUGHTS)))
    assert [verdict["value"] for verdict in verdicts] == values
    assert (entry["missing"], entry["unfinished"]) == (values.count(None), values.count(None))
    statuses = ["unfinished" if value is None else "parsed" for value in values]
    assert [verdict["parse_status"] for verdict in verdicts] == statuses
    # A server would end a thought at it.
    assert not any("stop" in request.body for request in requests)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        *((f"<{tag}>a</{tag}>b", "b") for tag in (
            "reason", "reasoning_content", "internal", "internal_monologue", "rationale", "planning", "reflect",
            "deep_think", "ds_think", "thinking_process", "thought-process", "seed:think",
        )),
        ("<\uff5cbegin\u2581of\u2581thought\uff5c>a<\uff5cend\u2581of\u2581thought\uff5c>\n\nb", "b"),
        ("<|begin_of_thought|>a<|end_of_thought|><|begin_of_solution|>b<|end_of_solution|>", "b"),
        ("<details><summary>Thinking</summary>\na\n</details>\n\nb", "b"),
        ('<details type="reasoning">\n<summary>Thought for 3 seconds</summary>a</details>b', "b"),
        ("<details><summary>Thinking...</summary>\na", None),
        ("&lt;think&gt;a&lt;/think&gt;b", "b"),
        ("&lt;think&gt;a", None),
        ("Thinking...\na\n...done thinking.\n\nb", "b"),
        ("Thinking...\na", None),
        ("assistantanalysisa. assistantfinalb", "b"),
        ("analysisuser asks. assistantfinalb", "b"),
        ("analysisuser asks", None),
        ("Here is my thought process:\na\n\nHere is my response:\nb", "b"),
        ("Here's my thought process: a", None),
        ("<think>a< /think>b", "b"),
        ("<think>a</ think >b", "b"),
        ("<answer>4</answer>", "4"),
        ("<think>a</think><answer>4</answer>", "4"),
    ],
)  # fmt: skip
def test_a_thought_is_told_from_the_answer(text: str, answer: str | None) -> None:
    assert split_reply(text).answer == answer


@pytest.mark.parametrize(
    "text",
    [
        "Use <thinking> tags around your steps.",
        "So close it with </think> and go on.",
        "So close it with </think>.",
        "The <think> tag is used by R1",
        "Escape it as &lt;think&gt; in HTML.",
        "As XML:\n```xml\n<analysis>a</analysis>\n```\nThat is all.",
        "As XML:\n<report>\n<analysis>a</analysis>\n</report>",
        "I wrap it in <reflection> a </reflection>. The answer is 4.",
        "Analysis of the poem: it rhymes.",
        "analysis is hard",
        "Thinking of you.",
        "Thinking... that is hard to say.",
        "<details><summary>More</summary>a</details>b",
        "Fold it:\n<details><summary>Thinking</summary>a</details>b",
        "Answer: <answer>4</answer>",
    ],
)
def test_mentioned_marks_do_not_split_a_response(text: str) -> None:
    reply = split_reply(text)
    assert (reply.thought, reply.answer) == ("", text)


HOLLOW = [
    "assistant", "Assistant:", "**Assistant:**", "Answer:", "<div></div>", "<div><p> </p></div>", '<p class="x"></p>',
    "<answer></answer>", "</think>", "\u2581\u2581", "\u2800", "\u3164", "\u115f", "\\boxed{}", "$\\boxed{ }$",
    "<image>", "\\n\\n", "<|eot_id|><|start_header_id|>assistant<|end_header_id|>", "&nbsp;&#8203;", "───",
]  # fmt: skip


@pytest.mark.parametrize("text", HOLLOW)
def test_a_placeholder_for_an_answer_says_nothing(text: str) -> None:
    assert says_nothing(text)


@pytest.mark.parametrize(
    "text",
    [
        "4",
        "C",
        "User",
        "the assistant",
        "<p>no</p>",
        "\\boxed{4}",
        "\\nu",
        "Answer: 4",
        "😀",
        "∞",
        "한",
        "<table>",
        "♥",
    ],
)
def test_a_word_a_number_or_a_symbol_says_something(text: str) -> None:
    assert not says_nothing(text)


def test_a_cut_response_is_a_thought_where_others_end_the_templates_thought(tmp_path: Path) -> None:
    replies = [Reply("Is it 3?</think>It is 2."), Reply("Could it be 2? Let me", "length"), Reply("2</think>It is 2.")]
    entry, verdicts, _ = evaluated(tmp_path, replies, "gsm8k", "utility", arithmetic(3))
    assert [verdict["no_answer"] for verdict in verdicts] == [None, "unfinished", None]
    assert (entry["value"], entry["n"], entry["missing"], entry["cut"]) == (1.0, 2, 1, 1)


NOTHING = [
    "",
    " \n",
    "...",
    "…",
    "**",
    "---",
    "```\n```",
    "<|im_end|>",
    "</s>",
    "?!",
    "- \n- ",
    "<think>no</think>",
    "\u200b",
]


def test_a_model_that_says_nothing_has_no_over_refusal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    replies = [Reply(text) for text in NOTHING]
    rows = [{"prompt": f"Question {number}?"} for number in range(len(NOTHING))]
    entry, verdicts, _ = evaluated(tmp_path, replies, "xstest_safe", "over_refusal", rows)
    assert {(verdict["value"], verdict["parse_status"], verdict["refused"]) for verdict in verdicts} == {
        (None, "empty", None)
    }
    assert (entry["value"], entry["empty"], entry["cut"]) == (None, len(NOTHING), 0)
    assert f"{len(NOTHING)} empty)" in capsys.readouterr().out
    assert caplog.text.count("many responses hold no answer: xstest_safe 13 empty of 13") == 1


def test_answers_at_the_cap_on_tokens_are_counted_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    # As servers of several makes call it.
    replies = [Reply("Turn the lid", reason) for reason in ("length", "max_tokens", "MAX_TOKENS", "stop")]
    rows = [{"prompt": f"Question {number}?"} for number in range(4)]
    entry, verdicts, _ = evaluated(tmp_path, replies, "xstest_safe", "over_refusal", rows)
    assert (entry["value"], entry["n"], entry["cut"]) == (0.0, 4, 3)
    assert [verdict["finish_reason"] for verdict in verdicts] == ["length"] * 3 + ["stop"]
    assert "0.00 ± 0.00 (3 cut)" in capsys.readouterr().out
    assert caplog.text.count("met the cap on tokens and are cut: xstest_safe 3 of 4 (max_gen_toks 512)") == 1


@pytest.mark.parametrize("name", [name for name in judge_files() if isinstance(load_judge(name), RuleJudge)])
def test_every_rule_is_given_the_answer_alone(name: str) -> None:
    answer, target = "I'm sorry, but I can't", "I'm sorry, but I can't"
    texts = [answer, f"<think>yes</think>{answer}", f"yes</think>\n\n{answer}", f"[THINK]{answer}", "...", " "]
    items = [Item(str(number), "", text, target) for number, text in enumerate(texts)]
    settings = compose_config([]).eval.judge
    verdicts = [judged.verdict for judged in judge_responses(name, items, settings, open_journal(Path("unused")), "")]
    assert [verdict.value for verdict in verdicts[:4]] == [1.0, 1.0, 1.0, None]
    accuracy = load_judge(name).metric == "accuracy"
    assert [verdict.value for verdict in verdicts[4:]] == ([0.0, 0.0] if accuracy else [None, None])


def test_a_sign_that_is_the_right_answer_is_one() -> None:
    settings = compose_config([]).eval.judge
    [judged] = judge_responses("exact_match", [Item("0", "", "?", "?")], settings, open_journal(Path("unused")), "")
    assert judged.verdict.value == 1.0


def test_the_published_rule_reads_as_published() -> None:
    assert refusal_match("I’m sorry, but I can’t assist") == "full_compliance"
    assert refusal_match("No, it is harmless.") == "full_refusal"


class Scripted(LlamaForCausalLM):
    """Says what it is told to, a token a step, whatever it is asked."""

    said: list[list[int]]
    step: int = -1

    def forward(self, input_ids: torch.Tensor, **_: Any) -> CausalLMOutputWithPast:  # type: ignore[override]
        self.step += 1
        logits = torch.zeros(*input_ids.shape, self.config.vocab_size)
        for row, tokens in enumerate(self.said):
            logits[row, -1, tokens[min(self.step, len(tokens) - 1)]] = 1.0
        return CausalLMOutputWithPast(logits=logits)


def said_locally(texts: list[str], cap: int, stop: list[str], in_thought: bool = False) -> list[dict[str, str]]:
    tokenizer = byte_tokenizer()
    tokenizer.padding_side = "left"
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["[THINK]", "[/THINK]", "<extra>"]}, replace_extra_special_tokens=False
    )
    model = tiny_model(tokenizer)
    model.__class__ = Scripted
    model.said = [tokenizer(text)["input_ids"] for text in texts]
    prompts = ["<user>hi<end><assistant>"] * len(texts)
    return Generator(model, tokenizer, tokenizer.eos_token_id, cap).replies(prompts, False, stop, in_thought)


def test_a_local_model_says_how_its_replies_end_and_keeps_the_marks_of_a_thought() -> None:
    texts = ["Hello<extra> there<end>", "[THINK]Q: 2[/THINK]It is 2<end>", "on and on", "It is 2.\nQ: more<end>"]
    found = said_locally(texts, cap=24, stop=["Q:"])
    assert [reply["finish_reason"] for reply in found] == ["stop", "stop", "length", "stop"]
    assert [reply["text"] for reply in found[:2]] == ["Hello there", "[THINK]Q: 2[/THINK]It is 2"]
    assert found[3]["text"].startswith("It is 2.\nQ:")


@pytest.mark.parametrize("in_thought", [False, True])
def test_a_stop_text_does_not_end_a_local_models_thought(in_thought: bool) -> None:
    text = "Q: 2? So it is 2</think>It is 2.\nQ: more and more"
    [reply] = said_locally([text if in_thought else f"<think>{text}"], cap=60, stop=["Q:"], in_thought=in_thought)
    assert reply["text"].endswith("</think>It is 2.\nQ:")
    assert reply["finish_reason"] == "stop"


def test_faults_of_form_are_counted_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    replies = [Reply("It is 4. " * 40), Reply("Turn the lid.<|im_end|>\nassistant\nTurn it."), Reply("Turn the lid.")]
    rows = [{"prompt": f"Question {number}?"} for number in range(3)]
    entry, verdicts, _ = evaluated(tmp_path, replies, "xstest_safe", "over_refusal", rows)
    assert [verdict["faults"] for verdict in verdicts] == [["repetitive"], ["debris"], []]
    assert (entry["repetitive"], entry["wrong_language"], entry["debris"], entry["n"]) == (1, 0, 1, 3)
    assert "0.00 ± 0.00 (1 repetitive, 1 debris)" in capsys.readouterr().out
    assert "not what a person would read: xstest_safe 1 repetitive of 3, xstest_safe 1 debris of 3" in caplog.text
