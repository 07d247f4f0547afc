"""The READMEs' figures are those of the committed result files."""

import pytest

from experiments.readme import READMES, filled


@pytest.mark.parametrize(
    ('path', 'blocks'), zip(READMES, (5, 1, 1, 2), strict=True), ids=('project', 'base', 'qwen3_vl', 'wider')
)
def test_a_readme_shows_the_committed_figures(path, blocks):
    text = path.read_text(encoding='utf-8')
    assert text.count('<!-- figures:') == blocks
    assert filled(text) == text, 'run python -m experiments.readme'


def test_an_older_figure_is_noticed():
    text = READMES[0].read_text(encoding='utf-8')
    assert filled(text.replace('| unit |', '| units |')) == text
