"""What stands in which panel."""

from input_pipeline.scene import make_scene, panel_of
from input_pipeline.schema import Balloon, Character, Page, Panel

SPLASH, INSET, BELOW = (0, 0, 400, 300), (250, 20, 380, 120), (0, 310, 400, 600)


def test_a_thing_belongs_to_the_panel_that_holds_most_of_it():
    panels = [SPLASH, BELOW]
    assert panel_of((10, 250, 60, 340), panels) == 0  # 50 px above the gutter, 30 below it
    assert panel_of((10, 290, 60, 400), panels) == 1
    assert panel_of((10, 301, 60, 309), panels) is None  # in the gutter
    assert panel_of((395, 10, 495, 60), panels) is None  # nearly all of it off the panels
    assert panel_of((10, 10, 20, 20), []) is None


def test_a_thing_in_a_nested_panel_belongs_to_the_inner_one():
    assert panel_of((260, 30, 300, 100), [SPLASH, INSET]) == 1
    assert panel_of((200, 30, 300, 100), [SPLASH, INSET]) == 0  # reaches out of it


def test_a_scene_sorts_everything_along_the_reading_order():
    page = Page(
        'p', 'p.png', 400, 600, 'test', 's', right_to_left=True,
        panels=(Panel('below', BELOW), Panel('left', (0, 0, 190, 300)), Panel('right', (200, 0, 400, 300))),
        characters=(Character('b', (300, 400, 350, 500)), Character('a', (10, 400, 60, 500)), Character('stray', (390, 590, 480, 680))),
        balloons=(Balloon('first', (300, 320, 390, 350)), Balloon('second', (20, 320, 90, 350)), Balloon('top', (20, 20, 90, 50))),
    )  # fmt: skip
    scene = make_scene(page)
    assert [panel.id for panel in scene.panels] == ['right', 'left', 'below']
    assert [[c.id for c in group] for group in scene.characters] == [[], [], ['a', 'b']]  # from left to right, always
    assert [[b.id for b in group] for group in scene.balloons] == [[], ['top'], ['first', 'second']]  # as they are read
    assert [(place.row, place.column) for place in scene.cells] == [(0, 1), (0, 0), (1, 0)]
