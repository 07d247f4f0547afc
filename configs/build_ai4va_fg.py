"""Builds the AI4VA-FG benchmark from AI4VA's files.

    python -m rarl_jax.main --config=configs/build_ai4va_fg.py --config.data.raw=DIR --config.data.out=DIR

The folder `raw` holds the page images, the annotation files and, if there is one, sidecar.json (see input_pipeline/ai4va.py). `out` gets the
data set, report.json and report/index.html, and with --config.data.exports="('verl', 'llamafactory', 'vlmevalkit', 'lmms_eval')" other projects' formats. Manga109 instead: configs/build_ai4va_fg.py:manga109. Another comic: write a reader
(input_pipeline/__init__.py says how) and name its module in config.data.reader.
"""

from dataclasses import asdict

from ml_collections import ConfigDict

from input_pipeline import ai4va, manga109
from input_pipeline.build import BuildSettings

READERS = {'': ai4va, 'smoke': ai4va, 'manga109': manga109}


def get_config(variant: str = '') -> ConfigDict:
    """Variants: none (AI4VA), manga109, and smoke, which reads AI4VA's format and draws one picture a task."""
    if variant not in READERS:
        raise ValueError(
            f'Unknown variant {variant!r} of configs/build_ai4va_fg.py: expected one of {sorted(READERS)}.'
        )
    reader = READERS[variant]
    settings = BuildSettings(
        raw='',
        out='',
        reader=reader.__name__,
        read=asdict(reader.ReadSettings()),
        examples=1 if variant == 'smoke' else 6,
    )
    return ConfigDict({'stages': ('build',), 'data': asdict(settings)})
