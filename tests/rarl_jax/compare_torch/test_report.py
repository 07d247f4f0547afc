"""What is said of two sides, on arrays made by hand; the comparison itself is in tests/parity."""

import dataclasses
import json

import numpy as np
import pytest

from rarl_jax.compare_torch.report import Report, compare_sides, relative, summary, write_json
from rarl_jax.compare_torch.talk import Greedy, Side


def side() -> Side:
    rng = np.random.default_rng(0)
    states = {name: rng.standard_normal((5, 8)) for name in ('vision block 0', 'merger', 'decoder layer 0', 'logits')}
    logits = rng.standard_normal((3, 8))
    pixels = (rng.standard_normal((4, 6)), rng.standard_normal((2, 6)))
    turn = {'greedy': Greedy(logits.argmax(-1), logits)}
    return Side(np.arange(5), pixels, np.arange(15).reshape(3, 5), states, turn)


def report(ours: Side) -> Report:
    return Report('here', 'there', 'float32', 1e-4, 'jax', tuple(compare_sides(ours, side(), 1e-4)))


def with_state(name: str, value: np.ndarray) -> Side:
    return dataclasses.replace(side(), states={**side().states, name: value})


def test_equal_sides_agree(tmp_path):
    found = report(side())
    assert found.verdict == 'agrees' and found.first_difference is None and found.largest.difference == 0
    assert summary(found).endswith('Verdict: agrees.')
    write_json(tmp_path / 'new' / 'comparison.json', found)
    told = json.loads((tmp_path / 'new' / 'comparison.json').read_text())
    assert told['verdict'] == 'agrees' and told['largest_difference'] == 0
    assert [row['what'] for row in told['rows']][:4] == ['ids', 'page pixels', 'crop pixels', 'positions']


def test_the_first_layer_that_differs_is_named(tmp_path):
    merger = side().states['merger']
    found = report(with_state('merger', merger * 1.001))
    assert (found.verdict, found.first_difference) == ('differs', 'merger')
    assert found.largest.difference == pytest.approx(1e-3, rel=1e-3)
    assert 'first at: merger' in summary(found)
    assert report(with_state('merger', merger * (1 + 9e-5))).verdict == 'agrees'


@pytest.mark.parametrize('value', [np.full((5, 8), np.nan), np.zeros((4, 8))], ids=['nan', 'shape'])
def test_what_is_no_number_differs(value, tmp_path):
    found = report(with_state('logits', value))
    assert found.first_difference == 'logits' and found.largest.difference is None
    assert 'another shape, or not a number' in summary(found)
    write_json(tmp_path / 'comparison.json', found)  # JSON knows no NaN
    assert json.loads((tmp_path / 'comparison.json').read_text())['largest_difference'] is None


@pytest.mark.parametrize('field', ['ids', 'positions', 'pixels'])
def test_inputs_must_be_equal_to_the_bit(field):
    value = getattr(side(), field)
    moved = tuple(np.nextafter(each, 9) for each in value) if field == 'pixels' else value + 1
    found = report(dataclasses.replace(side(), **{field: moved}))
    assert found.first_difference == {'pixels': 'page pixels'}.get(field, field)


def test_a_long_row_does_not_hide_a_short_one():
    reference = np.ones((20, 4))
    reference[0] *= 1e4
    ours = reference.copy()
    ours[7] *= 1.01
    assert relative(ours, reference) == pytest.approx(0.01)
    ours[8], reference[8] = 1e-9, 2e-9
    assert relative(ours, reference) == pytest.approx(0.01)  # nothing is nothing, whatever its rounding
