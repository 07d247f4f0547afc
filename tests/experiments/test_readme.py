"""README's figures are those of the committed result files."""

from experiments.readme import README, filled


def test_readme_shows_the_committed_figures():
    text = README.read_text(encoding='utf-8')
    assert text.count('<!-- figures:') == 2
    assert filled(text) == text, 'run python -m experiments.readme'


def test_an_older_figure_is_noticed():
    text = README.read_text(encoding='utf-8')
    assert filled(text.replace('| unit |', '| units |')) == text
