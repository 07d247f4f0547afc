import pytest

from rarl_jax.report import charts
from rarl_jax.report.workdir import Series, Stage


@pytest.mark.parametrize(
    ('low', 'high', 'ticks'),
    [
        (0, 1, [0, 0.5, 1.0]),
        (0.31, 0.79, [0.2, 0.4, 0.6, 0.8]),
        (-3, 97, [-50, 0, 50, 100]),
        (0, 0, [0, 0.5, 1.0]),
        (1e-7, 3e-7, [1e-7, 1.5e-7, 2e-7, 2.5e-7, 3e-7]),
    ],
)
def test_ticks_are_round_and_cover(low, high, ticks):
    assert charts.nice_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize('value', [5.0, -5.0, 1e-9, 1e12])
def test_a_flat_line_has_an_axis(value):
    ticks = charts.nice_ticks(value, value)
    assert ticks[0] <= value <= ticks[-1] and len(ticks) >= 2


def test_smoothing_starts_at_the_first_value_and_keeps_a_constant():
    assert charts.smooth([3.0] * 5) == pytest.approx([3.0] * 5)
    assert charts.smooth([0.0, 1.0]) == pytest.approx([0.0, 0.2 / 0.36])


def test_thinning_keeps_the_mean():
    values = [float(i) for i in range(1000)]
    thinned = charts.thin(values, 10)
    assert len(thinned) == 10 and thinned[0] == 49.5 and sum(thinned) / 10 == 499.5
    assert charts.thin([1.0, 2.0], 10) == [1.0, 2.0]


@pytest.mark.parametrize(
    ('value', 'text'),
    [
        (0.0, '0'),
        (0.5, '0.5'),
        (1234.0, '1234'),
        (20_980.0, '20.98k'),
        (3.2e6, '3.2M'),
        (2e-6, '2.0e-06'),
        (-0.25, '-0.25'),
    ],
)
def test_numbers_are_short(value, text):
    assert charts.short(value) == text


def test_a_line_by_hand():
    """Two points from corner to corner of the plot."""
    chart = charts.draw('x', {0: Series((0, 10), (0, 1))}, [Stage('a', 0), Stage('b', 5)])
    assert chart.lines[0].points == f'{charts.LEFT}.0,{charts.BOTTOM}.0 {charts.RIGHT}.0,{charts.TOP}.0'
    assert chart.lines[0].faint == '' and chart.lines[0].last == '1'
    assert [(mark.text, mark.at) for mark in chart.marks] == [
        ('a', charts.LEFT),
        ('b', (charts.LEFT + charts.RIGHT) / 2),
    ]


def test_a_single_point_can_be_drawn():
    assert charts.draw('x', {0: Series((3,), (0.2,))}, []).lines[0].points


def test_long_lines_are_smoothed_and_thinned():
    line = charts.draw('x', {0: Series(tuple(range(5000)), tuple(float(i % 2) for i in range(5000)))}, []).lines[0]
    assert len(line.points.split()) == charts.MOST_POINTS and line.faint


@pytest.mark.parametrize(
    'starts', [(0, 0, 50), (0, 1, 99), (0, 50, 100), (0, 2, 4, 6, 100), (0, 33, 66, 100, 100), (0, 97, 98, 99)]
)
@pytest.mark.parametrize('name', ['sft', 'warm_start', 'a_stage_with_a_name_that_is_long_by_any_measure'])
def test_stage_names_neither_overlap_nor_leave_the_chart(starts, name):
    stages = [Stage(f'{name}_{i}', start) for i, start in enumerate(starts)]
    marks = charts.draw('x', {0: Series((0, 100), (0, 1))}, stages).marks
    assert [mark.at for mark in marks] == sorted({mark.at for mark in marks})
    assert ', '.join(mark.text for mark in marks) == ', '.join(stage.name for stage in stages)
    edge = 0.0
    for mark in marks:
        width = charts.LETTER * len(mark.label)
        left = mark.at - width if mark.anchor == 'end' else mark.at
        if mark.label:
            assert left >= edge and left + width <= charts.WIDTH
            edge = left + width


def test_a_constant_is_told_from_a_curve():
    assert charts.constant({0: Series((0, 1), (2.0, 2.0)), 1: Series((0,), (2.0,))}) == 2.0
    assert charts.constant({0: Series((0, 1), (2.0, 2.0)), 1: Series((0,), (3.0,))}) is None
