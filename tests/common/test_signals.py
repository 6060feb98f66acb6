"""Signals that ask to stop, at once or at the next safe point."""

import signal

import pytest

from eltlab.common.signals import Requests, Stopped, listening


def test_outside_training_a_signal_ends_the_block_at_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="stopped by SIGTERM") as stopped, listening():
        signal.raise_signal(signal.SIGTERM)
    assert stopped.value.code == 143 and signal.getsignal(signal.SIGTERM) == before


def test_in_a_step_a_signal_is_noted_and_the_first_one_counts() -> None:
    with listening() as requests:
        requests.deferred = True
        signal.raise_signal(signal.SIGUSR2)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped, match="SIGUSR2 here"):
            requests.raise_if_stopped(" here")
    Requests().raise_if_stopped()  # no signal came


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with listening():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
