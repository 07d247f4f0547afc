"""Draws comic pages with exact annotations, in AI4VA's own file format.

A page is fully determined by the settings, the seed and its number, so processes draw pages in any order with one result.
`write_pages` leaves a folder that `ai4va.read` reads like the real one: pages in lossless WebP, COCO files, and the sidecar with what AI4VA's release lacks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from input_pipeline.synthetic import drawing
from input_pipeline.synthetic.drawing import PixelBox

FRAME = 4  # px that figures keep from their panel's edge


@dataclass(frozen=True)
class DrawSettings:
    """What the drawn pages look like and how hard they are."""

    width: int = 672  # px of the page
    height: int = 896  # px of the page
    panels: tuple[int, int] = (2, 5)  # least and most panels a page; at most 13
    figures: tuple[int, int] = (3, 6)  # least and most figures a page; at most 8 where the cast does not repeat
    figure_size: tuple[int, int] = (110, 160)  # px: least and most width and height of a figure, given room
    pair_rate: float = 0.8  # chance that a panel with a figure gets a second one, partly behind or before the first
    repeat_cast: bool = False  # whether one identity may appear in several panels of a page
    line: tuple[float, float] = (4.5, 6.0)  # px: width of the ink lines that tell the action
    noise: float = 7.0  # standard deviation of the print grain, of 255
    blotch: float = 6.0  # standard deviation of blotches some pixels wide, of 255, which a shrunken page keeps
    ageing: float = 16.0  # how much the paper yellows from left to right and pales from top to bottom, of 255
    round_rate: float = 0.15  # share of panels with at most one figure that are round vignettes
    balloon_rate: float = 0.5  # share of panels with a figure in which somebody speaks, where there is room
    sound_rate: float = 0.2  # share of panels with an onomatopoeia, where there is room


@dataclass
class Figure:
    """A drawn figure."""

    box: PixelBox  # of the pixels that are left visible
    identity: str
    action: str
    panel: int
    depth: float  # larger = farther, 0 = nearest of its panel


@dataclass
class Lettering:
    """A balloon or a sound word."""

    box: PixelBox
    text: str
    panel: int
    speaker: int | None = None  # index of the figure that speaks


@dataclass
class DrawnPage:
    """One page and all that is known of it. Panels are in reading order, and so are balloons."""

    image: Image.Image  # RGB
    panels: list[PixelBox]
    round_panels: list[bool] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    balloons: list[Lettering] = field(default_factory=list)
    sounds: list[Lettering] = field(default_factory=list)


def draw_page(seed: int, number: int, settings: DrawSettings) -> DrawnPage:
    """Draws page `number` of the series `seed`. ValueError where the settings ask for what cannot be drawn."""
    check(settings)
    rng = np.random.default_rng([seed, number])
    canvas = Canvas(settings.width, settings.height)
    page = DrawnPage(canvas.image, layout(rng, settings))
    casts = cast_panels(rng, settings, len(page.panels))
    lines = list(rng.permutation(drawing.LINES))
    for panel, names in enumerate(casts):
        page.round_panels.append(bool(len(names) < 2 and rng.random() < settings.round_rate))
        drawing.panel(rng, canvas.image, page.panels[panel], page.round_panels[panel])
        stand(rng, canvas, page, panel, names, settings)
        letter(rng, canvas, page, panel, lines, settings)
    page.image = drawing.print_noise(rng, canvas.image, settings.noise, settings.blotch, settings.ageing)
    return page


def check(settings: DrawSettings) -> None:
    """Raises ValueError, naming the setting, for what cannot be drawn."""
    sides, rates, grain = (200, 20_000), (0.0, 1.0), (0.0, 255.0)  # least and most that may be asked for
    figures = (0, 2 * 13 if settings.repeat_cast else len(drawing.CAST))
    bounds = {'width': sides, 'height': sides, 'panels': (1, 13), 'figures': figures, 'figure_size': (8, 20_000)}
    bounds |= {'line': (0.1, 100.0)} | dict.fromkeys(('noise', 'blotch', 'ageing'), grain)
    bounds |= dict.fromkeys(('pair_rate', 'round_rate', 'balloon_rate', 'sound_rate'), rates)
    for name, (least, most) in bounds.items():
        value = getattr(settings, name)
        values = value if isinstance(value, tuple) else (value,)
        if not all(least <= v <= most for v in values) or list(values) != sorted(values):
            hint = ', or repeat_cast for more' if name == 'figures' and not settings.repeat_cast else ''
            raise ValueError(f'draw.{name} is {value}, expected {least} to {most}, the least first{hint}.')


class Canvas:
    """The page being drawn, with the number of the figure that owns each pixel (0 = none)."""

    def __init__(self, width: int, height: int):
        self.image = Image.new('RGB', (width, height), drawing.PAPER)
        self.owner = np.zeros((height, width), np.int16)

    def paste(self, sprite: Image.Image, x: int, y: int, number: int) -> None:
        self.image.paste(sprite, (x, y), sprite)
        mask = np.asarray(sprite)[:, :, 3] > 127
        self.owner[y : y + mask.shape[0], x : x + mask.shape[1]][mask] = number

    def visible(self, number: int, box: PixelBox) -> PixelBox:
        """The box of the pixels inside `box` that still belong to a figure."""
        x1, y1, x2, y2 = box
        window = self.owner[y1:y2, x1:x2] == number
        xs, ys = np.flatnonzero(window.any(0)), np.flatnonzero(window.any(1))
        return (x1 + int(xs[0]), y1 + int(ys[0]), x1 + int(xs[-1]) + 1, y1 + int(ys[-1]) + 1)


def layout(rng: np.random.Generator, settings: DrawSettings) -> list[PixelBox]:
    """Cuts the page into rows and the rows into panels with uneven gutters; boxes in reading order."""
    n = int(rng.integers(settings.panels[0], settings.panels[1] + 1))
    rows = int(np.clip(rng.integers(2, 5), -(-n // 4), n))
    counts = np.ones(rows, int)
    while counts.sum() < n:  # one more panel for one of the rows with fewest
        counts[rng.choice(np.flatnonzero(counts <= counts.min() + int(rng.integers(2))))] += 1
    left, top, right, bottom = rng.integers(18, 34, 4)
    gutter = int(rng.integers(8, 18)) / 2
    edges = top + (settings.height - top - bottom) * _cuts(rng.uniform(0.85, 1.15, rows))
    boxes = []
    for row, count in enumerate(counts):
        columns = left + (settings.width - left - right) * _cuts(rng.uniform(0.8, 1.2, count))
        y1, y2 = int(edges[row] + gutter), int(edges[row + 1] - gutter)
        boxes += [(int(columns[i] + gutter), y1, int(columns[i + 1] - gutter), y2) for i in range(count)]
    return boxes


def _cuts(shares: np.ndarray) -> np.ndarray:
    return np.r_[0, np.cumsum(shares / shares.sum())]


def cast_panels(rng: np.random.Generator, settings: DrawSettings, panels: int) -> list[list[str]]:
    """Who stands in which panel: none, one or two of the cast."""
    wanted = int(rng.integers(settings.figures[0], settings.figures[1] + 1))
    counts = np.zeros(panels, int)
    counts[rng.permutation(panels)[:wanted]] = 1
    for panel in rng.permutation(panels):
        if counts.sum() < wanted and rng.random() < settings.pair_rate:
            counts[panel] += 1 if counts[panel] else 0
    names = list(rng.permutation(list(drawing.CAST)))
    if settings.repeat_cast:  # a page's story has four heroes
        return [[str(name) for name in rng.choice(names[:4], count, replace=False)] for count in counts]
    ends = np.cumsum(counts)
    return [[str(name) for name in names[end - count : end]] for end, count in zip(ends, counts, strict=True)]


def stand(rng, canvas: Canvas, page: DrawnPage, panel: int, names: list[str], settings: DrawSettings) -> None:
    """Puts a panel's figures in, the farther one first, so that the nearer hides a part of it."""
    if not names:
        return
    first = len(page.figures)
    spots = _spots(rng, page.panels[panel], len(names), page.round_panels[panel], settings.figure_size)
    for depth, (name, (x, y, w, h)) in enumerate(zip(names, spots, strict=True)):
        action = str(rng.choice(drawing.ACTIONS))
        sprite = drawing.figure_sprite(name, action, w, h, bool(rng.integers(2)), rng.uniform(*settings.line))
        canvas.paste(sprite, x, y, len(page.figures) + 1)
        page.figures.append(Figure((x, y, x + w, y + h), name, action, panel, float(len(names) - 1 - depth)))
    for i in range(first, len(page.figures)):
        page.figures[i].box = canvas.visible(i + 1, page.figures[i].box)


