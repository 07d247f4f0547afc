"""Round trips, and what is left when a process dies or a disk lies."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rarl_jax.learner.optim import OptimizerSettings, make_optimizer
from rarl_jax.runtime.checkpoints import Checkpoints


def arrays(value):
    params = {
        'text': {'norm': jnp.full(3, value, jnp.bfloat16), 'w': jnp.full((2, 3), value, jnp.float32)},
        'vision': jnp.ones(2),
    }
    optimizer = make_optimizer(OptimizerSettings(0.1, frozen=('vision',)), params, 10)
    grads = jax.tree.map(jnp.ones_like, params)
    return {'params': params, 'opt_state': optimizer.update(grads, optimizer.init(params), params)[1]}


def saved(folder, *steps, keep=9):
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(step, arrays(step), {'stage': 'main', 'step': step, 'data': {'next': np.int64(step)}})
    checkpoints.wait()
    return checkpoints


def steps_on_disk(folder):
    return sorted(int(place.name) for place in folder.iterdir())


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert [x.dtype for x in jax.tree.leaves(a)] == [x.dtype for x in jax.tree.leaves(b)]


def test_round_trip(tmp_path):
    assert Checkpoints(tmp_path / 'none', 1).latest() is None
    saved(tmp_path, 3, 7)
    again = Checkpoints(tmp_path, 9)
    assert again.latest() == {'stage': 'main', 'step': 7, 'data': {'next': 7}}
    assert_equal(again.restore(arrays(0)), arrays(7))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), arrays(0))
    assert_equal(again.restore(abstract), arrays(7))
    assert_equal(again.restore({'params': arrays(0)['params']}), {'params': arrays(7)['params']})


def test_arrays_may_be_donated_as_soon_as_save_returns(tmp_path):
    step = jax.jit(lambda x: jax.tree.map(lambda y: y + 1, x), donate_argnums=0)
    checkpoints, x = Checkpoints(tmp_path, 1), {'x': jnp.zeros(1 << 20), 'y': jnp.zeros((1 << 10, 1 << 8))}
    for i in range(3):
        checkpoints.save(i, x, {})
        for _ in range(20):
            x = step(x)
        checkpoints.latest()
        for leaf in jax.tree.leaves(checkpoints.restore(x)):
            np.testing.assert_array_equal(leaf, 20.0 * i)


def test_the_newest_are_kept(tmp_path):
    saved(tmp_path, 1, 2, 10, 11, keep=2)
    assert steps_on_disk(tmp_path) == [10, 11]


@pytest.mark.parametrize(
    'damage', ['truncate', 'flip', 'missing', 'no manifest', 'half a manifest', 'no object', 'another sum', 'extra']
)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage):
    saved(tmp_path, 1, 2)
    place = tmp_path / '00000002' / 'arrays'
    data = max((p for p in place.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)
    content = data.read_bytes()
    if damage == 'truncate':
        data.write_bytes(content[:-1])
    elif damage == 'flip':
        data.write_bytes(content[:9] + bytes([content[9] ^ 1]) + content[10:])
    elif damage == 'missing':
        data.unlink()
    elif damage == 'no manifest':
        (place / 'manifest.json').unlink()
    elif damage == 'half a manifest':
        (place / 'manifest.json').write_text((place / 'manifest.json').read_text()[:20])
    elif damage == 'no object':
        (place / 'manifest.json').write_text('[]')
    elif damage == 'another sum':
        manifest = json.loads((place / 'manifest.json').read_text())
        (place / 'manifest.json').write_text(json.dumps(manifest | {next(iter(manifest)): None}))
    else:
        (place / 'more').write_text('')
    again = Checkpoints(tmp_path, 1)
    with pytest.warns(UserWarning, match='00000002 is passed over: '):
        assert again.latest()['step'] == 1
    assert_equal(again.restore(arrays(0)), arrays(1))
    again.save(2, arrays(5), {'step': 2})  # in the place of the damaged one, which `keep` must not prefer
    assert again.latest()['step'] == 2
    assert steps_on_disk(tmp_path) == [2]


def test_an_abandoned_future_does_not_crowd_out_the_present(tmp_path):
    saved(tmp_path, 1, 5)
    (tmp_path / '00000005' / 'arrays' / 'description.json').write_text('{}')
    again = Checkpoints(tmp_path, 1)
    with pytest.warns(UserWarning, match=r'description\.json is damaged'):
        assert again.latest()['step'] == 1
    again.save(3, arrays(3), {'step': 3})
    again.wait()
    assert steps_on_disk(tmp_path) == [3]


def test_all_damaged_means_none(tmp_path):
    saved(tmp_path, 1)
    (tmp_path / '00000001' / 'arrays' / 'manifest.json').unlink()
    again = Checkpoints(tmp_path, 1)
    with pytest.warns(UserWarning, match='it was not finished'):
        assert again.latest() is None
    with pytest.raises(FileNotFoundError, match='no whole checkpoint'):
        again.restore(arrays(0))


def test_another_model_is_refused(tmp_path):
    checkpoints = saved(tmp_path, 1)
    checkpoints.latest()
    wider = arrays(0)
    wider['params']['text']['w'] = jnp.zeros((2, 4))
    with pytest.raises(ValueError, match=r'params.text.w is float32\[2, 3\], expected float32\[2, 4\]'):
        checkpoints.restore(wider)
    with pytest.raises(ValueError, match='lacks 1 arrays of this model, such as ema'):
        checkpoints.restore({**arrays(0), 'ema': jnp.zeros(1)})


def test_settings_and_descriptions_that_cannot_work(tmp_path):
    with pytest.raises(ValueError, match='keep_checkpoints is 0'):
        Checkpoints(tmp_path, 0)
    with pytest.raises(TypeError, match='expected JSON'):
        Checkpoints(tmp_path, 1).save(1, arrays(1), {'data': {1, 2}})


def test_a_failed_write_is_told_and_loses_nothing(tmp_path, monkeypatch):
    checkpoints = saved(tmp_path, 1, keep=1)

    def full(place):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('rarl_jax.runtime.checkpoints._sums', full)
    checkpoints.save(2, arrays(2), {'step': 2})
    with pytest.raises(ValueError, match=r'00000002 could not be written .*No space left'):
        checkpoints.wait()
    monkeypatch.undo()
    assert not (tmp_path / '00000002').exists()
    again = Checkpoints(tmp_path, 1)
    assert again.latest()['step'] == 1
    again.save(2, arrays(2), {'step': 2})
    assert again.latest()['step'] == 2
    assert steps_on_disk(tmp_path) == [2]  # what was written in vain is gone


WRITER = textwrap.dedent("""
    import itertools, sys
    import jax.numpy as jnp
    from pathlib import Path
    from rarl_jax.runtime.checkpoints import Checkpoints

    checkpoints = Checkpoints(Path(sys.argv[1]), 2)
    for step in itertools.count((checkpoints.latest() or {'step': 0})['step'] + 1):
        checkpoints.save(step, {'x': jnp.full(300_000, step), 'y': jnp.full(7, step)}, {'step': step})
        print(step, flush=True)
