"""The first signal is a wish, the second acts at once, even where Python is not running."""

import signal
import subprocess
import sys
import time

import pytest

from rarl_jax.runtime.signals import Stopped, handle, interrupt, stop_on_signal
from tests.commands import ROOT

# A C call that holds the main thread, as a compilation does.
BUSY = """
import ctypes, sys, time
from rarl_jax.runtime.signals import stop_on_signal
received = []
with stop_on_signal(received):
    print('ready', flush=True)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        ctypes.CDLL(None).usleep(900_000) if sys.argv[1] == 'c' else time.sleep(0.01)
        if received and sys.argv[2] == 'leave':
            break
print('left', received, flush=True)
"""


def busy(where, then):
    return subprocess.Popen(
        [sys.executable, '-c', BUSY, where, then],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_wish(number):
    with busy('python', 'leave') as process:
        process.stdout.readline()
        process.send_signal(number)
        assert process.stdout.readline() == f"left ['{number.name}']\n"
    assert process.returncode == 0


@pytest.mark.parametrize('numbers', [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT)])
@pytest.mark.parametrize('where', ['python', 'c'])
def test_the_second_acts_at_once(where, numbers):
    with busy(where, 'stay') as process:
        process.stdout.readline()
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.2)
        assert process.wait(5) == 128 + numbers[1]
        told = process.stderr.read()
    assert 'Stopped at once' in told and 'Traceback' not in told


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT)
    received = []
    with stop_on_signal(received):
        assert signal.getsignal(signal.SIGINT) is not before
        signal.raise_signal(signal.SIGINT)
        while not received:
            time.sleep(0.001)
    assert signal.getsignal(signal.SIGINT) is before
    assert received == ['SIGINT']


@pytest.mark.parametrize(('name', 'status'), [('SIGINT', 130), ('SIGTERM', 143)])
def test_a_stopped_run_has_the_status_of_its_signal(name, status):
    assert Stopped('x', name).status == status


def test_what_reads_pictures_does_not_take_a_signal_for_a_fault(monkeypatch):
    monkeypatch.setattr(signal, 'signal', lambda number, handler: handlers.update({number: handler}))
    handlers = {}
    handle(interrupt)
    with pytest.raises(Stopped, match='Stopped by SIGTERM'):
        try:
            handlers[signal.SIGTERM](signal.SIGTERM, None)
        except Exception:
            pytest.fail('a reader has swallowed it')
