"""How figures are told: rounded as they should be, and what is not shown says so."""

from dataclasses import replace

import pytest

from experiments import charts, plots, tables
from experiments.results import Difference, Results
from experiments.tables import Row
from rarl_jax.evaluation.statistics import Interval, Paired
from tests.experiments.test_results import TWO, run

SURE = Difference(
    'action_recognition',
    0.25,
    0.5,
    (0.2, 0.25, 0.3),
    Interval(0.25, 0.1258, 0.3742),
    Paired(60, 0.25, 0.2, 0.3, 0.001, None),
    0.002,
)
UNSURE = replace(SURE, task='depth_comparison', seeds=Interval(-0.02, -0.11, 0.07), p=0.4)


def test_a_difference_is_told_with_its_interval():
    assert tables.told([SURE, UNSURE]) == 'action +25.0 [+12.6, +37.4], depth -2.0 [-11.0, +7.0] (not shown)'
    assert tables.span(SURE.seeds, scale=1, digits=3) == '+0.250 [+0.126, +0.374]'


def test_a_table_has_the_digits_of_what_it_compares():
    [row] = tables.paired([SURE], 'old', 'new', 'IoU', 1, 3).to_dict('records')
    assert (row['old: IoU'], row['Δ'], row['95 % over seeds']) == ('0.250', '+0.250', '+0.126 to +0.374')


def test_what_is_told_by_seeds_alone_is_adjusted_for_all_of_it():
    """The first by itself has p = 0.04: beside another it is not shown."""
    alike = (0.02, 0.035, 0.0195)
    assert 'not shown' not in tables.by_seeds({'a': alike})['a']
    told = tables.by_seeds({'a': alike, 'b': (0.01, -0.02, 0.0)})
    assert told['a'].startswith('+2.5 [') and told['a'].endswith('] (not shown)') and 'not shown' in told['b']


def test_only_what_is_shown_is_listed():
    assert tables.shown({'slow': [SURE, UNSURE], 'fast': [UNSURE]}) == 'slow (action +25.0)'
    assert tables.shown({'fast': [UNSURE]}) == 'none'


def test_scores_are_told_with_their_range():
    found = Results(
        TWO, tuple(run('old', seed, [1.0] * right + [0.0] * (10 - right)) for seed, right in enumerate((5, 6, 8)))
    )
    rows = [Row('the old one', 'old', 'rarl:zoom', plots.BLUE)]
    table = tables.scores(found, rows, ('action_recognition',))
    assert table.loc['the old one'].to_dict() == {'action, %': '63.3 (50.0–80.0)'}


def test_differences_are_drawn_a_panel_a_task_and_red_where_shown():
    found = Results(TWO, (run('old', 0, []),))
    figure = charts.differences(found, {'slow': [SURE, UNSURE], 'fast': [replace(SURE, p=0.2), UNSURE]})
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ['slow', 'fast']
    means = [line.get_color() for line in left.lines if line.get_marker() == 'o']
    assert means == [plots.RED, plots.GREY]
    assert left.get_title('left') == 'action: difference in points'
    assert right.get_title('left') == 'depth: difference in points'


def test_curves_have_a_panel_a_metric_and_panels_left_over_are_hidden():
    metrics = {'step': [1, 2], 'reward/total': [1.0, 2.0]}
    found = Results(TWO, (run('old', 0, [], metrics), run('new', 0, [], metrics)))
    figure = charts.training(found, {'old': plots.BLUE, 'new': plots.RED}, {'reward/total': 'reward'}, columns=2)
    assert [axis.get_visible() for axis in figure.axes] == [True, False]
    assert [line.get_color() for line in figure.axes[0].lines] == [plots.BLUE, plots.RED]
    with pytest.raises(KeyError):
        charts.training(found, {'old': plots.BLUE}, {'reward/totl': 'reward'})


def test_names_beside_lines_stay_apart_and_below_the_top():
    """Two ends at one height, near the top: one name goes up as far as there is room, the other makes way downwards."""
    _, [axis] = plots.panels(1)
    axis.set(xlim=(0, 1), ylim=(0, 1))
    plots.label_ends(axis, 1, [(0.99, 'first', plots.BLUE), (0.99, 'second', plots.RED), (0.2, 'third', plots.GREY)])
    heights = {text.get_text(): text.xy[1] for text in axis.texts}
    assert heights['third'] == 0.2 and heights['second'] == 1.0
    assert 0.05 < heights['second'] - heights['first'] < 0.2
