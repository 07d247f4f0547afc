"""Trivial pages in AI4VA's format for the tests: flat colours, no drawing."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

IDENTITIES = ('Ann', 'Bob', 'Cleo', 'Dan')
ACTIONS = ('running', 'sitting', 'waving', 'falling', 'jumping')
CATEGORIES = ('panel', 'character', 'speech balloon', 'object')


def write_folder(
    folder: Path,
    pages: int = 6,
    sidecar: bool = True,
    size: tuple[int, int] = (400, 560),
    file: str = 'train-annotations.json',
) -> Path:
    """A folder of pages with a 2 x 2 grid of panels, two characters and a balloon in each."""
    (folder / 'images').mkdir(parents=True, exist_ok=True)
    coco = {
        'images': [],
        'annotations': [],
        'categories': [{'id': i + 1, 'name': name} for i, name in enumerate(CATEGORIES)],
    }
    extra: dict = {'version': 1, 'pages': {}}
    for number in range(pages):
        name = f'Page_{number:03d}.png'
        Image.new('RGB', size, (number * 7 % 256, 90, 120)).save(folder / 'images' / name)
        coco['images'].append({'id': number, 'file_name': name, 'width': size[0], 'height': size[1]})
        fields = _draw_annotations(coco['annotations'], number, size)
        extra['pages'][name] = {'series': 'Test', 'reading_direction': 'left_to_right', 'annotations': fields}
    (folder / file).write_text(json.dumps(coco))
    if sidecar:
        (folder / 'sidecar.json').write_text(json.dumps(extra))
    return folder


def _draw_annotations(annotations: list, page: int, size: tuple[int, int]) -> dict:
    width, height = size[0] // 2, size[1] // 2
    fields = {}

    def add(category: int, box: list[float], depth: float | None, **known) -> str:
        key = len(annotations)
        attributes = {} if depth is None else {'Interdepth': depth, 'Intradepth': 0}
        annotations.append(
            {
                'id': key,
                'image_id': page,
                'category_id': category,
                'bbox': box,
                'segmentation': [],
                'attributes': attributes,
            }
        )
        if known:
            fields[str(key)] = known
        return str(key)

    for panel in range(4):
        x, y = panel % 2 * width + 5, panel // 2 * height + 5
        add(1, [x, y, width - 10, height - 10], None, reading_order=panel)
        first = add(
            2, [x + 10, y + 100, 60, 120], 1 + (page + panel) % 2 * 2,
            identity=IDENTITIES[panel], action=ACTIONS[(page + panel) % 5],
        )  # fmt: skip
        add(
            2, [x + 110, y + 100, 60, 120], 2,
            identity=IDENTITIES[(panel + 1 + page % 2) % 4], action=ACTIONS[(page * 2 + panel) % 5],
        )  # fmt: skip
        add(
            3,
            [x + 20, y + 10, 120, 50],
            None,
            text=f'Line {panel} of page {page}',
            reading_order=panel,
            speaker=int(first),
        )
        add(4, [x + 80, y + 200, 20, 20], 5)
    return fields
