"""A hook of MkDocs: pages that live beside what they describe join the site, and links follow them there.

It runs in the environment of ``make docs``, which holds none of ours.
"""

import re
from pathlib import Path
from posixpath import relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results"
# Pages of the site, by their place in the repository. Those of docs/ are there already.
PAGES = {
    "README.md": "index.md",
    "eval/README.md": "evaluation.md",
    "experiments/README.md": "experiments.md",
    "experiments/FINDINGS.md": "findings.md",
    "slurm/README.md": "slurm.md",
    "benchmarks/README.md": "benchmarks.md",
    "community/README.md": "community.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
} | {str(file.relative_to(ROOT)): f"results/{file.relative_to(RESULTS).as_posix()}" for file in RESULTS.rglob("*.md")}
PICTURES = (".png", ".svg")
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the tables into the navigation."""
    tables = sorted(uri for uri in PAGES.values() if uri.startswith("results/"))
    section = next(part["Results"] for part in config.nav or [] if "Results" in part)
    section += [{" · ".join(uri.removesuffix(".md").split("/")[1::2]): uri} for uri in tables]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from elsewhere, and every picture beside a table."""
    for source, uri in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / source)))
    for picture in (one for one in RESULTS.rglob("*") if one.suffix in PICTURES):
        uri = f"results/{picture.relative_to(RESULTS).as_posix()}"
        files.append(File.generated(config, uri, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to where their targets are on the site; a file that is not on it is named by its path."""
    uri = page.file.src_uri
    origin = next((source for source, place in PAGES.items() if place == uri), f"docs/{uri}")

    def follow(found: re.Match[str]) -> str:
        picture, text, link, anchor = found[1], found[2], found[3], found[4] or ""
        target = (ROOT / origin).parent.joinpath(link).resolve()
        if not target.exists():
            raise FileNotFoundError(f"{origin}: {link}")
        place = str(target.relative_to(ROOT))
        if target.is_dir() and f"{place}/README.md" in PAGES:
            place = f"{place}/README.md"
        if target.suffix in PICTURES and target.is_relative_to(RESULTS):
            there = f"results/{target.relative_to(RESULTS).as_posix()}"
        elif place.startswith("docs/") and target.suffix == ".md":
            there = place.removeprefix("docs/")
        elif place in PAGES:
            there = PAGES[place]
        else:
            # Not on the site: a file of the code, a folder, a notebook.
            return text if f"`{place}`" in text else f"{text} (`{place}`)"
        return f"{picture}[{text}]({relpath(there, Path(uri).parent.as_posix() or '.')}{anchor})"

    return LINK.sub(follow, markdown)
