"""What readers share, beyond what the readers' own tests show."""

from __future__ import annotations

import threading
import time

import pytest

from input_pipeline.schema import Page
from input_pipeline.sources import reading


def test_images_are_checked_side_by_side(monkeypatch):
    """Each check waits until another one has begun: one after the other, none would ever end."""
    both = threading.Barrier(2, timeout=20)

    def check(*_):
        both.wait()
        return None, None

    monkeypatch.setattr(reading, 'check_image', check)
    pages = [Page(str(i), f'{i}.png', 10, 10, 'test', 's') for i in range(4)]
    told = []
    kept = reading.keep_readable(pages, reading.Tally(), 100, 2, lambda done, total: told.append((done, total)))
    assert kept == pages
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_an_interrupt_does_not_wait_for_the_pages_that_are_left(monkeypatch):
    checked = []

    def check(page, _):
        checked.append(page)
        time.sleep(0.01)
        return None, None

    def interrupt(done, total):
        raise KeyboardInterrupt

    monkeypatch.setattr(reading, 'check_image', check)
    pages = [Page(str(i), f'{i}.png', 10, 10, 'test', 's') for i in range(1000)]
    with pytest.raises(KeyboardInterrupt):
        reading.keep_readable(pages, reading.Tally(), 100, 2, interrupt)
    assert len(checked) < 500
