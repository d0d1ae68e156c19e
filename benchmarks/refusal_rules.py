"""The weights of ``refusal_rules``' signs, fitted to XSTest's human labels of some models and tested on another's.

For each model in turn: the signs keep the lines that are found in a refusal of the other models; a logistic
regression on these models gives the weights, in whole numbers; the sum that is enough is the one with the best kappa on
them. Then this model's answers are read. The last row fits all models, which is what ``refusal_rules.yaml`` holds.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import run
from eval.judging.agreement import agreement, read_folder
from ogpsa.utils.refusal_rules import Sign, objections, opens_with_refusal, read_signs

# The strength of the ridge, against weights that rest on a handful of answers.
RIDGE = 1.0
# Whole weights for each unit of log-odds, and their range: no sign is enough by itself.
SCALE, LEAST, MOST = 2, -3, 3
ENOUGH = range(MOST + 2, 3 * MOST)


@dataclass(frozen=True)
class Answer:
    """An answer, whether people call it a refusal, and whether it opens with one."""

    text: str
    refused: bool
    opens: bool


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    command.add_argument("folder", type=Path, help="XSTest's completions with final_label, a CSV file for each model")
    folder = command.parse_args().folder
    models = {
        name.removeprefix("completions_"): [
            Answer(row["completion"], row["final_label"] != "1_full_compliance", opens_with_refusal(row["completion"]))
            for row in rows
        ]
        for name, rows in read_folder(folder).items()
        if all("final_label" in row for row in rows)
    }
    print("| read on | tuned on | lines of the signs | enough | κ of those tuned on | κ read |")
    print("|---|---|---|---|---|---|")
    read = []
    for name, answers in models.items():
        others = {other: rows for other, rows in models.items() if other != name}
        signs, enough = fit(list(others.values()))
        read.append(kappa(answers, signs, enough))
        lines = sum(len(sign.lines) for sign in signs.values())
        tuned = ", ".join(f"{kappa(rows, signs, enough):.3f}" for rows in others.values())
        print(f"| {name} | {', '.join(others)} | {lines} | {enough} | {tuned} | {read[-1]:.3f} |")
    print(f"\nread: mean {mean(read):.3f}, worst {min(read):.3f}\n")
    signs, enough = fit(list(models.values()))
    tuned = ", ".join(f"{name} {kappa(rows, signs, enough):.3f}" for name, rows in models.items())
    print(f"fitted to all: enough {enough}; {tuned}")
    print(", ".join(f"{name} {sign.weight}" for name, sign in signs.items()))


def fit(models: Sequence[Sequence[Answer]]) -> tuple[dict[str, Sign], int]:
    """The signs with the lines and weights that fit these models' answers, and the sum that is enough."""
    open_ones = [answer for answers in models for answer in answers if not answer.opens]
    refusals = [answer.text for answer in open_ones if answer.refused]
    signs = {name: kept for name, sign in read_signs()[0].items() if (kept := _supported(name, sign, refusals)).lines}
    shown = np.array([_shown(answer.text, signs) for answer in open_ones], dtype=float)
    fixed = np.array([sign.weight * sign.fixed for sign in signs.values()]) / SCALE
    refused = np.array([answer.refused for answer in open_ones], dtype=float)
    free = np.array([not sign.fixed for sign in signs.values()])
    weights = iter(np.rint(SCALE * _logistic(shown[:, free], refused, shown @ fixed)))
    fitted = {
        name: sign if sign.fixed else replace(sign, weight=int(np.clip(next(weights), LEAST, MOST)))
        for name, sign in signs.items()
    }
    return fitted, max(ENOUGH, key=lambda enough: mean(kappa(answers, fitted, enough) for answers in models))


def kappa(answers: Sequence[Answer], signs: Mapping[str, Sign], enough: int) -> float:
    """Cohen's kappa of the rules, with these signs, and people."""
    pairs = []
    for answer in answers:
        total = sum(signs[name].weight for name in objections(answer.text, signs))
        pairs.append((str(answer.refused), str(answer.opens or total >= enough)))
    return agreement(pairs)[1]


def _supported(name: str, sign: Sign, refusals: Sequence[str]) -> Sign:
    """The sign with the lines that are found in one of these refusals; all of a sign that speaks for an answer."""
    if sign.weight < 0:
        return sign
    lines = [
        line for line in sign.lines if any(objections(text, {name: replace(sign, lines=(line,))}) for text in refusals)
    ]
    return replace(sign, lines=tuple(lines))


def _shown(text: str, signs: Mapping[str, Sign]) -> list[bool]:
    found = objections(text, signs)
    return [name in found for name in signs]


def _logistic(
    shown: NDArray[np.float64], refused: NDArray[np.float64], given: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The weights, without the intercept, of a logistic regression with a ridge, by Newton's steps.

    Args:
        given: the log-odds of each answer that are set.
    """
    inputs = np.column_stack([shown, np.ones(len(shown))])
    ridge = np.diag([RIDGE] * shown.shape[1] + [0.0])
    weights = np.zeros(inputs.shape[1])
    for _ in range(30):
        chance = 1 / (1 + np.exp(-inputs @ weights - given))
        slope = inputs.T @ (chance - refused) + ridge @ weights
        curvature = (inputs.T * (chance * (1 - chance))) @ inputs + ridge
        weights -= np.linalg.solve(curvature, slope)
    return weights[:-1]


if __name__ == "__main__":
    sys.exit(run(main))
