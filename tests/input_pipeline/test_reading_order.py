"""Reading order by geometry on layouts that naive sorting gets wrong."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline import reading_order
from input_pipeline.reading_order import OVERLAP, Cell, area, find_cells, intersection, order_boxes, order_panels
from input_pipeline.schema import Page, Panel

GRID = {'a': (0, 0, 90, 90), 'b': (100, 0, 190, 90), 'c': (0, 100, 90, 190), 'd': (100, 100, 190, 190)}
FULL_HEIGHT = {'tall': (0, 0, 90, 300), 'x': (100, 0, 190, 90), 'y': (100, 100, 190, 190), 'z': (100, 200, 190, 300)}
# The left panel of each row is lower than its neighbour: sorting by y, then x, would read b before a.
STAGGERED = {'a': (0, 12, 90, 100), 'b': (100, 0, 190, 92), 'c': (0, 108, 90, 200), 'd': (100, 100, 190, 195)}
NESTED = {
    'splash': (0, 0, 200, 200),
    'inset': (130, 20, 180, 80),
    'inset2': (20, 120, 80, 180),
    'below': (0, 210, 200, 300),
}
# A round vignette bites into its row's neighbour and hangs a little into the next row.
ROUND = {'left': (0, 0, 120, 100), 'vignette': (105, 5, 205, 115), 'under': (0, 105, 205, 200)}
# Five panels around a centre: no straight line separates any of them.
PINWHEEL = {
    'n': (0, 0, 200, 90),
    'e': (210, 0, 300, 200),
    'm': (100, 100, 200, 200),
    'w': (0, 100, 90, 300),
    's': (100, 210, 300, 300),
}


@pytest.mark.parametrize(
    ('layout', 'right_to_left', 'expected'),
    [
        (GRID, False, 'a b c d'),
        (GRID, True, 'b a d c'),
        (FULL_HEIGHT, False, 'tall x y z'),
        (FULL_HEIGHT, True, 'x y z tall'),
        (STAGGERED, False, 'a b c d'),
        (STAGGERED, True, 'b a d c'),
        (NESTED, False, 'splash inset inset2 below'),
        (ROUND, False, 'left vignette under'),
        (ROUND, True, 'vignette left under'),
        (PINWHEEL, False, 'n e w m s'),
    ],
)
def test_order_of_awkward_layouts(layout, right_to_left, expected):
    names = list(layout)
    for shift in range(len(names)):  # whatever the order in which the source lists them
        turned = names[shift:] + names[:shift]
        order = order_boxes([layout[name] for name in turned], right_to_left)
        assert ' '.join(turned[i] for i in order) == expected


def page(boxes, **known):
    panels = tuple(Panel(name, box) for name, box in boxes.items())
    return Page('p', 'p.png', 400, 300, 'test', 's', panels=panels, **known)


DOUBLE = {
    'right top': (210, 0, 400, 100), 'right bottom': (210, 110, 400, 300),
    'left top': (0, 0, 190, 140), 'left bottom': (0, 150, 190, 300),
}  # fmt: skip


def test_double_page_reads_the_right_page_to_its_end_first():
    order = order_panels(page(DOUBLE, right_to_left=True, double=True))
    assert [panel.id for panel in order] == ['right top', 'right bottom', 'left top', 'left bottom']


def test_a_panel_across_the_spine_is_read_before_both_pages_below_it():
    spread = {
        'spread': (0, 0, 400, 90),
        'left': (0, 150, 190, 300),
        'r1': (210, 100, 400, 190),
        'r2': (210, 200, 400, 300),
    }
    order = order_panels(page(spread, right_to_left=True, double=True))
    assert [panel.id for panel in order] == ['spread', 'r1', 'r2', 'left']


def test_the_source_s_own_order_wins():
    panels = (Panel('first', (100, 100, 200, 200), order=0), Panel('second', (0, 0, 90, 90), order=1))
    assert order_panels(Page('p', 'p.png', 200, 200, 'test', 's', panels=panels)) == panels


def test_places_are_rows_and_columns_of_single_panels():
    boxes = [(0, 0, 200, 90), (0, 100, 90, 190), (100, 100, 200, 140), (100, 150, 200, 190)]
    assert find_cells(boxes) == [
        Cell(0, 2, 0, 1),
        Cell(1, 2, 0, 2),
        None,
        None,
    ]  # the stacked ones have no place in a row


def test_no_panels():
    assert order_boxes([], False) == []
    assert find_cells([]) == []


# --- The same as the definitions, pair by pair


def precedes(a, b, axis):
    return a[axis + 2] - b[axis] <= OVERLAP * min(b[axis + 2] - b[axis], a[axis + 2] - a[axis])


def plain_cut(boxes, axis):
    line = sorted(range(len(boxes)), key=lambda i: boxes[i][axis] + boxes[i][axis + 2])
    parts, start = [], 0
    for k in range(1, len(line) + 1):
        if k == len(line) or all(precedes(boxes[a], boxes[b], axis) for a in line[:k] for b in line[k:]):
            parts.append(line[start:k])
            start = k
    return parts


def reads_before(a, b):
    beside = not precedes(b, a, axis=1) and precedes(a, b, axis=0)
    return precedes(a, b, axis=1) or (beside and a[1] < (b[1] + b[3]) / 2)


def plain_one_by_one(boxes):
    left, ordered = list(range(len(boxes))), []
    while left:
        free = [i for i in left if not any(reads_before(boxes[j], boxes[i]) for j in left if j != i)]
        ordered.append(min(free or left, key=lambda i: (boxes[i][1], boxes[i][0])))
        left.remove(ordered[-1])
    return ordered


def plain_parents(boxes):
    parents = []
    for box in boxes:
        around = [
            j
            for j, other in enumerate(boxes)
            if other is not box and area(other) >= 1.5 * area(box) and intersection(box, other) >= 0.8 * area(box)
        ]
        parents.append(min(around, key=lambda j: area(boxes[j]), default=None))
    return parents


SIDE = st.integers(0, 12) | st.floats(0, 12)
BOXES = st.lists(st.builds(lambda x, y, w, h: (x, y, x + 0.5 + w, y + 0.5 + h), SIDE, SIDE, SIDE, SIDE), max_size=9)


@given(BOXES)
def test_cuts_parents_and_the_rest_are_what_the_definitions_say(boxes):
    everything = list(range(len(boxes)))
    for axis in (0, 1):
        assert reading_order._cut(everything, boxes, axis) == plain_cut(boxes, axis)
    assert reading_order._one_by_one(everything, boxes) == plain_one_by_one(boxes)
    assert reading_order._parents(boxes) == plain_parents(boxes)


@given(BOXES, st.booleans(), st.none() | st.floats(0, 20))
def test_every_box_is_read_once(boxes, right_to_left, spine):
    assert sorted(order_boxes(boxes, right_to_left, spine)) == list(range(len(boxes)))


def grid(i):
    return (i % 32 * 100, i // 32 * 100, i % 32 * 100 + 90, i // 32 * 100 + 90)


def spiral(i):
    """Each cut takes one box off the rest."""
    return (i, i, i + 0.9, 4000) if i % 2 else (i, i, 4000, i + 0.9)


def crowd(i):
    return (i * 7 % 900, i * 11 % 900, 1000 + i % 99, 1000 + i * 3 % 99)


def staircase(i):
    return (i, 1000 - i, i + 1.15, 1001.15 - i)


@pytest.mark.parametrize('layout', [grid, spiral, crowd, staircase])
def test_a_thousand_panels_take_seconds_at_most(layout):
    started = time.process_time()
    boxes = [tuple(map(float, layout(i))) for i in range(1000)]
    assert sorted(order_boxes(boxes, False)) == list(range(1000))
    assert len(find_cells(boxes)) == 1000
    assert time.process_time() - started < 10