def _spots(rng, panel: PixelBox, count: int, is_round: bool, sizes: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """(x, y, width, height) of each figure of a panel, from far to near."""
    x1, y1, x2, y2 = panel
    across, down = x2 - x1 - 2 * FRAME, y2 - y1 - 2 * FRAME
    if is_round:  # the largest box inside an ellipse
        across, down = int(across * 0.68), int(down * 0.68)
    width = int(min(rng.integers(sizes[0], sizes[1] + 1), across / (1.85 if count == 2 else 1.0)))
    height = int(min(max(0.8 * width, min(rng.integers(sizes[0], sizes[1] + 1), 1.3 * width)), down))
    if is_round:
        return [((x1 + x2 - width) // 2, (y1 + y2 - height) // 2, width, height)]
    floor = y2 - FRAME - height - int(rng.integers(0, down - height + 1) * 0.6)
    if count == 1:
        return [(x1 + FRAME + int(rng.integers(0, across - width + 1)), floor, width, height)]
    step = int(width * rng.uniform(0.72, 0.82))
    left = x1 + FRAME + int(rng.integers(0, across - step - width + 1))
    behind = floor - int(rng.integers(0, min(14, floor - y1 - FRAME) + 1))
    far, near = (0, step) if rng.random() < 0.5 else (step, 0)
    return [(left + far, behind, width, height), (left + near, floor, width, height)]


def letter(rng, canvas: Canvas, page: DrawnPage, panel: int, lines: list[str], settings: DrawSettings) -> None:
    """A balloon and a sound word above the figures, where a panel has room for them."""
    if page.round_panels[panel]:
        return
    x1, y1, x2, y2 = page.panels[panel]
    speakers = [i for i, figure in enumerate(page.figures) if figure.panel == panel]
    ceiling = min([page.figures[i].box[1] for i in speakers], default=y2 - FRAME)
    room = (x1 + FRAME, y1 + FRAME, x2 - FRAME, ceiling - FRAME)
    if speakers and lines and rng.random() < settings.balloon_rate:
        speaker = int(rng.choice(speakers))
        head = page.figures[speaker].box
        box = drawing.balloon(rng, canvas.image, room, lines[-1], ((head[0] + head[2]) // 2, head[1]))
        if box is not None:
            page.balloons.append(Lettering(box, str(lines.pop()), panel, speaker))
            return
    if rng.random() < settings.sound_rate:
        word = str(rng.choice(drawing.SOUNDS))
        box = drawing.sound_word(rng, canvas.image, room, word)
        if box is not None:
            page.sounds.append(Lettering(box, word, panel))
