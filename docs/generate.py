"""The two pages that are made from the code: docs/keys.md, every key of conf/, and docs/help.md, every command's help.

python -m docs.generate           # writes both
"""

import contextlib
import io
import os
import re
import runpy
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import dropwhile, islice, takewhile
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from unittest.mock import patch

import annotated_types as bounds
import yaml
from pydantic.fields import FieldInfo

from eval.__main__ import COMMANDS as EVALUATION
from ogpsa.app.compose import CONF
from ogpsa.config import (
    Config,
    Distributed,
    DPOSettings,
    Evaluation,
    FileData,
    GRPOSettings,
    JudgeSettings,
    Model,
    PathText,
    Reward,
    Section,
    SFTSettings,
    StageName,
    StageSettings,
    TestbedData,
    Tracker,
)
from ogpsa.config.stage import SFTThenDPOSettings, SFTThenGRPOSettings
from ogpsa.methods import method_class
from ogpsa.utils.by_name import class_named

ROOT = CONF.parent
HERE = Path(__file__).parent
# In the order in which a command names them.
GROUPS = ("model", "stage", "method", "reward", "data", "eval", "distributed", "tracker")
# Each with its help, in the order of docs/commands.md. Those with a slash are scripts.
COMMANDS = (
    "train.py", "experiments", "experiments.bases", "experiments.separation",
    "eval", *(f"eval {name}" for name in EVALUATION), "ogpsa.data", "ogpsa.models.smollm2",
    "slurm/submit.sh", "slurm/status.sh", "slurm/sync_wandb.sh", "slurm.grid",
    *(f"benchmarks.{name}" for name in ("projection", "train_step", "scaling", "memory", "evaluation", "references")),
)  # fmt: skip
WIDTH = "100"


@dataclass(frozen=True)
class Key:
    """A key of a YAML file: its dotted path, the lines above it, and its value as it is written."""

    path: tuple[str, ...]
    comment: str
    value: str


def keys_page() -> str:
    """Every key of every YAML file in ``conf/`` but the rows of tables: type, default, meaning with its source."""
    parts = [
        "# Every key\n",
        "Made by `make docs` from the comments of `conf/` and from the schema that checks them (`ogpsa/config`). A "
        "value is the file's; `${…}` is that of another key. Sources: (paper) is arXiv 2602.07892, of "
        "which [abs] is the abstract and [app] the appendix; [readme] and [code] are its authors' repository, "
        "github.com/SunGL001/OGPSA; [nspo] is arXiv 2512.11391, where [code] is github.com/ivanniu/NSPO; [inferred] "
        "follows from what they say; (ours) and [ours] were chosen here.\n",
        f"## Of the run\n\n{_table(_keys(CONF / 'config.yaml'), Config)}",
    ]
    for group in GROUPS:
        parts.append(f"## `{group}`\n")
        files = sorted((CONF / group).glob("*.yaml"), key=lambda file: (not file.stem.startswith("_"), file.stem))
        parts += [_section(group, file) for file in files]
    return "\n".join(parts)


def _section(group: str, file: Path) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    heading = [line.removeprefix("#").strip() for line in lines[:first] if not line.startswith("# @")]
    found = _keys(file)
    if found and found[0].comment == " ".join(heading):
        # One block of comments is the file's and, but for a name, its last line the first key's.
        own = "What this file is; do not change." if found[0].path == ("name",) else heading.pop()
        found[0] = replace(found[0], comment=own)
    # A line that ends with a command ends a sentence.
    about = " ".join(f"{line}." if re.search(r"python \S+ [^.]*$", line) else line for line in heading)
    about = about if about.endswith((".", ":")) else f"{about}."
    raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    entries = [entry for entry in raw.get("defaults", []) if entry != "_self_"]
    others = [f"{group}: {name}" for entry in entries if isinstance(entry, dict) for group, name in entry.items()]
    others += [entry for entry in entries if isinstance(entry, str)]
    shared = f" Its other keys are those of {', '.join(f'`{other}`' for other in others)}." if others else ""
    shared += "".join(f" {_escaped(line)}" for line in _said_of_defaults(lines))
    title = f"`{group}={file.stem}`" if not file.stem.startswith("_") else f"`{group}/{file.stem}`, inherited by others"
    return f"### {title}\n\n{_escaped(about)}{shared}\n\n{_table(found, _schema(group, file.stem))}"


