"""When a stage ends before its steps are done: windows worked by hand."""

import pytest

from rarl_jax.stages.ends import AdaptiveEnd, Collapse, Row, collapsed, is_stable

STABLE = AdaptiveEnd(window=3, zoom_rate=0.9, format=0.8, spread=0.1)


def rows(*figures):
    """(zoom rate, format, reward, entropy), all a step."""
    return [Row(*figure) for figure in figures]


def test_a_stage_of_fixed_length_is_never_stable():
    assert not is_stable(rows((1, 1, 2, 1)) * 50, AdaptiveEnd())


@pytest.mark.parametrize(
    ('zooms', 'forms', 'stable'),
    [
        ((0.0, 0.9, 0.95, 1.0), (0.1, 0.8, 0.85, 0.9), True),  # what came before the window does not count
        ((0.0, 0.85, 0.95, 1.0), (1, 1, 1, 1), False),  # often enough, but still rising by 0.15
        ((0.9, 0.89, 0.9, 0.89), (1, 1, 1, 1), False),  # the mean is below 0.9
        ((1, 1, 1, 1), (0.75, 0.8, 0.8, 0.79), False),  # of form
        ((1, 1), (1, 1), False),  # too few
    ],
)
def test_zooms_and_form_must_be_frequent_and_steady(zooms, forms, stable):
    assert is_stable(rows(*((z, f, 0, 0) for z, f in zip(zooms, forms, strict=True))), STABLE) == stable


def test_a_collapse_is_a_fall_from_the_best_window():
    watched = Collapse(window=2, reward_drop=1.0, zoom_drop=0.4, least_entropy=0.1)
    fine = rows((0.9, 1, 2, 1), (0.9, 1, 4, 1), (0.8, 1, 3, 1), (0.7, 1, 2, 1))
    assert collapsed(fine, watched) is None, 'best mean reward 3.5, last 2.5; a single low step is none'
    assert collapsed(fine[:1], watched) is None
    assert collapsed([*fine, Row(0.7, 1, 1, 1)], watched) == 'reward fell from 3.500 to 1.500, means of 2 steps'
    assert collapsed(rows((0.9, 1, 2, 1), (0.9, 1, 2, 1), (0.0, 1, 2, 1)), watched).startswith(
        'zoom_rate fell from 0.900'
    )
    assert collapsed(rows((0, 1, 2, 1), (0, 1, 2, 0.1), (0, 1, 2, 0.05)), watched).startswith('entropy is 0.0750')
    assert collapsed(rows((0, 1, 2, None), (0, 1, 2, 0.01), (0, 1, 2, None)), watched) is None, 'no token, no entropy'
    assert collapsed(rows((0, 1, 9, 1), (0, 1, 9, 0), (0, 1, 0, 0), (0, 1, 0, 0)), Collapse()) is None
    assert collapsed(rows((1, 1, 9, 1), (0, 1, 0, 1)), Collapse(window=1, least_entropy=0.5)) is None, (
        'only what has a bound'
    )


@pytest.mark.parametrize(
    ('made', 'told'),
    [
        (lambda: Collapse(window=3), 'collapse has .* expected a window and at least one bound'),
        (lambda: Collapse(reward_drop=1.0), 'collapse has .* expected a window'),
        (lambda: Collapse(window=3, zoom_drop=-1.0), r'collapse\.zoom_drop is -1'),
        (lambda: AdaptiveEnd(window=-1), r'adaptive_end\.window is -1'),
        (lambda: AdaptiveEnd(spread=2.0), r'adaptive_end\.spread is 2'),
    ],
)
def test_ends_that_cannot_be(made, told):
    with pytest.raises(ValueError, match=told):
        made()
