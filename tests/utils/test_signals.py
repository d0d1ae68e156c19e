"""Signals that ask a run to save: who hears them."""

import signal
import subprocess
import sys

from ogpsa.utils.signals import Interruption, deaf_children

# Says that it is there, and ends when its input does.
CHILD = "import sys; print('here', flush=True); sys.stdin.read()"


def test_a_child_does_not_die_of_its_runs_signals() -> None:
    with deaf_children():
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    assert child.stdout is not None and child.stdout.readline() == "here\n"
    for number in (signal.SIGUSR1, signal.SIGTERM):
        child.send_signal(number)
    child.communicate("")
    assert child.returncode == 0


def test_the_run_hears_them_when_the_child_has_started() -> None:
    with Interruption() as interruption:
        with deaf_children():
            signal.raise_signal(signal.SIGUSR1)
            assert not interruption.requested
        assert interruption.requested
