"""A part of a step that hangs is told, with where it hangs; one that compiles is not."""

from __future__ import annotations

import sys
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from rarl_jax.runtime import watchdog
from rarl_jax.runtime.watchdog import Watchdog, is_compiling


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(watchdog, 'EVERY', 0.01)
    monkeypatch.setattr(watchdog, 'LEAST', 0.2)


def steps(dog, count=3):
    for _ in range(count):
        dog.lap('rollout')
        dog.lap('update')


def wait_long(seconds=0.6):
    time.sleep(seconds)


def test_what_hangs_is_named_once_with_all_stacks(tmp_path, quick):
    told = []
    with Watchdog(10.0, tmp_path / 'hang.log', told.append) as dog:
        steps(dog)
        dog.lap('rollout')
        wait_long()
        assert len(told) == 1 and told[0].startswith('The update of a step has taken 0 s, and mostly takes 0.0 s')
        dog.lap('update')
        wait_long()
    assert len(told) == 2 and told[1].startswith('The rollout of a step')
    text = (tmp_path / 'hang.log').read_text()
    assert text.count('Thread 0x') + text.count('Current thread') >= 4 and 'in wait_long' in text


def test_nothing_is_told_that_is_usual_unknown_or_not_asked_for(tmp_path, quick):
    told = []
    with Watchdog(10.0, tmp_path / 'log', told.append) as dog:
        steps(dog, count=2)  # two say nothing yet
        wait_long()
    with Watchdog(10.0, tmp_path / 'log', told.append) as dog:
        for _ in range(3):
            wait_long(0.05)
            dog.lap('rollout')
        wait_long(0.3)  # six times the median
    with Watchdog(0.0, tmp_path / 'log', told.append) as dog:
        steps(dog)
        wait_long()
    assert not told


def test_compilation_does_not_count(tmp_path, quick, monkeypatch):
    told = []
    monkeypatch.setattr(watchdog, 'is_compiling', lambda: True)
    with Watchdog(10.0, tmp_path / 'log', told.append) as dog:
        steps(dog)
        wait_long()
    assert not told


def test_the_compiler_is_recognised():
    seen = []

    def listen(event, **details):
        if event == '/jax/compilation_cache/compile_requests_use_cache':  # told from inside of the compiler
            seen.append(is_compiling())

    def compile_something():
        jax.jit(lambda x: x * 3 + len(seen))(jnp.ones(7)).block_until_ready()

    jax.monitoring.register_event_listener(listen)
    try:
        compile_something()
        beside(compile_something)
    finally:
        jax.monitoring.unregister_event_listener(listen)
    assert len(seen) >= 2 and all(seen) and not is_compiling()


def test_no_frame_of_a_running_thread_is_touched(tmp_path, quick, monkeypatch):
    """It has broken a run: the thread that worked found a frame in place of the function that it called."""

    def refuse(*_):
        raise AssertionError('frames of running threads are walked')

    monkeypatch.setattr(sys, '_current_frames', refuse)
    monkeypatch.setattr(sys, '_getframe', refuse)
    assert not is_compiling()
    told = []
    with Watchdog(10.0, tmp_path / 'log', told.append) as dog:
        steps(dog)
        wait_long()
    assert len(told) == 1


def beside(call):
    """Calls it in a thread, as rollouts do."""
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
