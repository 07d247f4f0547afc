"""README's pictures are those of the committed results."""

import pytest

from experiments.pictures import PICTURES, is_fresh
from experiments.readme import READMES


@pytest.mark.parametrize('name', PICTURES)
def test_a_picture_shows_the_committed_results(name):
    assert is_fresh(name), 'run python -m experiments.pictures'
    assert f'experiments/pictures/{name}.png' in READMES[0].read_text(encoding='utf-8')
