"""The log of a run that is interrupted and goes on, progress, and the count of compiles."""

import io
import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from rarl_jax.runtime import progress
from rarl_jax.runtime.metrics import CompileCounter, MetricsWriter
from rarl_jax.runtime.progress import Progress


def lines(folder):
    return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def test_lines_hold_step_stage_and_scalars(tmp_path):
    writer = MetricsWriter(tmp_path / 'new')
    writer.write(np.int64(3), 'main', {'loss': jnp.float32(0.5), 'compiles': 2})
    text = (tmp_path / 'new' / 'metrics.jsonl').read_text()  # at once, not at close
    assert text == '{"step": 3, "stage": "main", "loss": 0.5, "compiles": 2}\n'


def read_scalars(folder):
    """Scalars as (name, step, value) and the steps that restarts begin with, from TensorBoard's files, oldest first."""
    scalars, restarts = [], []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:  # length, its checksum, event, its checksum
            size = struct.unpack('<Q', data[:8])[0]
            event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
            scalars += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            restarts += [event.step] * event.HasField('session_log')
    return scalars, restarts


@pytest.mark.parametrize('bad', [float('nan'), jnp.inf])
def test_what_is_not_finite_stops_the_run(tmp_path, bad):
    writer = MetricsWriter(tmp_path)
    with pytest.raises(ValueError, match=r'metric loss is (nan|inf) at step 4 of stage main'):
        writer.write(4, 'main', {'reward/total': 1.0, 'loss': bad})
    assert lines(tmp_path) == []


def test_a_resumed_run_leaves_no_double_lines(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(0, 'base', {'accuracy': 0.25})
    for step in range(1, 6):
        writer.write(step, 'main', {'loss': float(step)})
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 6, "stage": "ma')  # killed here
    again = MetricsWriter(tmp_path)
    again.write(0, 'base', {'accuracy': 0.5})  # a stage that is read again
    again.forget_after(3)
    for step in range(4, 7):
        again.write(step, 'main', {'loss': 10.0 * step})
    again.write(6, 'rarl', {'accuracy': 0.75})
    again.close()
    assert [(x['step'], x.get('loss', x.get('accuracy'))) for x in lines(tmp_path)] == [
        (0, 0.5),
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 40.0),
        (5, 50.0),
        (6, 60.0),
        (6, 0.75),
    ]


def test_tensorboard_has_the_scalars_and_where_a_resume_began(tmp_path):
    writer = MetricsWriter(tmp_path)
    for step in (1, 2, 3):
        writer.write(step, 'main', {'reward/total': step / 2})
    writer.close()
    again = MetricsWriter(tmp_path)
    again.forget_after(2)
    again.write(3, 'main', {'reward/total': 9.0})
    again.close()
    scalars, restarts = read_scalars(tmp_path / 'tensorboard')
    assert scalars == [
        ('reward/total', 1, 0.5),
        ('reward/total', 2, 1.0),
        ('reward/total', 3, 1.5),
        ('reward/total', 3, 9.0),
    ]
    assert restarts == [3]


def test_plain_progress_where_there_is_no_terminal(monkeypatch):
    now = iter([100.0, 105.0, 111.0, 112.0])
    monkeypatch.setattr(progress.time, 'monotonic', lambda: next(now))
    out = io.StringIO()
    with Progress(Console(file=out), 'main', total=203, done=200) as bar:
        bar.advance(reward=1.23456)
        bar.advance(reward=1.5, iou=0.25)
        bar.advance()
    assert out.getvalue().splitlines() == [
        'main  202/203  0:00:11 spent, 0:00:06 left  reward 1.5  iou 0.25',
        'main  203/203  0:00:12 spent, 0:00:00 left',
    ]


@pytest.mark.parametrize('no_color', [False, True])
def test_a_bar_on_a_terminal_unless_no_color(monkeypatch, no_color):
    monkeypatch.setenv('NO_COLOR', '1') if no_color else monkeypatch.delenv('NO_COLOR', raising=False)
    out = io.StringIO()
    with Progress(Console(file=out, force_terminal=True, width=120), 'main', total=2) as bar:
        bar.advance(2, reward=0.5)
    assert ('━' in out.getvalue()) != no_color
    assert '2/2' in out.getvalue()
    assert 'reward 0.5' in out.getvalue()
    assert ('\x1b' in out.getvalue()) != no_color


def test_compiles_are_counted():
    counter, double = CompileCounter(), jax.jit(lambda x: 2 * x)
    x, y = jnp.ones(3), jnp.ones(4)
    counter.take()
    double(x)
    double(x)
    assert counter.names == ['jit(<lambda>)']
    assert counter.take() == 1
    double(x)
    assert counter.take() == 0
    double(y)  # a new shape
    assert counter.take() == 1
    counter.close()
    double(jnp.ones((2, 2)))
    assert counter.take() == 0


def test_lines_that_somebody_has_cut_are_counted(tmp_path):
    writer = MetricsWriter(tmp_path)
    for step in range(1, 6):
        writer.write(step, 'main', {'loss': 1.0})
    writer.write(5, 'rarl', {'accuracy': 0.5})
    assert writer.lacking(5, ['warm_start', 'main']) == 0
    (tmp_path / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines(tmp_path)[2:])) + '\n')
    assert MetricsWriter(tmp_path).lacking(5, ['warm_start', 'main']) == 2


@pytest.mark.parametrize('line', ['{"step": 1', '[]', '{"loss": 1}', '\xff'])
def test_a_damaged_line_is_told_with_its_file(tmp_path, line):
    (tmp_path / 'metrics.jsonl').write_bytes(f'{line}\n'.encode('latin-1') + b'{"step": 1, "stage": "main"}\n')
    with pytest.raises(ValueError, match=r'metrics\.jsonl, (line|object) 1'):
        MetricsWriter(tmp_path)


def test_a_disk_that_fills_up_stops_the_run_at_tensorboard_too(tmp_path, monkeypatch):
    from tensorboardX.event_file_writer import EventsWriter

    def full(self, event):
        raise OSError(28, 'No space left on device')

    writer = MetricsWriter(tmp_path)
    writer.write(1, 'main', {'loss': 1.0})
    monkeypatch.setattr(EventsWriter, 'write_event', full)
    with pytest.raises(OSError, match=r'No space left on device: .*tensorboard'):
        writer.write(2, 'main', {'loss': 1.0})
