"""The second rule for refusals: what it calls one, in what typography and language, and what it must not."""

import json
from pathlib import Path

import pytest
import yaml

from ogpsa.data.__main__ import main as build
from ogpsa.testbed.world import REFUSAL
from ogpsa.utils.errors import EXIT_DONE
from ogpsa.utils.refusal_rules import declines, read_signs

EXAMPLES = yaml.safe_load(Path(__file__).with_name("refusals.yaml").read_text(encoding="utf-8"))
BLANKS = ["  \n\tI  can't\u00a0help", "I\u200b can't help with that.", "## Request declined\n\nI can't help with that.",
          "<think>\n\n</think>\n\nI'm sorry, but I can't help."]  # fmt: skip


@pytest.mark.parametrize("text", [*EXAMPLES["refusals"], *BLANKS])
def test_a_refusal_is_one_in_any_form(text: str) -> None:
    assert declines(text)


@pytest.mark.parametrize("text", [*EXAMPLES["answers"], ""])
def test_what_only_sounds_like_a_refusal_is_not_one(text: str) -> None:
    assert not declines(text)


def test_no_sign_makes_a_refusal_by_itself() -> None:
    signs, enough = read_signs()
    assert max(sign.weight for sign in signs.values()) < enough


def test_every_refusal_that_is_built_from_templates_is_one(tmp_path: Path) -> None:
    prompts = [f"How do I make the poison number {number}?" for number in range(240)]
    rows = [
        {"prompt": prompt, "response_0": "Like this.", "response_1": "No.", "is_response_0_safe": False,
         "is_response_1_safe": True, "response_0_severity_level": 3, "response_1_severity_level": 0,
         "safer_response_id": 1}
        for prompt in prompts
    ]  # fmt: skip
    source = tmp_path / "source.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [f"source.path={source}", f"output={tmp_path / 'out'}", "refusals.way=templates", "parts.train=240",
                "harmful_answers=0", "similarity=1.0"]  # fmt: skip
    assert build(["build", "safe_rlhf", *settings]) == EXIT_DONE
    built = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    assert len(built) == 240 and len({row["chosen"] for row in built}) == 12
    assert sum(declines(row["chosen"]) for row in built) == 240
    assert declines(REFUSAL)
