"""Evaluating a checkpoint alone: ``python -m eval checkpoint=DIR …``, whose ``--help`` says how."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from ogpsa.config import Evaluation, Precision, describe
from ogpsa.runs.directory import CONFIG_FILE, LOCK_FILE, checkpoints, read_stored_config
from ogpsa.utils.command_line import Keys, one_of, path, read_pairs
from ogpsa.utils.errors import UserError
from ogpsa.utils.files import check_writable, exclusive, remove_unfinished

# What a run's evaluation takes from its model.
PINS = "model.template_kwargs"
# Keys whose own keys are names; Hydra requires a plus in front of a new one.
OPEN_MAPPINGS = (
    "eval.judges.",
    "eval.limits.",
    "eval.composites.",
    "eval.judge.members.",
    "eval.judge.prompt_file.",
    "eval.judge.weights.",
    f"{PINS}.",
)


def run(arguments: Sequence[str]) -> None:
    """Parse ``KEY=VALUE`` arguments, evaluate, print.

    Raises:
        UserError: an unknown key, a bad value, or anything that ``eval.evaluation.evaluate`` refuses.
    """
    from eval.evaluation import Until, evaluate

    own_keys: Keys = {"checkpoint": path, "output": path, "until": one_of(*get_args(Until))}
    given = read_pairs(arguments, {**own_keys, "eval": str, "eval.*": str, f"{PINS}*": str})
    given = {key.replace("eval.template_kwargs", PINS): value for key, value in given.items()}
    overrides = [
        f"++{key}={value}" if key.startswith(OPEN_MAPPINGS) else f"{key}={value}"
        for key, value in given.items()
        if key not in own_keys
    ]
    until: Until = given.get("until", "metrics")
    checkpoint = _last_checkpoint(given["checkpoint"]) if "checkpoint" in given else None
    settings, own = _settings(checkpoint and checkpoint.parent, overrides)
    # A run's own rows, whoever holds the weights.
    rows = (checkpoint or Path()).parent / "data" / "evaluation"
    if settings.backend.name == "server":
        # The server holds its weights; the artefacts hold its name.
        checkpoint = Path(str(settings.backend.model).replace("/", "_"))
    if checkpoint is None:
        raise UserError("checkpoint: no value given; name the folder of a checkpoint, checkpoint=outputs/…/02-dpo")
    if own is None and settings.data_dir is None:
        raise UserError(f"eval.data_dir: {checkpoint} lies in no run directory; name a folder with <benchmark>.jsonl")
    output: Path = given.get("output") or _output(checkpoint, settings, own)

    check_writable(output, "output")

    from ogpsa.utils.libraries import quiet_libraries
    from ogpsa.utils.temporary import own_temporary_folder

    own_temporary_folder()
    quiet_libraries()
    from ogpsa.runs.score_table import score_table

    with ExitStack() as held:
        directory = output.parent.parent
        if own is not None and (directory / CONFIG_FILE).is_file():
            busy = (
                f"the run in {directory} is at work, and evaluates there itself; wait for it, or name another output="
            )
            held.enter_context(exclusive(directory / LOCK_FILE, busy))
        held.enter_context(exclusive(output / ".lock", f"another process evaluates into {output}"))
        # Only in these two: the folder is the user's.
        for kind in ("generations", "verdicts"):
            remove_unfinished(output / kind)
        scores = evaluate(checkpoint, rows, output, settings, precision=_precision(rows.parent.parent), until=until)
    if until == "metrics":
        print(score_table({checkpoint.name: scores}))
    print(f"\n{output}")
    # A composite only repeats what its parts say.
    entries = [entry for entry in scores.get("benchmarks", {}).values() if not entry["parts"]]
    if errors := [entry["error"] for entry in entries if entry["error"]]:
        raise UserError(*dict.fromkeys(errors))


def _last_checkpoint(folder: Path) -> Path:
    """Return the last checkpoint of the run in ``folder``, or ``folder`` itself if it is not a run directory.

    Raises:
        UserError: the run has none yet.
    """
    if not (folder / CONFIG_FILE).is_file() or (folder / "config.json").is_file():
        return folder
    found = checkpoints(folder)
    if not found:
        raise UserError(f"checkpoint: {folder} is a run's directory without a finished checkpoint; let the run end")
    return found[-1]


def _settings(directory: Path | None, overrides: list[str]) -> tuple[Evaluation, Evaluation | None]:
    """The settings to use and, if ``directory`` is a run's, those that the run used."""
    own = None
    if directory is not None and (stored := directory / CONFIG_FILE).is_file():
        values = read_stored_config(stored)
        if values is None:
            raise UserError(f"{stored}: not readable as a run's configuration")
        # Only this section of the run: its method may lie outside the package.
        try:
            own = Evaluation.model_validate(values.get("eval"))
        except ValidationError as error:
            raise UserError(*(f"{stored}: {line}" for line in describe(error, values, ("eval",)))) from None
    if own and not overrides:
        return own, own
    from ogpsa.app.compose import compose_config

    composed = compose_config(overrides).eval
    keys = [override.lstrip("+").partition("=")[0] for override in overrides]
    if own and "eval" not in keys:
        # The run's own settings, overridden by what was given.
        tree: dict[str, Any] = own.model_dump()
        given = composed.model_dump()
        for key in keys:
            *path, last = key.split(".")[1:]
            target, source = tree, given
            for name in path:
                target, source = target[name], source[name]
            target.pop(last, None)
            # A name whose value was null is no longer in an open mapping.
            target |= {last: source[last]} if last in source else {}
        return Evaluation.model_validate(tree), own
    return composed, own


def _precision(directory: Path) -> Precision:
    """The precision that the run in ``directory`` trained in; without a run bf16, as models are published."""
    file = directory / CONFIG_FILE
    model = (read_stored_config(file) or {}).get("model", {}) if file.is_file() else {}
    return "fp32" if model.get("precision") == "fp32" else "bf16"


def _output(checkpoint: Path, settings: Evaluation, own: Evaluation | None) -> Path:
    """The run's own folder for its own settings, elsewhere one named after the model and what it is asked.

    The judge, the endpoint's access and the batch size are left out: the same command with others resumes from what is
    there.
    """
    if own and settings.key() == own.key():
        return checkpoint.parent / "eval" / checkpoint.name
    asked = settings.model_dump(
        include={"name", "limit", "limits", "sample_seed", "max_new_tokens", "data_dir", "template_kwargs"}
    )
    backend = settings.backend.model_dump(include={"name", "base_url", "model"})
    text = json.dumps([str(checkpoint.resolve()), sorted(settings.benchmarks), asked, backend])
    return (
        Path("outputs") / "eval" / f"{checkpoint.name}-{settings.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    )
