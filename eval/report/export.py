"""Every item of every evaluation below a directory: as one Parquet table, or as logs that Inspect's viewer opens.

``python -m eval export DIR`` writes ``results.parquet``, one row per item with the request, the answer and the verdict.
With ``--inspect FOLDER`` it writes one log per benchmark and checkpoint as well, in the JSON form of Inspect
(inspect.aisi.org.uk, log version 2), for ``inspect view --log-dir FOLDER`` and ``inspect_ai.analysis.samples_df``.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eval.scores.artefacts import Artefacts, evaluation_folders, read_artefacts
from eval.scores.finished import run_directories
from eval.scores.flips import response_text
from ogpsa import __version__
from ogpsa.runs.directory import CONFIG_FILE, SCORES_FILE, read_stored_config
from ogpsa.utils.command_line import Parser
from ogpsa.utils.errors import EXIT_DONE, UserError, closest_folder
from ogpsa.utils.files import check_writable, write_atomically, write_json

TABLE = "results.parquet"
LOG_VERSION = 2
Item = dict[str, Any]


@dataclass(frozen=True)
class Evaluated:
    """One evaluation below the directory.

    Attributes:
        name: its folder, relative to the directory.
        run: the run that it belongs to, likewise; None for one on its own.
        config: the run's configuration; empty likewise.
    """

    name: str
    run: str | None
    config: Mapping[str, Any]
    artefacts: Artefacts


def find_evaluations(directory: Path) -> list[Evaluated]:
    """The evaluations below ``directory``, in the order of their names.

    Raises:
        UserError: there is none, or one is damaged.
    """
    if not directory.is_dir():
        raise UserError(f"DIR: {directory}: no such directory{closest_folder(directory)}")
    runs = {run: read_stored_config(run / CONFIG_FILE) or {} for run in run_directories(directory)}
    found = []
    for folder in sorted(evaluation_folders(directory)):
        run = next((run for run in runs if run == folder or run in folder.parents), None)
        found.append(
            Evaluated(
                str(folder.relative_to(directory)),
                None if run is None else str(run.relative_to(directory)),
                {} if run is None else runs[run],
                read_artefacts(folder),
            )
        )
    if not found:
        raise UserError(f"DIR: {directory}: holds no evaluation ({SCORES_FILE})")
    return found


def items(one: Evaluated) -> Iterator[Item]:
    """The rows of the table; a benchmark that was not judged has none."""
    config, artefacts = one.config, one.artefacts
    for name, entry in artefacts.benchmarks.items():
        answers = {row["id"]: row for row in artefacts.generations(name)}
        for verdict in artefacts.verdicts(name):
            row = answers.get(verdict["id"], {})
            yield {
                "run": one.run,
                "checkpoint": one.artefacts.folder.name,
                "method": _name(config.get("method")),
                "model": _name(config.get("model")),
                "seed": config.get("seed"),
                "benchmark": name,
                "group": artefacts.group(name),
                "metric": entry["metric"],
                "judge": verdict.get("judge"),
                "id": verdict["id"],
                "category": row.get("category"),
                "verdict": verdict.get("verdict"),
                "value": verdict["value"],
                "parse_status": verdict.get("parse_status"),
                "refused": verdict.get("refused"),
                "no_answer": verdict.get("no_answer"),
                "finish_reason": verdict.get("finish_reason"),
                "faults": ", ".join(verdict.get("faults") or []),
                "detail": json.dumps(verdict.get("detail") or {}, ensure_ascii=False),
                "prompt": str(row.get("prompt", "")),
                "target": str(row.get("target", "")),
                "response": response_text(row),
                "model_fingerprint": verdict.get("model_fingerprint"),
            }


def _name(section: Any) -> str | None:
    return section.get("name") if isinstance(section, Mapping) else None


def write_table(evaluations: Sequence[Evaluated], file: Path) -> None:
    """Write all items as Parquet, an evaluation at a time.

    Raises:
        UserError: there is none.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"seed": pa.int64(), "value": pa.float64(), "refused": pa.bool_()}
    first = next((item for one in evaluations for item in items(one)), None)
    if first is None:
        raise UserError(f"{file.name}: none of the {len(evaluations)} evaluations has verdicts")
    schema = pa.schema([(column, kinds.get(column, pa.string())) for column in first])
    buffer = pa.BufferOutputStream()
    with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
        for one in evaluations:
            writer.write_table(pa.Table.from_pylist(list(items(one)), schema))
    write_atomically(file, buffer.getvalue().to_pybytes())