""")


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path):
    """kill -9 while checkpoints are being written, several times: the newest good one is whole and no older than what had been saved."""
    like = {'x': jnp.zeros(300_000, int), 'y': jnp.zeros(7, int)}
    environment = os.environ | {'PYTHONPATH': str(Path(__file__).parents[3])}
    newest = 0
    for delay in (0.0, 0.013, 0.031, 0.057):
        command = [sys.executable, '-W', 'ignore', '-c', WRITER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as writer:
            seen = [int(writer.stdout.readline()) for _ in range(3)]
            time.sleep(delay)
            writer.send_signal(signal.SIGKILL)
        checkpoints = Checkpoints(tmp_path, 2)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            step = checkpoints.latest()['step']
        assert step >= seen[-1] - 1 >= newest  # the last may still have been on its way
        for leaf in jax.tree.leaves(checkpoints.restore(like)):
            np.testing.assert_array_equal(leaf, step)
        newest = step


def test_description_is_plain_json(tmp_path):
    saved(tmp_path, 1)
    stored = json.loads((tmp_path / '00000001' / 'arrays' / 'description.json').read_text())
    assert stored['arrays']['params.text.norm'] == [[3], 'bfloat16']


def test_named_checkpoints_stay_beside_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.keep(skipped=1)
    for step in range(1, 7):
        if step in (2, 3):
            checkpoints.keep(best=step)  # the third is better than the second
        checkpoints.save(step, arrays(step), {'step': step})
    checkpoints.wait()
    assert steps_on_disk(tmp_path) == [1, 3, 5, 6] and checkpoints.kept == {'skipped': 1, 'best': 3}
    assert_equal(checkpoints.restore(arrays(0), 3), arrays(3))
    again = Checkpoints(tmp_path, 2)  # a process that goes on knows of it from its caller
    assert again.latest() == {'step': 6}
    again.keep(skipped=5, best=3)
    again.save(7, arrays(7), {'step': 7})
    again.wait()
    assert steps_on_disk(tmp_path) == [3, 5, 6, 7]
    next((tmp_path / '00000003' / 'arrays').glob('d/*')).write_bytes(b'')
    with pytest.raises(ValueError, match=r'00000003 is needed, but .* is damaged'):
        again.restore(arrays(0), 3)
    with pytest.raises(ValueError, match='00000004 is needed, but it is not there: a run keeps its newest'):
        again.restore(arrays(0), 4)
