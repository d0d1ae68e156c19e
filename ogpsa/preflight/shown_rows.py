"""The first rows of every set as the model will see them: text, tokens, and which of them carry loss."""

from collections.abc import Iterator

from transformers import PreTrainedTokenizerBase

from ogpsa.config import Config, OneStage
from ogpsa.data.conversations import conversation, turns
from ogpsa.data.rows import Data, Row, stage_sets
from ogpsa.models.tokenizer import common_beginning, conversation_tokens

# Rows of a set that are shown, and characters at each end of a longer text.
ROWS, ENDS = 2, 300
# Around what carries loss.
MARKS = ("⟦", "⟧")


def show_rows(config: Config, data: Data, tokenizer: PreTrainedTokenizerBase) -> str:
    """Text that shows the first rows of every set of every stage, with the loss between marks."""
    lines = [f"The first rows as the model sees them; {MARKS[0]}loss{MARKS[1]}, ⏎ a line's end:"]
    for stage in config.stages:
        for name, rows, answers in stage_sets(config, stage, data):
            lines += ["", f"{stage.name}, {name}:"]
            lines += [line for row in rows[:ROWS] for line in _shown(tokenizer, stage, row, answers)]
    return "\n".join(lines)


def _shown(tokenizer: PreTrainedTokenizerBase, stage: OneStage, row: Row, answers: tuple[str, ...]) -> Iterator[str]:
    if not answers:
        [prompt] = conversation_tokens(tokenizer, [turns(row["prompt"])], ask=True)
        yield f"  {len(prompt)} tokens, then the model's own completion: {_text(tokenizer, prompt)}"
    for column in answers:
        before, learned = tokens_of(tokenizer, row, column, stage.max_length)
        seen = f"{_text(tokenizer, before)}{MARKS[0]}{_text(tokenizer, learned)}{MARKS[1]}"
        which = f"{column}: " if len(answers) > 1 else ""
        yield f"  {which}{len(before) + len(learned)} tokens, {len(learned)} with loss: {seen}"


def tokens_of(
    tokenizer: PreTrainedTokenizerBase, row: Row, column: str, max_length: int
) -> tuple[list[int], list[int]]:
    """The tokens that TRL makes of a row with one of its answers: those before the loss, and those that carry it."""
    asked = turns(row["prompt"])
    [prompt] = conversation_tokens(tokenizer, [asked], ask=True)
    [whole] = conversation_tokens(tokenizer, [conversation(asked, row[column])])
    begun = common_beginning(prompt, whole)
    return list(whole[:begun][:max_length]), list(whole[begun:max_length])


def _text(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    text = str(tokenizer.decode(tokens)).replace("\n", "⏎")
    return text if len(text) <= 2 * ENDS else f"{text[:ENDS]} … {text[-ENDS:]}"
