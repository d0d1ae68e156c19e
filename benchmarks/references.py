"""Reference gradients of few rows against those of many, and of a tuned model against those of the untuned one.

The testbed's base, or a model of its own with the settings of a run:
``python -m benchmarks.references --checkpoint DIR model=smollm2_135m data=small stage=sft``.
"""

import math
import sys
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.common import Row, parser, positive, run, write
from experiments.bases import reference_gradients
from ogpsa.app.compose import compose_config
from ogpsa.config import Config
from ogpsa.projection import combine, dots
from ogpsa.subspace.settings import MAX_RANK
from ogpsa.testbed.cache import ensure_base
from ogpsa.utils.errors import UserError
from ogpsa.utils.libraries import quiet_libraries

# Rows of a chunk, and what numbers of rows are compared.
CHUNK = 10
FEW = (10, 20, 50)
# Numbers of rows for which the cosine with the mean over all possible rows is estimated.
ESTIMATED = (10, 50, 200)
NOTES = (
    "N = …: cosine of the mean gradient of N rows with that of the set's other rows, mean over the disjoint parts of N "
    "rows; halves: of one half with the other.",
    "of …: the cosine that N rows would have with the mean over all rows there could be, from the cosine c of "
    "halves of n rows each: √(N s / (1 + N s)) with s = c / (n (1 - c)) (Spearman and Brown's formula).",
    "turned: cosine of the mean gradient of all rows at the later checkpoint with that at the first.",
)


def main() -> None:
    command = parser(__doc__.splitlines()[0])
    command.add_argument("--checkpoint", type=Path, help="folder of a model, in place of the testbed's base")
    command.add_argument("--later", type=Path, action="append", default=[], help="folder of the same model, tuned")
    command.add_argument("--rows", type=positive, default=150, help="rows of each reference set")
    command.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="of train.py, with a single stage")
    options = command.parse_args()
    rows = 40 if options.smoke else options.rows
    quiet_libraries()
    config = _config(options.settings)
    sets = len(config.method.set_uses(config.stages[0].name, 1))
    chunks = min(rows // CHUNK, MAX_RANK // sets)
    if chunks < 2:
        raise UserError(f"--rows: {rows} found; allowed: {2 * CHUNK} or more")
    config = _config([*options.settings, f"method.rank={chunks * sets}", f"method.samples={chunks * CHUNK}"])
    checkpoint = options.checkpoint or ensure_base(config)
    names, gradients = reference_gradients(config, checkpoint)
    measured = {}
    for index, name in enumerate(dict.fromkeys(names)):
        mine = [part[index * chunks : (index + 1) * chunks] for part in gradients]
        measured[name] = agreement(torch.stack([dots(part, part) for part in mine]).sum(dim=0))
    means = _means(gradients, sets)
    del gradients, mine
    turned = {}
    for later in options.later:
        moved = _means(reference_gradients(config, later)[1], sets)
        turned[str(later)] = [_cosine(first, second) for first, second in zip(means, moved, strict=True)]
    tables: dict[str, list[Row]] = {
        f"{config.model.name}, {config.stages[0].name}": [{"set": name, **row} for name, row in measured.items()]
    }
    if turned:
        tables["Turned"] = [
            {"set": name, **{later: values[index] for later, values in turned.items()}}
            for index, name in enumerate(measured)
        ]
    settings = {"rows": chunks * CHUNK, "chunk": CHUNK, "run": options.settings}
    write("references", options.out, torch.device(options.device), settings, tables, NOTES)


def _config(settings: list[str]) -> Config:
    return compose_config(["stage=sft", "method=ogpsa", "method.basis_dtype=bf16", *settings])


def agreement(gram: Tensor) -> Row:
    """A row of the table, from the Gram matrix [m, m] of the gradients of one set's chunks."""
    count = len(gram)

    def cosine(part: slice) -> float:
        inside = torch.zeros(count, dtype=gram.dtype)
        inside[part] = 1
        outside = 1 - inside
        return float(inside @ gram @ outside / ((inside @ gram @ inside) * (outside @ gram @ outside)).sqrt())

    row: Row = {}
    for few in FEW:
        size = few // CHUNK
        parts = [slice(start, start + size) for start in range(0, count - size + 1, size)] if size < count else []
        row[f"N = {few}"] = sum(map(cosine, parts)) / len(parts) if parts else None
    half = cosine(slice(0, count // 2))
    row["halves"] = half
    signal = half / (count * CHUNK / 2 * (1 - half))
    return row | {f"of {few}": math.sqrt(few * signal / (1 + few * signal)) if half > 0 else None for few in ESTIMATED}


def _means(gradients: list[Tensor], sets: int) -> list[list[Tensor]]:
    """For each set its mean gradient, by parameter [1, n]."""
    found: list[list[Tensor]] = []
    for index in range(sets):
        size = len(gradients[0]) // sets
        weights = torch.zeros(len(gradients[0]), 1, dtype=torch.float64)
        weights[index * size : (index + 1) * size] = 1 / size
        found.append([combine(weights, part) for part in gradients])
    return found


def _cosine(first: list[Tensor], second: list[Tensor]) -> float:
    def inner(left: list[Tensor], right: list[Tensor]) -> float:
        return sum(float(dots(a, b)) for a, b in zip(left, right, strict=True))

    return inner(first, second) / math.sqrt(inner(first, first) * inner(second, second))


if __name__ == "__main__":
    sys.exit(run(main))
