"""Validation of a model's files before ``ogpsa/models/load.py`` loads them, without torch."""

import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ogpsa.config import Config, Model
from ogpsa.utils.errors import UserError, first_line
from ogpsa.utils.files import find_damage, hash_files, is_complete, read_text
from ogpsa.utils.json_text import json_kind
from ogpsa.utils.network import ask_hub
from ogpsa.utils.system_errors import absent

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
# Other JSON files that transformers reads if they exist.
SETTINGS_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
SNAPSHOT_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt"]
# Files that a model's responses depend on; a checkpoint's training state is not among them.
MODEL_FILES = (
    "*.safetensors", "*config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*",
    "vocab*", "merges.txt",
)  # fmt: skip
# As ogpsa/runs/directory.py calls it.
RUN_FILE = "config.yaml"
log = logging.getLogger(__name__)
HUB_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*/[A-Za-z0-9_.-]+")


def check_model(config: Config) -> None:
    """Refuse a local folder that holds no loadable model, before torch is imported.

    Raises:
        UserError: ``model.path`` is neither a folder nor a hub id, a file in it is missing or damaged, or it is null
            and the data bring no base; or ``model.revision`` is set where nothing of the hub is read.
    """
    model = config.model
    if model.revision is not None and (model.path is None or Path(model.path).is_dir()):
        source = f"model.path {model.path} is a folder" if model.path else "the model is the testbed's own base"
        raise UserError(f"model.revision: {model.revision}, but {source}; allowed: null (only the hub has revisions)")
    if model.path is None:
        config.testbed_base()
        return
    folder = Path(model.path)
    if (copy := local_copy(model)) is not None:
        check_weights(copy, "model.local_copy.path", "remove the folder, and write it again")
    elif folder.is_dir():
        check_weights(folder, "model.path", "write the checkpoint again")
    elif folder.exists():
        raise UserError(f"model.path: {folder} is a file; expected a folder with config.json and *.safetensors")
    elif folder.is_symlink():
        raise UserError(f"model.path: {folder}: {absent(folder)}")
    elif not HUB_ID.fullmatch(model.path):
        raise UserError(
            f"model.path: {folder} does not exist; give a folder or a hub id such as Qwen/Qwen2.5-7B-Instruct"
        )


def check_weights(folder: Path, key: str, remedy: str) -> None:
    """Check that ``folder`` holds a configuration, a tokenizer with a chat template and readable safetensors.

    In a stage's own folder, every file must have the size with which it was written.

    Raises:
        UserError: names ``key``, the file at fault and the remedy.
    """
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise UserError(f"{key}: {folder} {adapter_problem(folder)}")
        if (folder / RUN_FILE).is_file() and (inside := sorted(map(str, folder.glob("[0-9][0-9]-*")))):
            raise UserError(f"{key}: {folder} is a run's directory; name a checkpoint in it, as {inside[-1]}")
    if is_complete(folder) and (damage := find_damage(folder, contents=False)):
        raise UserError(f"{key}: {folder / damage}; {remedy}")
    config = _read_json(folder / "config.json", key, remedy)
    if "model_type" not in config:
        raise UserError(f"{key}: {folder / 'config.json'} names no model_type; {remedy}")
    if config.get("quantization_config"):
        raise UserError(
            f"{key}: {folder / 'config.json'} has a quantization_config; quantized weights are not trained or "
            "evaluated: give the folder of the whole ones, or take it out if these are"
        )
    if (folder / "adapter_config.json").is_file():
        # transformers would load the adapter's own model in place of these weights.
        raise UserError(f"{key}: {folder} holds a model and adapter_config.json; move the adapter's files elsewhere")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(f"{key}: {folder} holds no tokenizer; expected one of {', '.join(TOKENIZER_FILES)}")
    for name in SETTINGS_FILES:
        if (folder / name).is_file():
            _read_json(folder / name, key, remedy)
    if (folder / "chat_template.jinja").is_file():
        try:
            read_text(folder / "chat_template.jinja", "a template of jinja")
        except UserError as error:
            raise UserError(f"{key}: {error}; {remedy}") from None
    if not (folder / "chat_template.jinja").is_file():
        settings = folder / "tokenizer_config.json"
        if not settings.is_file() or "chat_template" not in _read_json(settings, key, remedy):
            raise UserError(f"{key}: the tokenizer in {folder} has no chat template; use an instruct model")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{key}: {folder} holds no *.safetensors; convert the weights (pickled ones are not loaded)")
    for file in files:
        if not is_whole(file):
            raise UserError(f"{key}: {file} is damaged or truncated; {remedy}")
    index = folder / "model.safetensors.index.json"
    if index.is_file() and not (folder / "model.safetensors").is_file():
        named = _read_json(index, key, remedy).get("weight_map", {}).values()
        if missing := sorted(set(named) - {file.name for file in files}):
            raise UserError(f"{key}: {folder} lacks {missing[0]}, which {index.name} names; {remedy}")


