"""Every notebook executes from the committed results, and shows what they say; what is stale is noticed."""

import base64
import io

import nbformat
import pytest
from matplotlib import pyplot as plt
from nbformat.v4 import new_code_cell, new_notebook, new_output

from experiments.arms import HERE
from experiments.notebooks import differences, execute, names

NAMES = names()


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_a_notebook_shows_what_its_results_say(name):
    kept = nbformat.read(HERE / name / 'notebook.ipynb', 4)
    assert not list(differences(kept, execute(name))), f'run python -m experiments.notebooks {name}'


@pytest.mark.parametrize('name', NAMES)
def test_a_notebook_begins_with_a_question_and_ends_with_an_answer(name):
    cells = nbformat.read(HERE / name / 'notebook.ipynb', 4).cells
    assert '?' in cells[0].source.partition('\n')[0]
    last = [cell.source for cell in cells if cell.cell_type == 'markdown'][-1]
    assert last.startswith('## Answer')


def notebook(text='1.0', heights=(1, 2), source='show()'):
    """One cell that prints and draws."""
    figure, axis = plt.subplots(figsize=(3, 2), dpi=100)
    axis.plot(heights)
    axis.set_ylim(0, 4)
    file = io.BytesIO()
    figure.savefig(file, format='png')
    plt.close(figure)
    picture = {'image/png': base64.b64encode(file.getvalue()).decode()}
    outputs = [new_output('stream', text=text), new_output('display_data', data=picture)]
    return new_notebook(cells=[new_code_cell(source, outputs=outputs)])


@pytest.mark.parametrize(
    ('changed', 'told'),
    [
        ({'text': '1.1'}, 'cell 0 prints something else'),
        ({'heights': (1, 2.3)}, 'cell 0 draws another picture'),
        ({'source': 'tell()'}, 'cell 0 has another text'),
    ],
)
def test_what_is_stale_is_noticed(changed, told):
    assert list(differences(notebook(), notebook())) == []
    assert list(differences(notebook(), notebook(**changed))) == [told]
