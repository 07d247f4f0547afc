"""Executes notebooks from the committed results, and says where one has become stale.

    python -m experiments.notebooks [NAME ...] [--check]

A notebook is written as text, experiments/NAME/notebook.py (jupytext, percent format), and shown as notebook.ipynb beside it, executed. --check writes
nothing and fails where the text, the results or the code have changed since: other text in an output, or a picture that looks different.
"""

from __future__ import annotations

import argparse
import base64
import io
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jupytext
import nbformat
import numpy as np
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

from experiments.arms import HERE
from rarl_jax.runtime.files import write_whole

TIMEOUT = 300  # seconds a cell
# Two pictures are the same where no block of so many px differs by more, in mean grey of 255: letters are smoothed differently elsewhere, while a
# line that has moved empties whole blocks.
BLOCK, ALIKE = 8, 24.0
COLOURS, LARGE = 96, 40_000  # of a kept picture: colours, and bytes from which it is kept as a JPEG
KERNEL = {'kernelspec': {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'}}
ADDRESS = re.compile(r'0x[0-9a-f]+')


def names() -> list[str]:
    """All experiments that have a notebook."""
    return sorted(path.parent.name for path in HERE.glob('*/notebook.py'))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('names', nargs='*', metavar='NAME', help=', '.join(names()))
    parser.add_argument('--check', action='store_true', help='fail where a notebook is stale')
    given = parser.parse_args()
    stale = 0
    for name in given.names or names():
        path, fresh = HERE / name / 'notebook.ipynb', execute(name)
        found = list(differences(nbformat.read(path, 4), fresh)) if given.check else []
        stale += bool(found)
        print(f'{name}: {"; ".join(found[:3]) or "as its results say"}')
        if not given.check:
            write_whole(path, nbformat.writes(fresh))
    return int(stale > 0)


def execute(name: str) -> NotebookNode:
    """The notebook of an experiment, executed from its text in the project's root. CellExecutionError where a cell fails."""
    text = jupytext.read(HERE / name / 'notebook.py')
    cells = [_cell(cell, number) for number, cell in enumerate(text.cells)]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=KERNEL)
    NotebookClient(
        notebook,
        timeout=TIMEOUT,
        kernel_name='python3',
        record_timing=False,
        resources={'metadata': {'path': str(HERE.parent)}},
    ).execute()
    notebook.metadata = nbformat.from_dict(KERNEL)  # not the version of the Python that ran it
    for output in (output for cell in notebook.cells for output in cell.get('outputs', [])):
        if 'image/png' in output.get('data', {}):
            picture = output.data.pop('image/png')
            output.data.update(_shrink(picture))
    return notebook


def _shrink(picture: str) -> dict[str, str]:
    """A picture, base64, for the repository: few colours do for lines, and a page with its grain becomes a JPEG."""
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        lines, page = few_colours(image), io.BytesIO()
        if len(lines) <= LARGE:
            return {'image/png': base64.b64encode(lines).decode()}
        image.convert('RGB').save(page, 'JPEG', quality=80, optimize=True)
    return {'image/jpeg': base64.b64encode(page.getvalue()).decode()}


def few_colours(image: Image.Image) -> bytes:
    """A small PNG file of a drawing."""
    file = io.BytesIO()
    few = image.convert('RGB').quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(file, 'PNG', optimize=True)
    return file.getvalue()


def _cell(cell: NotebookNode, number: int) -> NotebookNode:
    """The same with an id that is no accident."""
    make = nbformat.v4.new_markdown_cell if cell.cell_type == 'markdown' else nbformat.v4.new_code_cell
    return make(cell.source, id=f'cell-{number}')


# ---------------------------------------------------------------- what is stale


def differences(kept: NotebookNode, fresh: NotebookNode) -> Iterator[str]:
    """Where two executed notebooks tell different things, in words."""
    if len(kept.cells) != len(fresh.cells):
        yield f'{len(kept.cells)} cells, and the text has {len(fresh.cells)}'
        return
    for number, (old, new) in enumerate(zip(kept.cells, fresh.cells, strict=True)):
        if old.source != new.source:
            yield f'cell {number} has another text'
        elif old.cell_type == 'code':
            yield from _output_differences(number, old.outputs, new.outputs)


def _output_differences(number: int, old: Sequence[Any], new: Sequence[Any]) -> Iterator[str]:
    before, after = ([_shown(output) for output in outputs] for outputs in (old, new))
    if [text for text, _ in before] != [text for text, _ in after]:
        yield f'cell {number} prints something else'
    elif not all(alike(a, b) for (_, a), (_, b) in zip(before, after, strict=True)):
        yield f'cell {number} draws another picture'


def _shown(output: Any) -> tuple[dict[str, str], np.ndarray | None]:
    """What an output says, and what it draws."""
    data = dict(output.get('data', {'text/plain': output.get('text', '')}))
    picture = data.pop('image/png', None) or data.pop('image/jpeg', None)
    text = {kind: ADDRESS.sub('', ''.join(value)) for kind, value in data.items()}
    if picture is None:
        return text, None
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        return text, np.asarray(image.convert('L'), np.float32)


def alike(old: np.ndarray | None, new: np.ndarray | None) -> bool:
    """Whether two pictures look the same; sizes may differ by a few pixels of margin."""
    if old is None or new is None:
        return old is new
    if np.abs(np.subtract(old.shape, new.shape)).max() > 4:
        return False
    height, width = np.minimum(old.shape, new.shape) // BLOCK
    apart = (old[: height * BLOCK, : width * BLOCK] - new[: height * BLOCK, : width * BLOCK]).reshape(
        height, BLOCK, width, BLOCK
    )
    return float(np.abs(apart.mean(axis=(1, 3))).max()) <= ALIKE


if __name__ == '__main__':
    sys.exit(main())
