"""The published wording of the judges' prompts, fetched from where its authors keep it."""

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.request import urlopen

from eval.benchmarks.sources import FETCH_SECONDS
from eval.judging.judge import PromptJudge, judge_files, load_judge
from ogpsa.utils.files import write_atomically
from ogpsa.utils.network import UNREACHABLE


def published_prompts() -> dict[str, str]:
    """The source of each of our judges' published prompts, by the judge's name."""
    judges = {name: load_judge(name) for name in judge_files()}
    return {
        name: judge.published for name, judge in judges.items() if isinstance(judge, PromptJudge) and judge.published
    }


def fetch_prompts(folder: Path, prompts: Mapping[str, str]) -> list[str]:
    """Write the published prompts that are not in ``folder`` yet and return what is missing, by line."""
    missing = []
    for judge, address in prompts.items():
        file = folder / f"{judge}.txt"
        if not file.is_file():
            try:
                with urlopen(address, timeout=FETCH_SECONDS) as answer:
                    text = answer.read().decode()
                write_atomically(file, longest_text(text) if address.endswith(".py") else text)
            except (*UNREACHABLE, SyntaxError) as error:
                missing.append(f"{judge}: {address} cannot be fetched ({error})")
                continue
        print(f"{judge}: eval.judge.prompt_file.{judge}={file}", flush=True)
    return missing


def longest_text(code: str) -> str:
    """The longest string of a Python program, nothing of which is run; an f-string's fields are named in braces.

    Raises:
        SyntaxError: ``code`` is not Python.
    """
    return max((_text(node) for node in ast.walk(ast.parse(code))), key=len, default="")


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.FormattedValue):
        # completion, row.completion and row["completion"] are all {completion}.
        name: str = re.findall(r"\w+", ast.unparse(node.value))[-1]
        return f"{{{name}}}"
    return "".join(_text(part) for part in node.values) if isinstance(node, ast.JoinedStr) else ""
