from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from vadtune.search.driver.signals import stop_signals


@pytest.fixture(autouse=True)
def _handlers_stay() -> Iterator[None]:
    ignored = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        assert signal.getsignal(number) == handler
        signal.signal(number, handler)
    signal.signal(signal.SIGHUP, ignored)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_ends_at_once_what_the_first_one_asks_to_stop(number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt), stop_signals() as received:  # noqa: PT012 - the order is what is tested
        os.kill(os.getpid(), number)
        assert received == [number]
        os.kill(os.getpid(), signal.SIGINT)


def test_a_terminal_that_closes_may_say_so_twice() -> None:
    with stop_signals() as received:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        assert received == [signal.SIGHUP, signal.SIGHUP]


def test_a_search_under_nohup_goes_on() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as received:
            os.kill(os.getpid(), signal.SIGHUP)
            assert received == []
    finally:
        signal.signal(signal.SIGHUP, before)
