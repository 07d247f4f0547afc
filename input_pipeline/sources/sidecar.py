"""The sidecar: one JSON file beside AI4VA's, with what its public release lacks.

Keyed by image file name and annotation id; every field is optional and null means absent. An unknown key is an error:

    {"version": 1,
     "pages": {"NAME.png": {"series": "Placid et Muzo", "reading_direction": "left_to_right" | "right_to_left", "description": "...",
                            "annotations": {"123": {"action": "running", "identity": "Placid",    a character's
                                                    "text": "Look out!",                          a balloon's or lettering's
                                                    "reading_order": 0,                           a panel's or a balloon's, from 0
                                                    "speaker": 130,                               a balloon's: annotation id of the character
                                                    "round": true, "description": "..."}}}}}      a panel's
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from input_pipeline.sources.reading import read_json

VERSION = 1
PAGE_FIELDS: dict[str, type] = {'series': str, 'reading_direction': str, 'description': str, 'annotations': dict}
ANNOTATION_FIELDS: dict[str, type | tuple[type, ...]] = {
    'action': str,
    'identity': str,
    'text': str,
    'description': str,
    'reading_order': int,
    'speaker': (int, str),
    'round': bool,
}
READING_DIRECTIONS = ('left_to_right', 'right_to_left')


def read_sidecar(path: Path) -> dict[str, dict[str, Any]]:
    """The sidecar's pages by image file name, checked key by key; {} where there is no sidecar."""
    if not path.is_file():
        return {}
    content = read_json(path)
    if not isinstance(content, dict) or content.get('version') != VERSION or not isinstance(content.get('pages'), dict):
        raise ValueError(
            f'{path} is not a sidecar of version {VERSION}: expected {{"version": {VERSION}, "pages": {{...}}}}.'
        )
    for name, page in content['pages'].items():
        _check_fields(path, name, page, PAGE_FIELDS)
        direction = page.get('reading_direction')
        if direction is not None and direction not in READING_DIRECTIONS:
            raise ValueError(
                f'{path}: page {name}: reading_direction is {direction!r}, expected one of {READING_DIRECTIONS}.'
            )
        for key, fields in (page.get('annotations') or {}).items():
            _check_fields(path, f'{name}, annotation {key}', fields, ANNOTATION_FIELDS)
    return content['pages']


def _check_fields(path: Path, where: str, fields: Any, expected: Mapping[str, Any]) -> None:
    if not isinstance(fields, dict):
        raise ValueError(
            f'{path}: {where}: found {type(fields).__name__}, expected an object with keys among {sorted(expected)}.'
        )
    for key, value in fields.items():
        if key not in expected:
            raise ValueError(f'{path}: {where}: unknown key {key!r}, expected one of {sorted(expected)}.')
        right = value is None or isinstance(value, expected[key])
        if isinstance(value, bool) and expected[key] is not bool:
            right = False  # bool is an int to Python, and true is no reading order
        if not right:
            raise ValueError(f'{path}: {where}: {key} is {value!r}, expected {expected[key]}.')
