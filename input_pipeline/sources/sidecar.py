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

import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from input_pipeline.sources.reading import as_key, path_parts, read_json, whole

VERSION = 1
DIRECTIONS = ('left_to_right', 'right_to_left')


def _of(kind: type) -> Callable[[Any], Any]:
    return lambda value: value if isinstance(value, kind) else None


# key -> (what turns a value into the one that is meant, None for a value that cannot be meant; what is expected)
PAGE_FIELDS = {
    'series': (_of(str), 'a text'),
    'reading_direction': (lambda value: value if value in DIRECTIONS else None, ' or '.join(DIRECTIONS)),
    'description': (_of(str), 'a text'),
    'annotations': (_of(dict), 'an object'),
}
ANNOTATION_FIELDS = {
    **dict.fromkeys(('action', 'identity', 'text', 'description'), (_of(str), 'a text')),
    'reading_order': (whole, 'a whole number'),
    'speaker': (as_key, 'an annotation id'),
    'round': (_of(bool), 'true or false'),
}


def read_sidecar(path: Path) -> dict[str, dict[str, Any]]:
    """The sidecar's pages by path of their image file (with '/'), checked key by key, annotation ids spelled alike."""
    content = read_json(path, object)
    if (
        not isinstance(content, dict)
        or whole(content.get('version')) != VERSION
        or not isinstance(content.get('pages'), dict)
    ):
        raise ValueError(
            f'{path} is not a sidecar of version {VERSION}: expected {{"version": {VERSION}, "pages": {{...}}}}.'
        )
    pages: dict[str, dict[str, Any]] = {}
    for name, entry in content['pages'].items():
        page = _clean(f'{path}: page {name}', entry, PAGE_FIELDS)
        page['annotations'] = {
            as_key(key) or key: _clean(f'{path}: {name}, annotation {key}', facts, ANNOTATION_FIELDS)
            for key, facts in (page.get('annotations') or {}).items()
        }
        if pages.setdefault('/'.join(path_parts(name)) or name, page) is not page:
            raise ValueError(f'{path}: page {name} is there twice: join the two entries.')
    return pages


def _clean(where: str, fields: Any, expected: Mapping[str, tuple[Callable[[Any], Any], str]]) -> dict[str, Any]:
    """The fields with their values as they are meant; null counts as absent."""
    if not isinstance(fields, dict):
        raise ValueError(
            f'{where}: found {type(fields).__name__}, expected an object with keys among {sorted(expected)}.'
        )
    clean = {}
    for key, value in fields.items():
        if key not in expected:
            raise ValueError(f'{where}: unknown key {key!r}, expected one of {sorted(expected)}.')
        mean, wanted = expected[key]
        if value is not None:
            clean[key] = mean(value)
            if clean[key] is None:
                raise ValueError(f'{where}: {key} is {reprlib.repr(value)}, expected {wanted}.')
    return clean
