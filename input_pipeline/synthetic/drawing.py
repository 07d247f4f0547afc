"""Drawing of one comic page: paper, panels, scenery, round-bodied figures, balloons, sound words, print noise.

The figures are rubber-hose creatures of one colour. Colour and headgear say who it is and can be seen from afar; what it does is told by thin
ink lines (arms, eyes, a prop) inside the body, so the reader has to come near. The outline does not depend on the action.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PixelBox = tuple[int, int, int, int]  # x1, y1, x2, y2; px of the page
Point = tuple[float, float]  # x, y

INK = (32, 26, 30)
PAPER = (250, 247, 238)
SCALE = 2  # figures are drawn this much larger and reduced, for smooth edges


@dataclass(frozen=True)
class Costume:
    """How one identity looks."""

    colour: tuple[int, int, int]  # RGB of the body
    headgear: str  # 'ears', 'horns', 'tuft', 'hat', 'antenna', 'crown', 'bow', 'cap'


CAST: dict[str, Costume] = {
    'Ruby': Costume((222, 52, 52), 'ears'),
    'Amber': Costume((246, 138, 30), 'horns'),
    'Sunny': Costume((252, 214, 40), 'tuft'),
    'Fern': Costume((62, 172, 72), 'hat'),
    'Cyan': Costume((70, 206, 222), 'antenna'),
    'Azur': Costume((66, 104, 232), 'crown'),
    'Violet': Costume((150, 70, 200), 'bow'),
    'Rose': Costume((248, 142, 190), 'cap'),
}
LINES = (
    'Look out!', 'Not again!', 'Where to?', 'A fine day!', 'Who is there?', 'Come back!', 'I knew it!', 'Oh no!', 'This way!', 'Wait for me!',
    'At last!', 'What a mess!', 'All aboard!', 'Shh, quiet!', 'My hat!', 'So hungry...', 'Follow me!', 'Good night!', 'Is it far?', 'Hooray!',
)  # fmt: skip
SOUNDS = ('BANG', 'SPLASH', 'CRACK', 'ZOOM', 'THUD', 'RING', 'WHOOSH', 'SNAP')
ACTIONS = ('cheering', 'waving', 'pointing', 'reading', 'sleeping', 'drinking', 'running', 'juggling')


def _points(size: tuple[int, int], pairs: list[Point], mirror: bool) -> list[Point]:
    w, h = size
    return [((1 - x if mirror else x) * w, y * h) for x, y in pairs]


# Ears, hats and the like in the upper fifth of the sprite, all reaching its upper edge.
_HEADGEAR: dict[str, list[list[Point]]] = {
    'ears': [[(0.2, 0.3), (0.18, 0), (0.42, 0.2)], [(0.8, 0.3), (0.82, 0), (0.58, 0.2)]],
    'horns': [[(0.3, 0.22), (0.12, 0), (0.42, 0.16)], [(0.7, 0.22), (0.88, 0), (0.58, 0.16)]],
    'tuft': [[(0.4, 0.2), (0.3, 0.02), (0.45, 0.1), (0.5, 0), (0.55, 0.1), (0.7, 0.02), (0.6, 0.2)]],
    'hat': [[(0.25, 0.2), (0.5, 0), (0.75, 0.2)]],
    'antenna': [[(0.48, 0.2), (0.42, 0), (0.58, 0), (0.52, 0.2)]],
    'crown': [[(0.3, 0.2), (0.28, 0), (0.4, 0.09), (0.5, 0), (0.6, 0.09), (0.72, 0), (0.7, 0.2)]],
    'bow': [[(0.5, 0.11), (0.27, 0), (0.27, 0.2)], [(0.5, 0.11), (0.73, 0), (0.73, 0.2)]],
    'cap': [[(0.3, 0.2), (0.32, 0), (0.68, 0), (0.7, 0.14), (0.95, 0.18), (0.7, 0.2)]],
}


def _headgear(draw: ImageDraw.ImageDraw, kind: str, size: tuple[int, int], colour, line: int) -> None:
    for shape in _HEADGEAR[kind]:
        points = _points(size, shape, False)
        draw.polygon(points, fill=colour)
        draw.line([*points, points[0]], fill=INK, width=line, joint='curve')


# The two arms of each action as lines through unit coordinates of the sprite.
_LEFT, _RIGHT = (0.24, 0.6), (0.76, 0.6)
_DOWN = [_LEFT, (0.17, 0.7), (0.27, 0.8)]
_ARMS: dict[str, list[list[Point]]] = {
    'cheering': [[_LEFT, (0.14, 0.48), (0.22, 0.3)], [_RIGHT, (0.86, 0.48), (0.78, 0.3)]],
    'waving': [_DOWN, [_RIGHT, (0.87, 0.5), (0.78, 0.3)]],
    'pointing': [_DOWN, [(0.6, 0.63), (0.76, 0.63), (0.95, 0.63)]],
    'reading': [[_LEFT, (0.24, 0.76), (0.36, 0.76)], [_RIGHT, (0.76, 0.76), (0.64, 0.76)]],
    'sleeping': [[_LEFT, (0.4, 0.72), (0.62, 0.66)], [_RIGHT, (0.6, 0.72), (0.38, 0.66)]],
    'drinking': [_DOWN, [_RIGHT, (0.82, 0.68), (0.64, 0.58)]],
    'running': [[_LEFT, (0.2, 0.74), (0.4, 0.7)], [_RIGHT, (0.9, 0.66), (0.8, 0.5)]],
    'juggling': [[_LEFT, (0.2, 0.76), (0.34, 0.66)], [_RIGHT, (0.8, 0.76), (0.66, 0.66)]],
}


def _face(draw: ImageDraw.ImageDraw, action: str, size: tuple[int, int], mirror: bool, line: int) -> None:
    w, h = size
    for x in (0.38, 0.62):
        box = [(x - 0.05) * w, 0.3 * h, (x + 0.05) * w, 0.4 * h]
        if action == 'sleeping':
            draw.arc(box, 0, 180, fill=INK, width=line)
        else:
            draw.ellipse(box, fill=(255, 255, 255), outline=INK, width=max(1, line // 2))
            shift = -0.015 if mirror else 0.015
            draw.ellipse([(x + shift - 0.02) * w, 0.33 * h, (x + shift + 0.02) * w, 0.38 * h], fill=INK)
    if action in ('cheering', 'juggling'):
        draw.chord([0.4 * w, 0.4 * h, 0.6 * w, 0.54 * h], 0, 180, fill=INK)
    elif action in ('sleeping', 'running'):
        draw.ellipse([0.46 * w, 0.46 * h, 0.54 * w, 0.52 * h], outline=INK, width=line)
    else:
        draw.arc([0.4 * w, 0.4 * h, 0.6 * w, 0.52 * h], 20, 160, fill=INK, width=line)


# The thing in its hands and the marks around it, in line art only: nothing that shows from afar.
_PROPS: dict[str, list[list[Point]]] = {
    'reading': [
        [(0.35, 0.64), (0.5, 0.68), (0.65, 0.64), (0.65, 0.82), (0.5, 0.86), (0.35, 0.82), (0.35, 0.64)],
        [(0.5, 0.68), (0.5, 0.86)],
    ],
    'drinking': [[(0.46, 0.5), (0.48, 0.66), (0.62, 0.66), (0.64, 0.5), (0.46, 0.5)]],
    'sleeping': [[(0.68, 0.2), (0.8, 0.2), (0.68, 0.3), (0.8, 0.3)]],
    'waving': [[(0.66, 0.24), (0.68, 0.3)], [(0.9, 0.3), (0.92, 0.36)]],
    'running': [[(0.1, 0.5), (0.24, 0.5)], [(0.1, 0.55), (0.2, 0.55)], [(0.36, 0.84), (0.5, 0.78), (0.64, 0.88)]],
    'pointing': [[(0.86, 0.58), (0.95, 0.63), (0.86, 0.68)]],
}


def _prop(draw: ImageDraw.ImageDraw, action: str, size: tuple[int, int], mirror: bool, line: int) -> None:
    w, h = size
    for stroke in _PROPS.get(action, ()):
        draw.line(_points(size, stroke, mirror), fill=INK, width=line, joint='curve')
    if action == 'juggling':
        for x, y in ((0.3, 0.58), (0.5, 0.6), (0.7, 0.58)):
            draw.ellipse([(x - 0.04) * w, (y - 0.04) * h, (x + 0.04) * w, (y + 0.04) * h], outline=INK, width=line)


def figure_sprite(identity: str, action: str, width: int, height: int, mirror: bool, line: float) -> Image.Image:
    """Draws one figure that touches all four sides of its box.

    Args:
      identity: a name of `CAST`.
      action: one of `ACTIONS`.
      width: px of the sprite.
      height: px of the sprite.
      mirror: whether the action is drawn the other way round.
      line: px of the ink lines.

    Returns:
      RGBA image of (width, height).
    """
    costume = CAST[identity]
    size = (width * SCALE, height * SCALE)
    w, h = size
    stroke = max(1, round(line * SCALE))
    sprite = Image.new('RGBA', size, (*costume.colour, 0))
    draw = ImageDraw.Draw(sprite)
    for x in (0.2, 0.55):  # feet
        draw.ellipse([x * w, 0.9 * h, (x + 0.25) * w, h - 1], fill=costume.colour, outline=INK, width=stroke)
    draw.rounded_rectangle(
        [0, 0.14 * h, w - 1, 0.965 * h], radius=0.36 * w, fill=costume.colour, outline=INK, width=stroke
    )
    _headgear(draw, costume.headgear, size, costume.colour, stroke)
    _face(draw, action, size, mirror, stroke)
    _prop(draw, action, size, mirror, stroke)
    for arm in _ARMS[action]:
        points = _points(size, arm, mirror)
        draw.line(points, fill=INK, width=round(stroke * 1.2), joint='curve')
        x, y = points[-1]
        r = stroke * 1.3
        draw.ellipse([x - r, y - r, x + r, y + r], fill=(255, 255, 255), outline=INK, width=max(1, stroke // 2))
    return sprite.reduce(SCALE)


TINTS = ((236, 226, 205), (214, 226, 232), (226, 234, 214), (238, 220, 214), (226, 220, 234), (240, 236, 224))


def panel(rng: np.random.Generator, image: Image.Image, box: PixelBox, is_round: bool) -> None:
    """Frame, sky, ground and a little scenery in pale tints; nothing as bright as a figure."""
    x1, y1, x2, y2 = box
    w, h = x2 - x1, y2 - y1
    sky, ground = (TINTS[i] for i in rng.choice(len(TINTS), 2, replace=False))
    scene = Image.new('RGB', (w, h), sky)
    draw = ImageDraw.Draw(scene)
    horizon = int(h * rng.uniform(0.5, 0.8))
    grey = tuple(int(c * 0.86) for c in ground)
    for _ in range(int(rng.integers(0, 4))):  # houses or hills
        x, s = int(rng.integers(-20, w)), int(rng.integers(24, 80))
        if rng.random() < 0.5:
            draw.ellipse([x - s, horizon - s // 2, x + s, horizon + s], fill=grey)
        else:
            draw.rectangle([x, horizon - s, x + s, horizon], fill=grey, outline=(150, 145, 140))
            draw.polygon(
                [(x - 4, horizon - s), (x + s // 2, horizon - s * 3 // 2), (x + s + 4, horizon - s)], fill=grey
            )
            draw.rectangle([x + s // 3, horizon - s // 3, x + s // 2, horizon], fill=sky, outline=(150, 145, 140))
    draw.rectangle([0, horizon, w, h], fill=ground)
    draw.line([0, horizon, w, horizon], fill=(150, 145, 140), width=2)
    if rng.random() < 0.4:
        r = int(rng.integers(10, 22))
        x = int(rng.integers(0, w))
        draw.ellipse([x - r, 8, x + r, 8 + 2 * r], fill=(250, 246, 236), outline=(150, 145, 140))
    mask = Image.new('L', (w, h), 0)
    shape = ImageDraw.Draw(mask)
    (shape.ellipse if is_round else shape.rectangle)([0, 0, w - 1, h - 1], fill=255)
    image.paste(scene, (x1, y1), mask)
    frame = ImageDraw.Draw(image)
    (frame.ellipse if is_round else frame.rectangle)([x1, y1, x2 - 1, y2 - 1], outline=INK, width=3)


def balloon(rng, image: Image.Image, room: PixelBox, text: str, speaker: tuple[int, int]) -> PixelBox | None:
    """Draws a speech balloon inside `room` with its tail towards `speaker`; its box without the tail, or None if it does not fit. Pixels."""
    font = ImageFont.load_default(int(rng.integers(13, 17)))
    x1, y1, x2, y2 = font.getbbox(text)
    w, h = int(x2 - x1 + 22), int(y2 - y1 + 18)
    if room[2] - room[0] <= w or room[3] - room[1] <= h + 8:
        return None
    x = int(np.clip(speaker[0] - w // 2 + rng.integers(-30, 31), room[0], room[2] - w))
    y = int(rng.integers(room[1], room[3] - h - 7))
    draw = ImageDraw.Draw(image)
    foot = int(np.clip(speaker[0], x + 10, x + w - 10))
    tip = (int(np.clip(speaker[0], foot - 12, foot + 12)), min(y + h + 14, speaker[1] - 1))
    draw.ellipse([x, y, x + w - 1, y + h - 1], fill=(255, 255, 255), outline=INK, width=2)
    draw.polygon([(foot - 6, y + h - 5), (foot + 6, y + h - 5), tip], fill=(255, 255, 255))
    draw.line([(foot - 6, y + h - 4), tip, (foot + 6, y + h - 4)], fill=INK, width=2)
    draw.text((x + w / 2, y + h / 2), text, fill=INK, font=font, anchor='mm')
    return (x, y, x + w, y + h)


def sound_word(rng, image: Image.Image, room: PixelBox, word: str) -> PixelBox | None:
    """Draws an onomatopoeia in outlined letters inside `room`; its box, or None if it does not fit. Pixels."""
    font = ImageFont.load_default(int(rng.integers(24, 34)))
    x1, y1, x2, y2 = (int(v) for v in font.getbbox(word, stroke_width=2))
    w, h = x2 - x1, y2 - y1
    if room[2] - room[0] <= w or room[3] - room[1] <= h:
        return None
    x, y = int(rng.integers(room[0], room[2] - w)), int(rng.integers(room[1], room[3] - h))
    draw = ImageDraw.Draw(image)
    draw.text((x - x1, y - y1), word, fill=(255, 255, 255), font=font, stroke_width=2, stroke_fill=INK)
    return (x, y, x + w, y + h)


_SHEET = 1200  # px: side of the sheets of grain and blotches that pages are cut from; larger pages repeat them
_GRAIN = np.random.default_rng(0).standard_normal((_SHEET, _SHEET)).astype(np.float32)


def _blotches() -> np.ndarray:
    small = np.random.default_rng(1).standard_normal((300, 300)).astype(np.float32)
    big = np.asarray(Image.fromarray(small).resize((_SHEET, _SHEET), Image.Resampling.BICUBIC))
    return big / big.std()


_BLOTCH = _blotches()


def _cut(sheet: np.ndarray, x: int, y: int, w: int, h: int) -> np.ndarray:
    """The w x h px of a sheet that begin at (x, y); beyond its edge it begins anew."""
    if x + w <= _SHEET and y + h <= _SHEET:  # a view: indices would copy it, slowly
        return sheet[y : y + h, x : x + w]
    return sheet[np.ix_(np.arange(y, y + h) % _SHEET, np.arange(x, x + w) % _SHEET)]


def print_noise(rng, image: Image.Image, noise: float, blotch: float, ageing: float) -> Image.Image:
    """Prints the drawing on old paper: grain, blotches, yellowing from left to right, shade from top to bottom."""
    w, h = image.size
    x, y, u, v = (int(i) for i in rng.integers(0, [max(1, _SHEET - side) for side in (w, h, w, h)]))
    grain = _cut(_GRAIN, x, y, w, h) * noise + _cut(_BLOTCH, u, v, w, h) * blotch
    across = np.linspace(0, ageing / 255, w, dtype=np.float32)
    down = np.linspace(0, ageing / 255, h, dtype=np.float32)
    fading = (1 - down)[:, None], None, 1 - across  # the red pales towards the foot, the blue (to yellow) across
    return Image.merge('RGB', [_printed(*each) for each in zip(image.split(), (grain,) * 3, fading, strict=True)])


def _printed(ink: Image.Image, grain: np.ndarray, fading: np.ndarray | None) -> Image.Image:
    """One colour of a page with its grain [h, w] on top, and what is left of it after fading. A colour at a time lies side by side in memory."""
    printed = np.asarray(ink) + grain
    if fading is not None:
        printed *= fading
    return Image.fromarray(np.clip(printed, 0, 255, out=printed).astype(np.uint8))
