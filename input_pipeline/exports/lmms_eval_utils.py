"""Questions about comic pages for lmms-eval: page, prompt and score of one document. Stands beside grading.py, about.json and the YAML files."""

import importlib.util
import json
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent
ABOUT = json.loads((HERE / 'about.json').read_text(encoding='utf-8'))

_spec = importlib.util.spec_from_file_location('comics_grading', HERE / 'grading.py')
grading = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(grading)


def doc_to_visual(doc):
    """The page."""
    with Image.open(HERE.parent / 'images' / ABOUT['images'][doc['page_id']]) as image:
        return [image.convert('RGB')]


def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    """The prompt between the model's own words."""
    words = lmms_eval_specific_kwargs or {}
    return f'{words.get("pre_prompt", "")}{doc["question"]}{words.get("post_prompt", "")}'


def process_results(doc, results):
    """{'score': graded, 'exact': 0 or 1} of the model's answer, taken from <answer> tags if it has them."""
    said = grading.read_reply(results[0])
    score = grading.grade(ABOUT['metrics'][doc['task']], doc['answer'], said, doc['choices'])
    return {'score': score, 'exact': float(score == 1.0)}