def _said_of_defaults(lines: list[str]) -> list[str]:
    """The comments among the entries of a file's defaults."""
    below = dropwhile(lambda line: line != "defaults:", lines)
    block = takewhile(lambda line: line.startswith(" "), islice(below, 1, None))
    return [line.strip("# ") for line in block if line.strip().startswith("#")]


def _schema(group: str, option: str) -> type[Section]:
    """The class that checks an option."""
    match group:
        case "model":
            return Model
        case "stage":
            stages: dict[str, type[Section]] = {
                "sft": SFTSettings, "dpo": DPOSettings, "grpo": GRPOSettings, "_shared": StageSettings,
                "sft_dpo": SFTThenDPOSettings, "sft_grpo": SFTThenGRPOSettings,
            }  # fmt: skip
            return stages[option]
        case "method":
            return method_class(option)
        case "reward":
            shared: dict[str, type[Section]] = {"_endpoint": JudgeSettings}
            name = option.replace("_refusals", "refusal_rules")
            return shared.get(option) or class_named(name, "", "ogpsa.rewards", (), "reward", Reward)
        case "data":
            return TestbedData if option == "testbed" else FileData
        case "eval":
            return Evaluation
        case "distributed":
            return Distributed
        case _:
            return Tracker


def _keys(file: Path) -> list[Key]:
    """The keys in their order; a mapping that is spread over lines counts as one as well."""
    found: list[Key] = []
    place: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            comment.append(stripped.removeprefix("#").strip())
            continue
        matched = re.match(r"( *)([\w@/ ]+|\"[^\"]+\"):(?: (.*))?$", line)
        if stripped.startswith("- ") and found and place:
            # A list with an item per line.
            items = [found[-1].value.strip("[]"), re.sub(r"\s+#.*", "", stripped.removeprefix("- "))]
            found[-1] = replace(found[-1], value=f"[{', '.join(filter(None, items))}]")
        if matched is None or stripped.startswith("- "):
            # What precedes an item says nothing of the next key.
            comment = []
            continue
        indent, key, value = len(matched[1]), matched[2], matched[3] or ""
        place = [(depth, name) for depth, name in place if depth < indent] + [(indent, key)]
        path = tuple(name for _, name in place)
        if path[0] not in ("defaults", "hydra"):
            value, _, behind = value.partition("  #")
            found.append(Key(path, " ".join([*comment, behind.strip()]).strip(), value.rstrip()))
        comment = []
    return found


def _table(keys: list[Key], schema: type[Section]) -> str:
    if not keys:
        return ""
    lines = ["| key | type | here | meaning |", "| --- | --- | --- | --- |"]
    for key in keys:
        value = f"`{key.value}`" if key.value else ""
        lines.append(
            f"| `{'.'.join(key.path)}` | {_type_of(schema, key.path)} | {_cell(value)} | {_escaped(key.comment)} |"
        )
    return "\n".join(lines) + "\n"


def _type_of(schema: type[Section], path: tuple[str, ...]) -> str:
    """The values that a key takes, in words."""
    kind: Any = schema
    metadata: list[Any] = []
    for name in path:
        alternatives = _alternatives(kind)
        section = next((one for one in alternatives if isinstance(one, type) and issubclass(one, Section)), None)
        if section is not None and name in section.model_fields:
            field = section.model_fields[name]
            kind, metadata = field.annotation, field.metadata
        else:
            kind, metadata = next((get_args(one)[1] for one in alternatives if get_origin(one) is dict), Any), []
    return _escaped(_described(kind, metadata))


