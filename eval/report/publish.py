"""A finished run's checkpoint on the model hub, with a card made from the run.

Nothing is published by itself. What goes is what the checkpoint's ``COMPLETE.json`` names, so no optimizer state and no
rows; the repository is private unless ``--public`` says otherwise, and the token comes from the environment alone.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from eval.scores.finished import FinishedRun, read_finished
from ogpsa.runs.directory import checkpoints
from ogpsa.runs.score_table import score_table
from ogpsa.utils.command_line import Parser
from ogpsa.utils.errors import EXIT_DONE, UserError, closest_match, first_line
from ogpsa.utils.files import COMPLETE_FILE, find_damage, is_complete, read_json

CARD = "README.md"
# Sections of the configuration that say how the weights were made; paths of rows are nobody else's business.
SHOWN = ("seed", "stage", "method", "distributed")
LIMITS = """\
The scores are those of this run's benchmarks, rows and judges, and hold for them alone. A model tuned to refuse
also refuses some harmless requests: over-refusal says how many. Look at the licences of the untuned model and of the
rows before you use or share it."""
CITATION = """The method: *Safety Alignment as Continual Learning: Mitigating the Alignment Tax via Orthogonal Gradient
Projection*, arXiv 2602.07892."""


def model_card(run: FinishedRun, checkpoint: Path) -> str:
    """Markdown with the front matter that the hub reads: base model, settings, rows, scores, limits."""
    config = run.config
    path, names = config["model"]["path"], (config["stage"]["name"], config["method"]["name"])
    facts: dict[str, Any] = {"library_name": "transformers", "tags": ["ogpsa", "safety-alignment", *names]}
    # A local folder says nothing to others.
    if path and not Path(path).expanduser().exists():
        facts["base_model"] = path
    settings = {name: config[name] for name in SHOWN if name in config}
    data = (read_json(run.directory / "provenance.json") if run.sessions else {}).get("data", {})
    rows = [f"| `{name}` | {part['rows']} | `{part['sha256'][:16]}` |" for name, part in sorted(data.items())]
    scores = score_table({"untuned": run.metrics["base"], **run.metrics["stages"]})
    parts = [
        f"# {checkpoint.name} of {config['model']['name']}",
        f"`{config['model']['name']}` after `stage={names[0]} method={names[1]} data={config['data']['name']}`, seed "
        f"{config['seed']}, by the suite for OGPSA at revision {run.revision}.",
        "## Scores", scores,
        "## Settings", f"```yaml\n{yaml.safe_dump(settings, sort_keys=False)}```",
        "## Rows", "\n".join(["| part | rows | SHA-256 |", "|---|---:|---|", *rows]),
        "## Limits", LIMITS,
        "## Citation", CITATION,
    ]  # fmt: skip
    return f"---\n{yaml.safe_dump(facts, sort_keys=False)}---\n\n" + "\n\n".join(parts) + "\n"


def publish(run: FinishedRun, checkpoint: Path, repo: str, public: bool) -> str:
    """Upload the checkpoint's files and its card; returns the repository's address.

    Raises:
        UserError: the checkpoint is damaged, there is no token, or the hub refuses or cannot be reached.
    """
    damage = find_damage(checkpoint, contents=True) if is_complete(checkpoint) else "is not complete"
    if damage is not None:
        raise UserError(f"{checkpoint}: {damage}")
    import httpx2
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise UserError("HF_TOKEN: not set, and no login is stored; the hub needs one that may write")
    hub, files = HfApi(), [*read_json(checkpoint / COMPLETE_FILE)["files"], COMPLETE_FILE]
    try:
        address = str(hub.create_repo(repo, private=not public, exist_ok=True))
        # One that was there keeps what it is.
        if not public and not hub.repo_info(repo).private:
            raise UserError(f"--repo: {repo}: is public; add --public, or choose another")
        hub.upload_folder(
            repo_id=repo,
            folder_path=checkpoint,
            allow_patterns=files,
            commit_message=f"{checkpoint.name} of a finished run",
        )
        card = model_card(run, checkpoint).encode()
        hub.upload_file(
            path_or_fileobj=card, path_in_repo=CARD, repo_id=repo, commit_message="A card made from the run"
        )
    except (httpx2.HTTPError, OSError, ValueError) as error:
        raise UserError(f"--repo: {repo}: {first_line(error)}") from None
    return address


def _chosen(directory: Path, name: str | None) -> Path:
    found = {folder.name: folder for folder in checkpoints(directory)}
    if not found:
        raise UserError(f"{directory} holds no checkpoint any more; run its command again")
    if name is None:
        return list(found.values())[-1]
    if name not in found:
        raise UserError(
            f"--checkpoint: '{name}' is not in {directory}; found: {', '.join(found)}{closest_match(name, found)}"
        )
    return found[name]


def main(arguments: Sequence[str] | None = None) -> int:
    """Publish a run's checkpoint, or print its card, and return the exit code."""
    parser = Parser(
        prog="python -m eval publish",
        description="Put a finished run's checkpoint on the model hub, with a card made from the run.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="directory of a finished run")
    parser.add_argument(
        "--repo", metavar="OWNER/NAME", help="repository, made if it is not there; default: print the card"
    )
    parser.add_argument("--checkpoint", metavar="NAME", help="as 01-sft; default: the last")
    parser.add_argument("--public", action="store_true", help="make a new repository public")
    options = parser.parse_args(arguments)
    try:
        run = read_finished(options.run)
    except UserError as error:
        raise UserError(*(f"{options.run}: {problem}" for problem in error.problems)) from None
    checkpoint = _chosen(options.run, options.checkpoint)
    if options.repo is None:
        sys.stdout.write(model_card(run, checkpoint))
    else:
        print(publish(run, checkpoint, options.repo, options.public), flush=True)
    return EXIT_DONE
