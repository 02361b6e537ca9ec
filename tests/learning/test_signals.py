"""A polite end."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from minerua.learning.signals import Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_remembered_and_the_handlers_are_put_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Signals() as signals:
        os.kill(os.getpid(), number)
        assert signals.caught == number
    assert signal.getsignal(number) is before


def test_a_second_interrupt_stops_at_once() -> None:
    with Signals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_outside_the_main_thread_nothing_is_caught() -> None:
    before, inside = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with Signals():
            inside.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]
