"""Evaluate a checkpoint alone and print its scores, or run one of the evaluation layer's other commands.

python -m eval checkpoint=DIR [eval=testbed|small|quick|paper|broad|nspo] [eval.KEY=VALUE ...] [output=DIR]
               [until=generations|verdicts]
python -m eval COMMAND ...                                  python -m eval COMMAND --help says more

A checkpoint inside a run directory is evaluated as its run was, on the run's own rows; the directory itself stands for
the run's last checkpoint. All but eval=testbed read their rows from eval.data_dir. A model behind a server needs
no checkpoint: eval.backend.name=server eval.backend.base_url=URL eval.backend.model=NAME. A second call resumes where a
first one was killed; until= stops after that artefact, so that a node without a network can generate and another one
judge.

Commands:
  benchmarks   the benchmarks there are: rows, licence, gate, judge, source
  prefetch     fetch the benchmarks' rows, on a node with a network
  judge        verdicts on answers of your own, a CSV file
  agreement    a judge against human labels
  attacks      StrongReject's jailbroken prompts, made once by an attacker model
  compare      two runs or evaluations on the same items, paired
  winrate      how often one model's answers help more than the untuned one's, asked of a judge in both orders
  pareto       tables, fronts and a plot of finished runs
  report       one HTML page of finished runs and evaluations
  side-by-side one HTML page of two checkpoints' answers, with filters
  export       every item of all evaluations as Parquet, or as logs for Inspect
  diagnostics  plots of what the projection logged
  mirror       the W&B mirror, rebuilt from the files
  publish      a finished run's checkpoint on the model hub, with a card made from the run
"""

import sys
from collections.abc import Sequence
from importlib import import_module

from ogpsa.utils.errors import EXIT_DONE, EXIT_USER_ERROR, UserError, closest_match

COMMANDS = {
    "benchmarks": "eval.benchmarks.listing",
    "prefetch": "eval.prefetch",
    "judge": "eval.judging.judge_csv",
    "agreement": "eval.judging.agreement",
    "attacks": "eval.benchmarks.attacks",
    "compare": "eval.scores.compare",
    "winrate": "eval.scores.winrate",
    "pareto": "eval.pareto.command",
    "report": "eval.report.page",
    "side-by-side": "eval.report.side_by_side",
    "export": "eval.report.export",
    "diagnostics": "eval.report.projection_curves",
    "mirror": "eval.report.mirror",
    "publish": "eval.report.publish",
}


def main(arguments: Sequence[str]) -> int:
    """Run the command that the arguments name and return its exit code."""
    command = arguments[0] if arguments else "--help"
    if command not in COMMANDS and (command == "--help" or {"-h", "--help"} & set(arguments)):
        print(__doc__)
        return EXIT_DONE if arguments else EXIT_USER_ERROR
    from ogpsa.utils.command_line import run_program

    return run_program(lambda: _run(command, arguments))


def _run(command: str, arguments: Sequence[str]) -> int:
    if command in COMMANDS:
        code: int = import_module(COMMANDS[command]).main(arguments[1:])
        return code
    if "=" not in command:
        allowed = ", ".join(COMMANDS)
        hint = closest_match(command, COMMANDS)
        raise UserError(f"'{command}': neither KEY=VALUE nor a command; commands: {allowed}{hint}")
    from eval.checkpoint import run

    run(arguments)
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
