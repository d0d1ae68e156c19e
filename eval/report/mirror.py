"""The W&B mirror of finished runs and evaluations, from their own files: ``python -m eval mirror DIR``.

Every finished run below DIR gets the W&B run that ``tracker=wandb`` gives it, with the same name and id: its
configuration, its training by step, its table of benchmarks and its headline scores. Another W&B run holds the Pareto
table and the front as a picture. An evaluation outside run directories gets a W&B run of its own, named after its
folder, with its table of benchmarks and its averages. Without WANDB_API_KEY all are kept offline in ``DIR/.mirror``,
which is rebuilt each time, for ``wandb sync``.
"""

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from eval.pareto.collect import collect
from eval.pareto.collection import Collection
from eval.scores.artefacts import evaluation_folders, read_artefacts
from eval.scores.finished import run_directories
from ogpsa.app.compose import compose_config
from ogpsa.config import Tracker, identity_of
from ogpsa.runs.directory import CONFIG_FILE, HISTORY_FILE, PROVENANCE_FILE, read_metrics, read_stored_config
from ogpsa.runs.tracking import WandbRun, check_tracker, held_out_losses, run_id, training_values
from ogpsa.utils.command_line import Parser
from ogpsa.utils.errors import EXIT_DONE, UserError
from ogpsa.utils.files import check_writable, read_json, read_jsonl
from ogpsa.utils.progress import track

FOLDER = ".mirror"


def mirror(directory: Path, mode: str = "auto") -> tuple[list[str], list[str]]:
    """Rebuild the mirror of everything below ``directory``.

    Returns:
        The W&B ids of the runs, their front and the evaluations outside run directories; and why runs are left out.

    Raises:
        UserError: no finished run and no evaluation, a file that is damaged, a place that cannot be written, or
            ``mode`` online without a key; nothing is mirrored then.
    """
    runs = sorted(run_directories(directory))
    outside = [folder for folder in evaluation_folders(directory) if not {folder, *folder.parents} & set(runs)]
    evaluations = [read_artefacts(folder) for folder in outside]
    collection = None
    try:
        collection = collect([directory])
        left_out = [str(run) for run in collection.left_out]
        unused = {Path(run.root, run.directory) for run in collection.left_out}
        runs = [run for run in runs if run not in unused]
    except UserError as error:
        if not evaluations:
            raise
        left_out, runs = list(error.problems) if runs else [], []
    finished = [(run, metrics) for run in runs if (metrics := read_metrics(run)) is not None]
    # Which tracker a run had while it trained does not matter; its project and group do.
    sources = [
        (run, metrics, _stored(run), stored_tracker(run, name="wandb", mode=mode), _provenance(run), _history(run))
        for run, metrics in finished
    ]
    folder = directory / FOLDER
    check_writable(folder, "DIR")
    # What belongs to no single run goes where the first run goes.
    shared = sources[0][3] if sources else compose_config(["tracker=wandb", f"tracker.mode={mode}"]).tracker
    for settings in [shared, *(source[3] for source in sources)]:
        check_tracker(settings)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()

    from ogpsa.utils.libraries import quiet_libraries

    quiet_libraries()
    ids = []
    for _, source in zip(track(len(sources), "mirroring"), sources, strict=True):
        run, metrics, stored, settings, facts, history = source
        with WandbRun.of_run(settings, identity_of(stored), run, facts, folder) as copy:
            for step, row in enumerate(history):
                copy.log(row, step)
            copy.summarize(metrics)
            ids.append(copy.id)
    name = directory.resolve().name
    if collection:
        ids.append(mirror_front(collection, shared, directory, folder))
    for one in evaluations:
        label = name if one.folder == directory else str(one.folder.relative_to(directory))
        with WandbRun(shared, label, run_id("eval", one.folder), folder, {"evaluation": label}) as copy:
            copy.log_scores(one.scores, {label: one.scores})
            ids.append(copy.id)
    return ids, left_out


def mirror_front(collection: Collection, tracker: Tracker, directory: Path, folder: Path) -> str:
    """The Pareto table and the fronts as pictures to a W&B run of their own, and its id.

    Args:
        directory: what the runs lie in; it names the W&B run.
        folder: where the pictures are written and offline runs are kept.
    """
    from eval.pareto.plot import SUFFIXES, draw, save
    from eval.pareto.tables import records

    pictures: dict[str, Path] = {}
    for against, suffix in SUFFIXES.items():
        if (figure := draw(collection, against)) is not None:
            pictures[f"front{suffix}"] = folder / f"front{suffix}.png"
            save(figure, pictures[f"front{suffix}"])
    name = directory.resolve().name
    with WandbRun(tracker, f"pareto-{name}", run_id("pareto", directory), folder, {"directory": name}) as copy:
        copy.log({"pareto": records(collection), **pictures})
        return copy.id


def _stored(run: Path) -> dict[str, Any]:
    # As plain YAML, not as today's schema: a run stays usable when the schema has gained a key since.
    stored = read_stored_config(run / CONFIG_FILE)
    if stored is None:
        raise UserError(f"{run / CONFIG_FILE}: not readable as a configuration")
    return stored


def stored_tracker(run: Path, **changes: str) -> Tracker:
    """The tracker's settings that a run was given, with ``changes``.

    Raises:
        UserError: there are none, or they are of another kind.
    """
    stored = _stored(run).get("tracker")
    try:
        return Tracker.model_validate({**(stored or {}), **changes})
    except (ValidationError, TypeError):
        raise UserError(f"{run / CONFIG_FILE}: tracker: found {stored!r}; expected the settings of a tracker") from None


def _provenance(run: Path) -> dict[str, Any]:
    path = run / PROVENANCE_FILE
    facts: dict[str, Any] = read_json(path) if path.exists() else {}
    return facts


def _history(run: Path) -> list[dict[str, Any]]:
    """The training's numbers, stage by stage, as the run logs them to W&B itself."""
    found = []
    for file in sorted(run.glob(f"[0-9][0-9]-*/{HISTORY_FILE}")):
        stage = file.parent.name.partition("-")[2]
        for row in read_jsonl(file):
            held_out = {f"held_out/{name}": loss for name, loss in held_out_losses(row).items()}
            # The last row tells of the whole stage.
            if numbers := row if "loss" in row else held_out:
                found.append(training_values(stage, row.pop("step"), numbers))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Rebuild the mirror, print the W&B ids, and return the exit code."""
    parser = Parser(
        prog="python -m eval mirror",
        description="Rebuild the W&B mirror of finished runs, and of evaluations outside them, from their own files.",
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="searched for run directories and evaluations")
    parser.add_argument(
        "--mode", choices=["auto", "online", "offline"], default="auto", help="auto: online where there is a key"
    )
    options = parser.parse_args(arguments)
    ids, left_out = mirror(options.directory, options.mode)
    for run in left_out:
        print(f"left out: {run}", file=sys.stderr)
    print(f"{len(ids)} W&B runs: {', '.join(ids)}")
    kept = sorted((options.directory / FOLDER / "wandb").glob("offline-run-*"))
    if kept:
        place = shlex.quote(str(options.directory / FOLDER / "wandb"))
        print(f'kept offline: for run in {place}/offline-run-*; do wandb sync "$run"; done')
    return EXIT_DONE
