"""One short probe of the hub a process, then its cache alone."""

import logging
import socket
import time
from collections.abc import Iterator

import datasets
import pytest
from huggingface_hub import constants

from ogpsa.app.compose import compose_config
from ogpsa.models.files import local_folder
from ogpsa.utils.errors import UserError
from ogpsa.utils.network import PROBE_SECONDS, ask_hub, within


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A process that has not asked yet."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    ask_hub.cache_clear()
    yield monkeypatch
    ask_hub.cache_clear()


@pytest.mark.parametrize("silent", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_hub_that_does_not_answer_costs_a_line_and_seconds(
    silent: bool, online: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1] if silent else 9}"
        online.setattr(constants, "ENDPOINT", address)
        model = compose_config(["model.path=nobody/nothing"]).model
        began = time.monotonic()
        for _ in range(3):
            with (
                caplog.at_level(logging.WARNING),
                pytest.raises(UserError, match=r"model\.path: nobody/nothing is not in the hub's cache"),
            ):
                local_folder(model)
        assert time.monotonic() - began < PROBE_SECONDS + 2
    [said] = [message for message in caplog.messages if address in message]
    assert said.endswith("files come from the hub's cache alone")


def test_a_hub_that_answers_stays_in_use(online: pytest.MonkeyPatch) -> None:
    online.setattr("ogpsa.utils.network._probe", lambda address: None)
    ask_hub()
    assert constants.HF_HUB_OFFLINE is False


def test_what_takes_longer_is_not_waited_for() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.1 s"):
        within(0.1, lambda: time.sleep(5))
    assert time.monotonic() - began < 1
    assert within(5, lambda: 3) == 3
