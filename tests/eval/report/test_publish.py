"""A checkpoint on the model hub: what its card says, what goes there, and what is refused."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import huggingface_hub
import pytest
import yaml

from eval.__main__ import main
from ogpsa.app.compose import compose_config
from ogpsa.utils.files import mark_complete


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The directory of a finished run with one checkpoint, and a file that does not belong on a hub."""
    directory, checkpoint = tmp_path / "run", tmp_path / "run" / "01-sft"
    (checkpoint / "checkpoints").mkdir(parents=True)
    for name in ("model.safetensors", "config.json", "checkpoints/optimizer.pt"):
        (checkpoint / name).write_text(name)
    mark_complete(checkpoint, {"stage": "sft"})
    words = ["model=qwen2_5_7b", "stage=sft", "method=baseline", "data=files", "data.safety=/home/me/rows.jsonl"]
    config = compose_config(words).model_dump(mode="json")
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    scores: dict[str, Any] = {"safety": 0.9, "utility": 0.7, "over_refusal": 0.3, "benchmarks": {}}
    metrics = scores | {"base": scores | {"safety": 0.5}, "stages": {"sft": scores}}
    (directory / "metrics.json").write_text(json.dumps(metrics))
    session = {"git": {"revision": "0123456789", "dirty": False}, "started": "2026-01-01T00:00:00+00:00"}
    facts = {"data": {"safety": {"rows": 12, "sha256": "ab" * 32}}, "sessions": [session]}
    (directory / "provenance.json").write_text(json.dumps(facts))
    return directory


class Hub:
    """The hub's client, which keeps what it is given."""

    def __init__(self) -> None:
        self.made: dict[str, bool] = {}
        self.files: list[str] = []
        self.card = ""
        # Repositories that were there before.
        self.open: set[str] = set()

    def create_repo(self, repo: str, private: bool, exist_ok: bool) -> str:
        assert exist_ok
        self.made[repo] = private
        return f"https://hub/{repo}"

    def repo_info(self, repo: str) -> SimpleNamespace:
        return SimpleNamespace(private=self.made[repo] and repo not in self.open)

    def upload_folder(self, folder_path: Path, allow_patterns: list[str], **_: Any) -> None:
        self.files = sorted(str(path.relative_to(folder_path)) for path in folder_path.rglob("*")
                            if str(path.relative_to(folder_path)) in allow_patterns)  # fmt: skip

    def upload_file(self, path_or_fileobj: bytes, path_in_repo: str, **_: Any) -> None:
        assert path_in_repo == "README.md"
        self.card = path_or_fileobj.decode()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    return made


def test_the_card_says_how_the_model_was_made(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["publish", str(run)]) == 0
    card = capsys.readouterr().out
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "tags": ["ogpsa", "safety-alignment", "sft", "baseline"],
        "base_model": "Qwen/Qwen2.5-7B-Instruct",
    }
    told = ("stage=sft method=baseline data=files", "revision 0123456", "| 12 | `abababababababab` |", "learning_rate")
    for part in (*told, "safety ↑", "0.90", "2602.07892"):
        assert part in body
    assert "/home/me" not in card


def test_what_the_checkpoint_names_goes_to_a_private_repository(
    run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["publish", str(run), "--repo", "me/model"]) == 0
    assert capsys.readouterr().out == "https://hub/me/model\n"
    assert hub.made == {"me/model": True}
    assert hub.files == ["COMPLETE.json", "config.json", "model.safetensors"]
    assert "# 01-sft of qwen2_5_7b" in hub.card
    assert main(["publish", str(run), "--repo", "me/open", "--public", "--checkpoint", "01-sft"]) == 0
    assert hub.made["me/open"] is False


def test_nothing_goes_unasked_to_a_public_repository_that_is_there(
    run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.open.add("me/open")
    assert main(["publish", str(run), "--repo", "me/open"]) == 2
    assert capsys.readouterr().err == "error: --repo: me/open: is public; add --public, or choose another\n"
    assert hub.files == [] and not hub.card


def test_mistakes_are_one_line_and_touch_no_hub(
    run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*words: str) -> str:
        assert main(["publish", *words]) == 2
        return capsys.readouterr().err

    assert "--checkpoint: '02-dpo' is not in" in told(str(run), "--checkpoint", "02-dpo")
    assert f"{run.parent}: " in told(str(run.parent))
    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub, "get_token", lambda: None)
        assert "HF_TOKEN: not set" in told(str(run), "--repo", "me/model")
    (run / "01-sft" / "model.safetensors").write_text("other")
    assert "model.safetensors" in told(str(run), "--repo", "me/model")
    shutil.rmtree(run / "01-sft")
    assert told(str(run)) == f"error: {run} holds no checkpoint any more; run its command again\n"
    assert hub.made == {}


def test_a_hub_that_fails_is_one_line(
    run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise httpx2.ConnectError("no route to host")

    monkeypatch.setattr(hub, "upload_folder", fail)
    assert main(["publish", str(run), "--repo", "me/model"]) == 2
    assert capsys.readouterr().err == "error: --repo: me/model: no route to host\n"
