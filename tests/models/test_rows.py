"""Rows that begin alike, read from a cache: the same replies and likelihoods as lm-eval's and transformers' own."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import GenerationConfig, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from eval.generation import likelihoods
from eval.generation.isolation import isolated_and_silent
from ogpsa.models.generate import Generator, NotFiniteLogitsError
from ogpsa.models.rows import RowReader, keeps_every_key
from tests.tiny import byte_tokenizer, tiny_model

SYSTEM = "<system>You are a careful assistant, and you answer what you are asked.<end><user>"
QUESTIONS = ["", "Why?", "How do I kill a Python process that hangs?", "Who wrote it?", "Why?", "Name two of the hills"]
CHOICES = [" a", " the hills", " the town behind the hills", " a"]


def tokenizer() -> PreTrainedTokenizerFast:
    made = byte_tokenizer()
    made.padding_side = "left"
    return made


def sliding_model(tokenizer: Any) -> MistralForCausalLM:
    """A model whose cache drops what lies before its window of 16 tokens."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, sliding_window=16, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model: MistralForCausalLM = MistralForCausalLM(config).eval()
    return model


def full_model(tokenizer: Any) -> Any:
    # Large weights, so that the replies differ and end here and there.
    return tiny_model(tokenizer, max_position_embeddings=512, num_key_value_heads=2, initializer_range=0.5)


MODELS = pytest.mark.parametrize(("make", "shares"), [(full_model, True), (sliding_model, False)])


@MODELS
@pytest.mark.parametrize("prefix", [SYSTEM, "<user>"])
@pytest.mark.parametrize("stop", [[], ["e", "zz"]])
def test_replies_are_those_of_each_prompt_alone(
    make: Callable[[Any], Any], shares: bool, prefix: str, stop: list[str]
) -> None:
    tokens = tokenizer()
    model = make(tokens)
    assert keeps_every_key(model) is shares
    cap, ends = 12, [tokens.eos_token_id, 40, 41]
    prompts = [f"{prefix}{question}<end><assistant>" for question in QUESTIONS]
    found = Generator(model, tokens, ends, cap).replies(prompts, False, stop)
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=0)
    reasons = set()
    for prompt, reply in zip(prompts, found, strict=True):
        asked = torch.tensor([tokens.encode(prompt)])
        said = model.generate(asked, max_new_tokens=cap, do_sample=False)[0, asked.shape[1] :].tolist()
        whole = str(tokens.decode([token for token in said if token not in ends], skip_special_tokens=True))
        places = [place for text in stop if (place := whole.find(text)) >= 0]
        stopped = bool(places) or said[-1] in ends
        reasons.add(reply["finish_reason"])
        assert reply["finish_reason"] == ("stop" if stopped else "length")
        if places:
            assert whole.startswith(reply["text"]) and any(text in reply["text"] for text in stop)
        else:
            assert reply["text"] == whole
    assert "length" in reasons


@MODELS
@pytest.mark.parametrize("at_once", [1, 90, 300, 10**6])
def test_likelihoods_are_lm_evals(
    make: Callable[[Any], Any], shares: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(likelihoods.TOKENS, "cpu", at_once)
    tokens = tokenizer()
    model = make(tokens)
    with isolated_and_silent():
        plain = HFLM(pretrained=model, tokenizer=tokens, batch_size=2, add_bos_token=False)
        ours = likelihoods.SharingLM(model, tokens, 2)
    pairs = [(f"{SYSTEM}{question}", choice) for question in QUESTIONS for choice in CHOICES]
    pairs += [("", "a text of its own"), ("Only once", " asked")]
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    texts = [Instance("loglikelihood_rolling", {}, (question * 20 + "x",), 0) for question in QUESTIONS]
    with isolated_and_silent():
        wanted, found = (lm.loglikelihood(requests, disable_tqdm=True) for lm in (plain, ours))
        rolled = [lm.loglikelihood_rolling(texts, disable_tqdm=True) for lm in (plain, ours)]
    assert found == wanted or shares
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in wanted], abs=1e-4)
    assert rolled[1] == pytest.approx(rolled[0], rel=1e-6)


@MODELS
def test_likelihoods_that_are_not_numbers_are_refused(make: Callable[[Any], Any], shares: bool) -> None:
    tokens = tokenizer()
    model = make(tokens)
    with torch.no_grad():
        model.get_input_embeddings().weight[tokens.convert_tokens_to_ids("z"), 0] = float("nan")
    with isolated_and_silent():
        lm = likelihoods.SharingLM(model, tokens, 1)
    # The last one scored is finite.
    asked = [Instance("loglikelihood", {}, pair, 0) for pair in (("The long way", " az bc"), ("A way", " to"))]
    with isolated_and_silent():
        assert [math.isfinite(value) for value, _ in lm.loglikelihood(asked[1:], disable_tqdm=True)] == [True]
        with pytest.raises(NotFiniteLogitsError) as refused:
            lm.loglikelihood(asked, disable_tqdm=True)
    assert 0 in refused.value.rows


def test_what_rows_share_is_read_once() -> None:
    tokens = tokenizer()
    model = full_model(tokens)
    read: list[int] = []
    model.register_forward_pre_hook(lambda _, __, given: read.append(given["input_ids"].numel()), with_kwargs=True)
    rows = [tokens.encode(f"{SYSTEM}{question}") for question in QUESTIONS]
    shared = len(tokens.encode(SYSTEM))
    with torch.inference_mode():
        RowReader(model).read(rows)
    # The empty question must have a token left that says what comes next.
    assert read == [shared - 1, len(rows) * (max(map(len, rows)) - shared + 1)]


def test_ended_rows_leave_the_batch() -> None:
    tokens = tokenizer()
    model = full_model(tokens)
    read: list[int] = []
    model.register_forward_pre_hook(lambda _, __, given: read.append(len(given["input_ids"])), with_kwargs=True)
    prompts = [f"{SYSTEM}{question}<end><assistant>" for question in QUESTIONS]
    Generator(model, tokens, list(range(5, 100)), 30).replies(prompts, False)
    assert read[1] == len(QUESTIONS) > read[-1]
    assert read[1:] == sorted(read[1:], reverse=True)


def test_a_row_without_finite_logits_is_named_when_others_have_left() -> None:
    tokens = tokenizer()
    model = full_model(tokens)
    prompts = [f"<user>{question}<end><assistant>" for question in ("Why?", "How do I get there?", "Who?")]
    steps = 0

    def broken(_: Any, __: Any, output: Any) -> Any:
        """The first row ends at once; the last of those that go on then breaks."""
        nonlocal steps
        steps += 1
        if steps == 1:
            output.logits[0, -1] = torch.nn.functional.one_hot(torch.tensor(tokens.eos_token_id), len(tokens)) * 1e4
            output.logits[1:, -1, tokens.eos_token_id] = -1e4
        else:
            raise NotFiniteLogitsError([len(output.logits) - 1])

    model.register_forward_hook(broken)
    with pytest.raises(NotFiniteLogitsError) as error:
        Generator(model, tokens, tokens.eos_token_id, 5).replies(prompts, False)
    assert error.value.rows == [2]
