"""Build the data sets of the paper's experiments, and check them for leakage.

python -m ogpsa.data build NAME [KEY=VALUE ...]
python -m ogpsa.data build NAME --help
python -m ogpsa.data check FOLDER [--against FILE_OR_FOLDER ...] [--similarity 0.7] [--column NAME]

build writes <part>.jsonl and card.json into outputs/data/NAME by the data set's recipe, whose keys KEY=VALUE changes
and --help prints: source.path=FILE for a local copy, parts.train=100 for fewer rows, refusals.way=templates without an
endpoint, rejected.way=none without the untuned model's answers. The same command resumes a build that was stopped.
NAME is one of safe_rlhf, ultrafeedback, halueval, gsm8k, mmlu, safety_tuned_llamas, hh_rlhf, alpaca, and for the RL
stage safe_rlhf_prompts, nspo_general, ultrafeedback_short.

check compares the prompts of every file in FOLDER with each other's and with those named by --against, exactly after
normalisation and by similarity, and writes leakage.json into FOLDER. --column names the column of prompts in files
that have none of the usual ones.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from ogpsa.utils.command_line import Parser, run_command
from ogpsa.utils.errors import EXIT_DONE, UserError


def main(arguments: Sequence[str]) -> int:
    match arguments:
        case ["build", name, *_, "-h" | "--help"]:
            return run_command(["build", name], __doc__, {"build": _print_recipe})
    return run_command(arguments, __doc__, {"build": _build, "check": _check})


def _print_recipe(arguments: list[str]) -> int:
    from ogpsa.data.builders.settings import recipe

    print(recipe(arguments[0]), end="")
    return EXIT_DONE


def _build(arguments: list[str]) -> int:
    from ogpsa.data.builders.build import build, summary
    from ogpsa.data.builders.settings import SCHEMAS, load_settings

    if not arguments:
        raise UserError(f"build: name a data set: {', '.join(SCHEMAS)}")
    settings = load_settings(arguments[0], arguments[1:])
    print(*summary(build(settings), Path(settings.output)), sep="\n")
    return EXIT_DONE


def _check(arguments: list[str]) -> int:
    from ogpsa.data.leakage import REPORT, check_leakage

    parser = Parser(prog="python -m ogpsa.data check", add_help=False)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--against", nargs="+", type=Path, default=[])
    parser.add_argument("--similarity", type=float, default=0.7)
    parser.add_argument("--column")
    given = parser.parse_args(arguments)
    if not 0 < given.similarity <= 1:
        raise UserError(f"--similarity: found {given.similarity:g}; allowed: above 0, at most 1")
    found = check_leakage(given.folder, given.against, given.similarity, given.column)
    for pair in found["pairs"]:
        print(f"{pair['exact']:>6} equal, {pair['near']:>6} near: {pair['left']} and {pair['right']}")
    total = len(found["files"])
    print("" if found["pairs"] else "no prompt in two files; ", f"{total} files compared, ", sep="", end="")
    print(given.folder / REPORT if given.folder.is_dir() else given.folder.with_name(REPORT))
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
