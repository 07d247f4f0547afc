"""Builds the AI4VA-FG benchmark from AI4VA's files.

    python -m rarl_jax.main --config=configs/build_ai4va_fg.py --config.data.raw=DIR --config.data.out=DIR

`raw` holds the page images, the annotation files and, if there is one, sidecar.json (see input_pipeline/sources/ai4va.py). `out` gets the data set,
report.json and report/index.html, and with --config.data.exports="('verl', 'trl', 'llamafactory', 'vlmevalkit', 'lmms_eval')" other projects' formats.
Manga109 instead: --config=configs/build_ai4va_fg.py:input_pipeline.sources.manga109. Another comic: a reader of your own, named in the same way
(input_pipeline/__init__.py says how to write it).
"""

from dataclasses import asdict

from ml_collections import ConfigDict

from input_pipeline.build import BuildSettings, load_reader


def get_config(variant: str = '') -> ConfigDict:
    """The variant is a reader's module, input_pipeline.sources.ai4va if left out; or smoke, which draws one picture a task."""
    name = 'input_pipeline.sources.ai4va' if variant in ('', 'smoke') else variant
    _, read = load_reader(name, {})
    settings = BuildSettings(raw='', out='', reader=name, read=asdict(read), examples=1 if variant == 'smoke' else 6)
    return ConfigDict({'stages': ('build',), 'data': asdict(settings)})
