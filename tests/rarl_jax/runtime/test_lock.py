"""A folder is one process's at a time, whatever becomes of the process."""

import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from rarl_jax.runtime.lock import FolderLock, holds
from tests.commands import ROOT

HOLDER = """
import sys, time
from pathlib import Path
from rarl_jax.runtime.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print('held', flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds tmp_path / 'run'."""
    command = [sys.executable, '-c', HOLDER, str(tmp_path / 'run')]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == 'held\n'
        yield process
        process.kill()


def test_a_second_process_is_refused_by_name_until_the_first_has_died(tmp_path, holder):
    told = rf'run is in use by process {holder.pid} on {re.escape(socket.gethostname())}: wait for it or stop it'
    with pytest.raises(ValueError, match=told):
        FolderLock(tmp_path / 'run')
    assert not holds(tmp_path / 'run')
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with FolderLock(tmp_path / 'run'):
        assert holds(tmp_path / 'run')


def test_a_lock_beside_a_folder_that_is_not_there_yet(tmp_path):
    with FolderLock(tmp_path / 'out', beside=True):
        assert [path.name for path in tmp_path.iterdir()] == ['.out.lock']
        with pytest.raises(ValueError, match=f'in use by process {os.getpid()} '):
            FolderLock(tmp_path / 'out', beside=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('again', [False, True])
def test_a_folder_that_vanished_is_noticed(tmp_path, again):
    lock = FolderLock(tmp_path / 'run')
    lock.check()
    shutil.move(tmp_path / 'run', tmp_path / 'elsewhere')
    if again:  # and another run has begun in its place
        FolderLock(tmp_path / 'run').close()
    with pytest.raises(FileNotFoundError, match='run was removed or moved away while it was written to'):
        lock.check()


def test_a_folder_that_vanished_is_the_reason_of_what_failed(tmp_path):
    with pytest.raises(FileNotFoundError, match='was removed or moved away'), FolderLock(tmp_path / 'run'):
        shutil.rmtree(tmp_path / 'run')
        (tmp_path / 'run' / 'rows').write_text('')


def test_a_lock_that_its_holder_removes_in_that_moment_is_taken_anew(tmp_path, monkeypatch):
    taken, first = fcntl.flock, FolderLock(tmp_path / 'out', beside=True)

    def late(file, how):
        if not calls:
            first.close()
        calls.append(how)
        taken(file, how)

    calls = []
    monkeypatch.setattr('rarl_jax.runtime.lock.fcntl.flock', late)
    with FolderLock(tmp_path / 'out', beside=True) as second:
        second.check()
        assert len(calls) == 2


def test_a_holder_that_has_not_written_its_name_yet(tmp_path):
    with FolderLock(tmp_path):
        (tmp_path / '.lock').write_text('')
        with pytest.raises(ValueError, match='in use by another process'):
            FolderLock(tmp_path)