def _alternatives(kind: Any) -> list[Any]:
    origin = get_origin(kind)
    if origin is Annotated:
        return _alternatives(get_args(kind)[0])
    if origin in (Union, UnionType):
        return [one for part in get_args(kind) for one in _alternatives(part)]
    return [kind]


def _described(kind: Any, metadata: list[Any]) -> str:
    """A type in words, with the bounds of its numbers."""
    if kind == PathText:
        return "path or hub id"
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _described(arguments[0], [*arguments[1:], *metadata])
    if origin in (Union, UnionType):
        return ", or ".join(dict.fromkeys(_described(part, metadata) for part in arguments))
    if origin is Literal:
        return ", ".join(f"`{str(value).lower() if isinstance(value, bool) else value}`" for value in arguments)
    if origin is dict and arguments[0] == StageName:
        return f"by stage: {_described(arguments[1], [])}"
    if origin is dict:
        return f"mapping to {_described(arguments[1], [])}"
    if origin in (list, tuple):
        return f"list of {_described(arguments[0], [])}"
    if kind is Any:
        return "anything"
    names = {int: "whole number", float: "number", bool: "`true`, `false`", str: "text", NoneType: "`null`"}
    if kind in (int, float):
        return names[kind] + _bounds(metadata)
    return names.get(kind, "keys of its own" if isinstance(kind, type) and issubclass(kind, Section) else "value")


def _bounds(metadata: list[Any]) -> str:
    """``from 0 up to 1``; of pydantic's ``Field`` the bounds lie in its own metadata."""
    flat = [part for one in metadata for part in (one.metadata if isinstance(one, FieldInfo) else [one])]
    words = []
    for one in flat:
        match one:
            case bounds.Ge():
                words.append(f"from {one.ge}")
            case bounds.Gt():
                words.append(f"above {one.gt}")
            case bounds.Le():
                words.append(f"up to {one.le}")
            case bounds.Lt():
                words.append(f"below {one.lt}")
    return "".join(f" {word}" for word in words)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _escaped(text: str) -> str:
    """Text of a comment as Markdown: no emphasis, links or HTML in it."""
    return _cell(re.sub(r"([*<\[])", r"\\\1", text))


def help_page() -> str:
    """The help of every command, as it is printed on a terminal of 100 columns."""
    parts = ["# Every command's help\n", "Made by `make docs`; what is done with them: [commands](commands.md).\n"]
    for command in COMMANDS:
        program = f"python {command}" if command.endswith(".py") else command
        typed = program if "/" in command or command.endswith(".py") else f"python -m {command}"
        parts.append(f"## `{typed}`\n\n```text\n{_help_of(command).strip()}\n```\n")
    return "\n".join(parts)


def _help_of(command: str) -> str:
    module, *words = command.split()
    if "/" in command:
        environment = os.environ | {"COLUMNS": WIDTH}
        return subprocess.run([str(ROOT / command), "--help"], capture_output=True, text=True, check=True,
                              env=environment, cwd=ROOT).stdout  # fmt: skip
    printed = io.StringIO()
    path = str(ROOT / module) if module.endswith(".py") else module
    with (
        patch.object(sys, "argv", [module, *words, "--help"]),
        patch.dict(os.environ, {"COLUMNS": WIDTH}),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
        warnings.catch_warnings(),
    ):
        # runpy's, of a module that has been imported before.
        warnings.simplefilter("ignore", RuntimeWarning)
        if module.endswith(".py"):
            runpy.run_path(path, run_name="__main__")
        else:
            runpy.run_module(path, run_name="__main__", alter_sys=True)
    # Before its own words, libraries may have some, as of the environment's settings.
    text = printed.getvalue()
    return text[max(text.find("usage: "), 0) :] if "\nusage: " in text else text


def pages() -> Iterator[tuple[Path, str]]:
    """Where each page lies and what it is to say."""
    yield HERE / "keys.md", keys_page()
    yield HERE / "help.md", help_page()


if __name__ == "__main__":
    for file, text in pages():
        file.write_text(text, encoding="utf-8")
        print(file.relative_to(ROOT))
