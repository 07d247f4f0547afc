"""What tests of several files need."""

import pytest

from input_pipeline import dataset
from input_pipeline.sources import ai4va
from input_pipeline.tasks import Skip, TaskSettings, collect_vocabulary, make_questions
from tests.input_pipeline.pages import write_folder

PAGES = 20


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """(folder of the data set, its pages, its questions)."""
    folder = tmp_path_factory.mktemp('built')
    pages = ai4va.read(write_folder(folder / 'raw', PAGES), ai4va.ReadSettings())[0]
    pages = dataset.split_pages(pages, (0.6, 0.2, 0.2), 1, keep_source_split=False)
    vocabulary = collect_vocabulary(pages)
    made = [m for page in pages for m in make_questions(page, 0, TaskSettings(per_page=2), vocabulary)]
    questions = [m for m in made if not isinstance(m, Skip)]
    dataset.write(folder / 'out', pages, questions)
    return folder / 'out', pages, questions
