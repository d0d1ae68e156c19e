"""Parts that the benchmarks share: facts of the machine, work timed in turn, memory peaks, JSON and a table.

Needs torch alone, so that it runs on a GPU machine without this project's environment.
"""

import argparse
import ctypes
import gc
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch

from ogpsa.utils.command_line import whole_number
from ogpsa.utils.errors import EXIT_DONE, UserError, report
from ogpsa.utils.files import write_atomically, write_json

HERE = Path(__file__).resolve().parent
PACKAGES = ("torch", "triton", "numpy", "transformers", "trl", "accelerate", "deepspeed")
GIB = 2**30

Row = dict[str, Any]
Result = TypeVar("Result")

# Reads an argument that counts something.
positive = whole_number(1)


def parser(description: str) -> argparse.ArgumentParser:
    """Command line with the options that every benchmark has."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{Path(sys.argv[0]).stem}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    # The help leaves out this checkout's path, since a page is made from it.
    out = "folder of the JSON and the table (default: benchmarks)%(default).0s"
    made.add_argument("--out", type=Path, default=HERE, help=out)
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda or cuda:N")
    made.add_argument("--rounds", type=positive, default=None, help="measured rounds; by default the benchmark's own")
    made.add_argument("--smoke", action="store_true", help="tiny settings: shows that it runs, measures nothing")
    return made


def listed(text: str) -> list[str]:
    """An argument that is a list, separated by commas."""
    return [part for part in text.split(",") if part]


def run(main: Callable[[], None]) -> int:
    """Run a benchmark; a user's mistake becomes one line and exit code 2."""
    try:
        main()
    except UserError as error:
        return report(error)
    return EXIT_DONE


def machine(device: torch.device) -> Row:
    """The machine and the versions that a figure holds for."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    facts: Row = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1),
        "python": platform.python_version(),
        "packages": packages,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["gpu"] = properties.name
        facts["gpu_memory_gib"] = round(properties.total_memory / GIB, 1)
        facts["cuda"] = torch.version.cuda
    return facts


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def synchronize(device: torch.device) -> None:
    """Wait for the work that was queued on ``device``."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of ``work``, from an idle device to an idle device."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def in_turn(works: Mapping[str, Callable[[], Result]], rounds: int, warmup: int = 1) -> dict[str, list[Result]]:
    """Call each of ``works`` once a round, so that a drift of the machine affects all; the warm-up is dropped."""
    results: dict[str, list[Result]] = {name: [] for name in works}
    for _ in range(warmup + rounds):
        for name, work in works.items():
            results[name].append(work())
    return {name: found[warmup:] for name, found in results.items()}


class Copy:
    """A copy within ``device``'s memory, as a unit of time to compare with.

    Attributes:
        nbytes: bytes that it reads plus bytes that it writes.
    """

    def __init__(self, device: torch.device, nbytes: int) -> None:
        self.nbytes = nbytes
        self.source = torch.ones(nbytes // 8, device=device)
        self.target = torch.zeros_like(self.source)

    def __call__(self) -> None:
        self.target.copy_(self.source)


class MemoryPeak:
    """Most memory in use inside the ``with`` block: the allocator's on a GPU, the process's resident set on a CPU.

    Attributes:
        before: bytes in use on entry.
        peak: bytes, the highest until the exit.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = self.peak = 0

    @property
    def extra(self) -> int:
        """Bytes by which the peak exceeds what was in use on entry."""
        return self.peak - self.before

    def __enter__(self) -> "MemoryPeak":
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        else:
            # What was freed goes back to the system first, and 5 sets the high-water mark to what is resident now.
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            self.before = _kibibytes("/proc/self/status", "VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.peak = torch.cuda.max_memory_allocated(self.device)
        else:
            self.peak = _kibibytes("/proc/self/status", "VmHWM")


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on ``device``."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    return _kibibytes("/proc/meminfo", "MemAvailable")


def _kibibytes(file: str, key: str) -> int:
    """The bytes in a line ``key: N kB``."""
    lines = Path(file).read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def write(
    name: str, out: Path, device: torch.device, settings: Row, tables: Mapping[str, Sequence[Row]], notes: Sequence[str]
) -> None:
    """Write ``<name>.json`` and ``<name>.md`` into ``out`` and print the latter.

    Args:
        settings: what the figures depend on in addition to the machine.
        tables: rows by the table's title; a row's keys are its columns.
        notes: what a reader must know to read the columns, one sentence or more each.
    """
    facts = machine(device)
    packages = ", ".join(f"{package} {number}" for package, number in facts["packages"].items())
    place = f"{facts['processor']}, {facts['threads']} of {facts['cores']} cores, {facts['memory_gib']} GiB"
    if "gpu" in facts:
        place = f"{facts['gpu']} ({facts['gpu_memory_gib']} GiB, CUDA {facts['cuda']}); {place}"
    lines = [f"# {name}", "", f"{place}; Python {facts['python']}, {packages}.", ""]
    for title, rows in tables.items():
        lines += [f"## {title}", "", *_markdown(rows), ""]
    lines += [f"- {note}" for note in notes]
    text = "\n".join(lines).rstrip() + "\n"
    content = {"benchmark": name, "machine": facts, "settings": settings, "tables": dict(tables)}
    write_json(out / f"{name}.json", content)
    write_atomically(out / f"{name}.md", text)
    sys.stdout.write(text)


def _markdown(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return ["(no rows)"]
    columns = list(rows[0])
    numeric = [all(isinstance(row[column], int | float | None) for row in rows) for column in columns]
    return [
        f"| {' | '.join(column.replace('_', ' ') for column in columns)} |",
        f"|{'|'.join('---:' if right else '---' for right in numeric)}|",
        *(f"| {' | '.join(_cell(row[column]) for column in columns)} |" for row in rows),
    ]


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