def write_inspect(evaluations: Sequence[Evaluated], folder: Path) -> int:
    """Write one log per evaluation and benchmark into ``folder``; returns their number."""
    number = 0
    for one in evaluations:
        by_benchmark: dict[str, list[Item]] = {}
        for item in items(one):
            by_benchmark.setdefault(item["benchmark"], []).append(item)
        for name, members in by_benchmark.items():
            log = inspect_log(one, name, members)
            head = log["eval"]
            for earlier in folder.glob(f"*_{head['eval_id']}.json"):
                earlier.unlink()
            # Inspect looks for logs by such names alone.
            write_json(folder / f"{head['created'].replace(':', '-')}_{name}_{head['eval_id']}.json", log)
            number += 1
    return number


def inspect_log(one: Evaluated, benchmark: str, members: Sequence[Item]) -> dict[str, Any]:
    """One benchmark of one checkpoint as Inspect's log.

    A verdict that is missing is a sample without a score, which no mean counts.
    """
    entry, instrument = one.artefacts.benchmarks[benchmark], one.artefacts.instrument(benchmark)
    scorer = instrument.judge or "judge"
    model = f"ogpsa/{one.name}"
    identity = hashlib.sha256(json.dumps([one.name, benchmark]).encode()).hexdigest()[:22]
    made = datetime.fromtimestamp((one.artefacts.folder / SCORES_FILE).stat().st_mtime, UTC).isoformat(
        timespec="seconds"
    )
    metrics = {
        name: {"name": name, "value": entry[key]}
        for name, key in (("mean", "value"), ("stderr", "stderr"))
        if entry[key] is not None
    }
    scored = sum(item["value"] is not None for item in members)
    return {
        "version": LOG_VERSION,
        "status": "success",
        "eval": {
            "eval_id": identity,
            "run_id": identity,
            "task_id": identity,
            "created": made,
            "task": benchmark,
            "dataset": {"name": benchmark, "samples": len(members), "sample_ids": [item["id"] for item in members]},
            "model": model,
            "config": {"limit": None, "epochs": 1},
            "packages": {"ogpsa": __version__},
            "metadata": {"run": one.run, "group": members[0]["group"], "metric": entry["metric"]},
        },
        # Its streaming reader wants both.
        "plan": {"name": "plan", "steps": [], "config": {}},
        "stats": {"started_at": made, "completed_at": made, "model_usage": {}},
        "results": {
            "total_samples": len(members),
            "completed_samples": len(members),
            "scores": [
                {"name": scorer, "scorer": scorer, "scored_samples": scored, "unscored_samples": len(members) - scored,
                 "metrics": metrics}
            ],
        },
        "samples": [_sample(item, model, scorer) for item in members],
    }  # fmt: skip


def _sample(item: Item, model: str, scorer: str) -> dict[str, Any]:
    told = ("category", "refused", "no_answer", "finish_reason", "parse_status")
    answer = {"role": "assistant", "content": item["response"], "source": "generate", "model": model}
    stop = "max_tokens" if item["finish_reason"] == "length" else "stop"
    score = {"value": item["value"], "answer": item["verdict"], "explanation": item["parse_status"]}
    return {
        "id": item["id"],
        "epoch": 1,
        "input": item["prompt"],
        "target": item["target"],
        "messages": [{"role": "user", "content": item["prompt"], "source": "input"}, answer],
        "output": {
            "model": model,
            "choices": [{"message": answer, "stop_reason": stop}],
            "completion": item["response"],
        },
        "scores": {} if item["value"] is None else {scorer: score},
        "metadata": {key: item[key] for key in told if item[key] is not None},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table, and the logs where asked; print their paths and return the exit code."""
    parser = Parser(
        prog="python -m eval export",
        description="Every item of every evaluation in a directory, as a Parquet table and as logs for Inspect.",
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="searched for run directories and evaluations")
    parser.add_argument("--out", metavar="FILE", type=Path, help=f"default: DIR/{TABLE}")
    parser.add_argument(
        "--inspect", metavar="FOLDER", type=Path, help="write Inspect's logs there: inspect view --log-dir FOLDER"
    )
    options = parser.parse_args(arguments)
    out = options.out or options.directory / TABLE
    evaluations = find_evaluations(options.directory)
    check_writable(out.parent, "--out")
    if options.inspect:
        check_writable(options.inspect, "--inspect")
    write_table(evaluations, out)
    print(out)
    if options.inspect:
        print(f"{options.inspect}: {write_inspect(evaluations, options.inspect)} logs")
    return EXIT_DONE
