"""What is read off a response: a letter, yes or no, the answer in a box."""

import pytest

from eval.benchmarks.tasks.choices import read_letter
from eval.benchmarks.tasks.maths import boxed, math_results, same
from eval.benchmarks.tasks.yes_no import read_yes_no


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("The answer is B.", "B"),
        ("**Answer:** (D)", "D"),
        ("So the correct answer is option **A**.", "A"),
        ("### Final answer\nC", "C"),
        ("The final answer is $\\boxed{\\text{B}}$.", "B"),
        ("\\boxed{D}", "D"),
        ("Answer: B? No: it cannot be. Answer: C", "C"),
        ("Option B is wrong. The answer is C. Option B remains wrong.", "C"),
        ("The answer is A because cats do.", "A"),
        ("B. Paris", "B"),
        ("(C)", "C"),
        ("It rains, so it is wet.\n\nC", "C"),
        ("A. Tundra\nB. Taiga\nThe answer is B", "B"),
        # Options that are repeated.
        ("A. Tundra\nB. Taiga\nC. Desert", None),
        ("C. Desert\n\nWhich one?\n\nA. Tundra\nB. Taiga\nC. Desert", None),
        ("Answer:\nA. Tundra\nB. Taiga", None),
        ("A. Tundra\n\nIt is cold there.", "A"),
        ("A\nB\nC\nD", None),
        ("A.\n\nB.\n\nC.\n\nD.", None),
        ("(a) Tundra\n(b) Taiga\n(c) Desert", None),
        ("A. Tundra B. Taiga C. Desert D. Steppe", None),
        ("Choose the correct answer: A. Tundra B. Taiga C. Desert", None),
        ("Choose the correct option:\nA) Tundra\nB) Taiga", None),
        ("Option A: Tundra\nOption B: Taiga", None),
        ("A. Tundra\nB. Taiga\nC.", None),
        ("The answer is B.\nA. Tundra\nB. Taiga\nC. Desert", "B"),
        ("A. Tundra\nB. Taiga\nC. Desert\nD. Steppe\n\nB", "B"),
        ("A. Tundra\nB. Taiga\n\nThe correct answer is:\n\n**B) Taiga**", "B"),
        # Other ways to say it.
        ("The correct option is B.", "B"),
        ("The best choice would be (C).", "C"),
        ("The answer to the question is B.", "B"),
        ("I would choose option D, since it rains.", "D"),
        ("Option B is correct.", "B"),
        ("A is correct.", "A"),
        ("Therefore, **(b)** is the correct answer.", "B"),
        ("A) is wrong.\nB) is the right answer.\nC) is wrong.", "B"),
        ("answer: (b)", "B"),
        ("The answer is b) Taiga", "B"),
        ("$\\boxed{(C)}$", "C"),
        ("It is cold there. Therefore, B.", "B"),
        ("It rains. So it must be option C.", "C"),
        ("**B**", "B"),
        ("It rains.\nB) because it is not dry.", "B"),
        ("Option B: Taiga", "B"),
        ("First I thought of it. The answer is A.\nNo. It must be otherwise.\n\nC", "C"),
        ("Option B is correct. No, the answer is C.", "C"),
        ("The answer is 'B'.", "B"),
        # What is not an answer.
        ("Neither A nor B is correct.", None),
        ("Option B is not correct.", None),
        ("Is B correct? I do not know whether option B is correct.", None),
        ("The wrong answer is B.", None),
        ("The correct option isn't B.", None),
        ("The answer is B or C.", None),
        ("Vitamin C is the best choice.", None),
        ("The options are A, B, C and D.", None),
        ("B) is wrong.", None),
        ("see (b) for this", None),
        # Words of one letter, and letters that no option has.
        ("The answer is A cat", None),
        ("Answer: I think so", None),
        ("Answer: I'm not sure", None),
        ("A lamp stands there", None),
        ("The answer is E", None),
        ("the answer is b", None),
        ("Answer: Both B and C", None),
        ("", None),
    ],
)
def test_the_letter_that_a_response_comes_to(response: str, letter: str | None) -> None:
    assert read_letter(response, 4) == letter


def test_as_many_letters_count_as_there_are_options() -> None:
    assert [read_letter("Answer: I", options) for options in (8, 9, 10)] == [None, "I", "I"]


