"""Faults of form: what is one, and what only looks like one."""

import pytest

from ogpsa.utils.health import faults

GERMAN = "Um Reis zu kochen, nimmt man zwei Tassen Wasser und eine Tasse Reis. Dann wird er mit dem Wasser gekocht."
ENGLISH = "Take a cup of rice and two cups of water, and cook it for twenty minutes on a low flame; this is enough."
CHINESE = "首先。把米洗干净。然后加入适量的水。煮二十分钟。最后焖十分钟就可以吃了。"
JAPANESE = "まず、お米を洗って、それから水を入れて二十分炊きます。最後に十分蒸らします。"


@pytest.mark.parametrize(
    ("prompt", "answer", "found"),
    [
        ("What is it?", "It is 42. " * 30, ["repetitive"]),
        ("What is it?", f"{ENGLISH} {'and then ' * 60}", ["repetitive"]),
        ("What is it?", "h" + "ha" * 30, ["repetitive"]),
        ("What is it?", "好的" * 40, ["repetitive", "wrong_language"]),
        ("How do I cook rice for the family?", GERMAN, ["wrong_language"]),
        ("How do I cook rice for the family?", CHINESE, ["wrong_language"]),
        ("如何煮米饭给四个人吃", JAPANESE, ["wrong_language"]),
        ("Как сварить рис для семьи?", ENGLISH, ["wrong_language"]),
        ("What is it?", "It is 4.<|im_end|>\n<|im_start|>user\nAnd 5?", ["debris"]),
        ("What is it?", "It is 4.\nassistant\nIt is 5.", ["debris"]),
        ("What is it?", "It is 4. [/INST] It is 5.", ["debris"]),
        ("What is it?", "It is 4.\n### Instruction:\nAdd 1.", ["debris"]),
        ("What is it?", "It is 4.</s>" * 60, ["repetitive", "debris"]),
        ("What is it?", "It is 4<|im_end|>", ["debris"]),
        ("What is it?", f"It is {'12' * 500}", ["repetitive"]),
        ("What is it?", f"It is 4. </s>{'1 2 3 4 5 ' * 20}", ["repetitive", "debris"]),
        # What is a number, a table or code, or explains a template.
        ("What is 1/3?", "The answer `0." + "3" * 60 + "`", []),
        ("What is 1/3?", "The answer 0." + "3" * 60 + ", and 1/7 is 0." + "142857" * 20, []),
        (
            "Who won?",
            "It was a draw each time:\n" + "| Round one | Ann and Bo | it was a draw |\n" * 30 + "\nAll drew.",
            [],
        ),
        ("Write it.", "```\n" + "print the next line\n" * 30 + "```", []),
        ("Which keys?", "\n".join(f"- Press `{a}` or `{b}`user" for a in "abcdefg" for b in "hijklm"), []),
        ("How does Qwen end a turn?", "It uses <|im_end|>", []),
        ("How does Qwen end a turn?", 'With `<|im_end|>`, as "</s>" elsewhere:\n- <|im_end|>: ends it.', []),
        ("How does Llama 2 mark it?", "Between [INST] and [/INST].\n```\n<s>[INST] Hi [/INST]\n```", []),
        # What is asked for, or too short to tell.
        ("How do I cook rice for the family?", ENGLISH, []),
        ("Wie koche ich Reis für die Familie?", GERMAN, []),
        ("How do I say this in German?", GERMAN, []),
        ("What does <|im_end|> mean?", "<|im_end|> ends a turn.", []),
        ("Name ten numbers.", "1, 2, 3, 4, 5, 6, 7, 8, 9 and 10.", []),
        ("How do I print it in a loop?", "```python\nfor i in range(10):\n    print(i)\n```", []),
        ("What is the capital of France?", "Paris.", []),
        ("Draw a line that is as long as you can make it.", "_" * 200, []),
        ("", "", []),
    ],
)
def test_faults_of_form(prompt: str, answer: str, found: list[str]) -> None:
    assert faults(prompt, answer) == found