def adapter_problem(folder: Path) -> str:
    """The message for a folder that holds an adapter instead of a model."""
    try:
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = "its model"
    return (
        f"holds an adapter of {base}, not a model; add it to the weights first (peft: merge_and_unload, then "
        "save_pretrained) and keep the tokenizer beside them"
    )


def local_copy(model: Model) -> Path | None:
    """The local copy that replaces the hub id ``model.path``, if one is set and exists.

    A folder named like the id takes precedence, and a pinned revision means the hub's own files.
    """
    copy = model.local_copy
    if copy is None or copy.of != model.path or model.revision is not None:
        return None
    if Path(model.path).is_dir() or not Path(copy.path).is_dir():
        return None
    return Path(copy.path)


def here_already(model: Model) -> Path | None:
    """The folder of ``model.path`` where nothing has to be fetched: a local one, or a snapshot in the hub's cache."""
    if model.path is None:
        return None
    if Path(model.path).is_dir():
        return Path(model.path)
    if (copy := local_copy(model)) is not None:
        return copy
    return cached_folder(model.path, model.revision)


def cached_folder(hub_id: str, revision: str | None = None) -> Path | None:
    """The snapshot of a model in the hub's local cache, if its configuration and tokenizer are there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    names = ("config.json", "tokenizer_config.json")
    try:
        cached = [try_to_load_from_cache(hub_id, name, revision=revision) for name in names]
    except HFValidationError:
        return None
    found = [Path(file).parent for file in cached if isinstance(file, str)]
    return found[0] if len(found) == len(names) else None


def local_folder(model: Model) -> Path:
    """The folder of ``model.path``; of a hub id, its local copy, or its snapshot at the revision, fetched if need be.

    Raises:
        UserError: the hub does not have it, or cannot be reached.
    """
    path = str(model.path)
    if Path(path).is_dir():
        return Path(path)
    if (copy := local_copy(model)) is not None:
        log.info("model.local_copy: %s stands in for %s, whose own weights may be others", copy, path)
        return copy
    ask_hub()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(path, revision=model.revision, allow_patterns=SNAPSHOT_FILES)
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise UserError(
            f"model.path: {model.path} is not in the hub's cache and cannot be fetched ({first_line(error)}); give a "
            "local folder"
        ) from None
    check_weights(Path(folder), "model.path", "fetch it again")
    return Path(folder)


def _read_json(file: Path, key: str, remedy: str) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"{key}: {file.parent} holds no {file.name}; give a folder written by save_pretrained")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise UserError(f"{key}: {file} is not readable as JSON; {remedy}") from None
    if not isinstance(found, dict):
        raise UserError(f"{key}: {file} holds {json_kind(found)}; expected an object; {remedy}")
    return found


def is_whole(file: Path) -> bool:
    """Whether safetensors finds the file's header valid and its data of the size that it announces."""
    with file.open("rb"):  # the system's refusal then names the file
        try:
            with safe_open(file, framework="numpy"):
                return True
        except SafetensorError:
            return False


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 by name of the files that a model's responses depend on: weights, configuration, tokenizer."""
    paths = sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern)})
    return {path.name: digest for path, digest in hash_files(paths).items()}


def fingerprint(folder: Path) -> str:
    """Sixteen hexadecimal digits over a model's weights, configuration and tokenizer."""
    lines = "".join(f"{name}:{digest}\n" for name, digest in file_hashes(folder).items())
    return hashlib.sha256(lines.encode()).hexdigest()[:16]
