"""A word-level tokenizer with a chat template, made from the world's vocabulary."""

from collections.abc import Mapping

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN, USER, ASSISTANT, END = SPECIAL = ("<pad>", "<unk>", "<user>", "<assistant>", "<end>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<' + message.role + '> ' + message.content + ' <end> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)


def build_tokenizer(vocabulary: list[str]) -> PreTrainedTokenizerFast:
    """One token a word; ``<end>`` closes every turn and is what generation stops at."""
    words = {word: index for index, word in enumerate([*SPECIAL, *vocabulary])}
    tokenizer = Tokenizer(WordLevel(words, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def encode(vocabulary: Mapping[str, int], prompt: str, target: str) -> tuple[list[int], int]:
    """Token ids of one exchange, as the chat template renders it, and how many of them are the prompt's.

    The template itself costs more than a training step of a model this small.
    """
    words = [USER, *prompt.split(), END, ASSISTANT]
    return [vocabulary[word] for word in [*words, *target.split(), END]], len(words)