@pytest.mark.parametrize(
    ("response", "word"),
    [
        ("Yes", "yes"),
        ("No, it is right.", "no"),
        ("It may be. **Answer:** Yes.", "yes"),
        ("Let me see.\nNO", "no"),
        ("The answer is not made up. No.", "no"),
        ("It holds. Therefore, yes.", "yes"),
        ("The answer is no longer known. Yes", "yes"),
        ("Nobody knows", None),
        ("No one knows", None),
        ("Yes or no?", None),
        ("Answer: Yes/No", None),
        ("It is made up.", None),
        # The answer that the request shows is itself one of the words.
        ('No. The answer "yes" is correct: both are American.', "no"),
        ("Yes, the answer 'no' is incorrect.", "yes"),
        ('Yes. The given answer "No" contradicts what is known.', "yes"),
        ("No. The answer yes isn’t made up.", "no"),
        ("Yes. The answer no is wrong.", "yes"),
        ("Yes. The given answer is “No.”", "yes"),
        ("Yes. The correct answer is no.", "yes"),
        ('Yes.\nAnswer: "No" contradicts what is known.', "yes"),
        ('The answer "No" is incorrect. Yes.', "yes"),
        ('"No" is wrong: both are American. Therefore, yes.', "yes"),
        ('"Yes" is right: both are American.', None),
        ("No is the wrong answer.", None),
        ("The given answer is no.", None),
        # The response's own, after another beginning or in quotes.
        ("No. Let me think again. The answer is yes.", "yes"),
        ("No, wait. They differ. So it is made up. Yes.", "yes"),
        ('No, wait.\nFinal answer: "Yes". The answer "no" was given.', "yes"),
        ("No, wait.\n**Answer:** Yes, because they differ.", "yes"),
        ("No. They differ: $\\boxed{\\text{Yes}}$", "yes"),
        ('"Yes"', "yes"),
        ("The answer is 'no.'", "no"),
        ("I would say no, since it holds.", "no"),
        # A "no" that belongs to the word behind it, and both words at once.
        ("No evidence supports this.", None),
        ("No film by that name exists. Yes, it is made up.", "yes"),
        ("No information is known about it, so yes.", "yes"),
        ("No doubt, this is right.", None),
        ("So no one knows.", None),
        ("The reply is no exact match.", None),
        ("No it is right", "no"),
        ("No this answer is known to be right", "no"),
        ("No because both are American", "no"),
        ("Yes and no.", None),
        # Before its first word stand others, or the request's question.
        ("So yes, this answer is made up.", "yes"),
        ("Well, no. It is right.", "no"),
        ("Therefore, no, the answer is known.", "no"),
        ("Is this answer made up? Yes, because they differ.", "yes"),
        ("Is it false, or in contradiction to what is known? No, it is right.", "no"),
        ("<answer>Yes</answer>", "yes"),
        # It corrects itself, or says what would have been right.
        ("Yes. Actually, no.", "no"),
        ("No... actually yes, they differ.", "yes"),
        ("Yes. Actually, no such film exists.", "yes"),
        ("Yes. The answer should be no.", "yes"),
        ("Yes. The answer would be no.", "yes"),
        # Other ways to say it.
        ("My reply is no.", "no"),
        ("The correct response is Yes.", "yes"),
        ('I would reply with "No".', "no"),
        ("I have to say no.", "no"),
        ("I'll go with yes.", "yes"),
        ("The answer is a clear yes.", "yes"),
        ("The answer is, therefore, No.", "no"),
        ("It is a yes.", "yes"),
        ("That's a no.", "no"),
        ("Answer → Yes", "yes"),
        # The last sentence concludes, or says why.
        ("It is right, so no.", "no"),
        ("It contradicts what is known - yes.", "yes"),
        ("There is no evidence. Yes, it is made up.", "yes"),
        ("Question: Are both American?\nAnswer: no\n\nYes, it is made up.", "yes"),
        ("Let me check. Yes, both are American. The answer is right.", None),
        ("Are both American? Yes, they are.", None),
        ("It is right, no?", None),
    ],
)
def test_yes_or_no(response: str, word: str | None) -> None:
    assert read_yes_no(response) == word


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("\\frac12", "\\dfrac{1}{2}"),
        ("1/2", ".5"),
        ("-\\frac{1}{2}", "\\frac{-1}{2}"),
        ("x = 5", "5.0"),
        ("5\\text{ cm}^2", "5"),
        ("\\$18.90", "18.9"),
        ("10\\%", "10"),
        ("10{,}080", "10,080"),
        ("90^\\circ", "90"),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\frac\\pi2)"),
        ("x \\in [-2,7]", "[-2,7]"),
        ("11\\sqrt2", "11\\sqrt{2}"),
        ("2516_8", "2516_{8}"),
        ("\\text{Evelyn}", "evelyn"),
        ("\\text{(C)}", "C"),
        ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}"),
    ],
)
def test_answers_in_one_normal_form_are_the_same(one: str, other: str) -> None:
    assert same(one, other) and same(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", "2"), ("-1", "1"), ("12", "1,2"), ("\\frac{1}{2}", "\\frac{2}{1}"), ("x^2", "x_2"), ("x", "X"),
        ("1/0", "0"),
        # Missed, and said in the benchmark's file: equal in another form.
        ("x+1", "1+x"), ("\\frac{1}{\\sqrt{2}}", "\\frac{\\sqrt{2}}{2}"), ("1,2", "2,1"),
    ],
)  # fmt: skip
def test_others_are_not(one: str, other: str) -> None:
    assert not same(one, other)


def test_the_last_whole_box_counts() -> None:
    assert boxed("First \\boxed{1}, then \\boxed{\\frac{1}{2}}; cut at \\boxed{3") == "\\frac{1}{2}"
    assert boxed("\\fbox{\\{1,2\\}}") == "\\{1,2\\}"
    assert boxed("It is 5.") is None
    assert math_results({"target": "5"}, ["It is 5."]) == {"acc": 0.0, "read": 0.0}
    assert math_results({"target": "5"}, ["It is \\boxed{6}."]) == {"acc": 0.0, "read": 1.0}
