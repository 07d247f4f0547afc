"""Questions about comic pages for lmms-eval: page, prompt and score of one document. Stands alone beside the YAML files that name it."""

import re
from itertools import combinations
from pathlib import Path

from PIL import Image

IMAGES = Path(__file__).resolve().parent.parent / 'images'
ORDERS = ('dialogue_reordering', 'panel_reordering')


def doc_to_visual(doc):
    """The page."""
    with Image.open(IMAGES / doc['image']) as image:
        return [image.convert('RGB')]


def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    """The prompt between the model's own words."""
    words = lmms_eval_specific_kwargs or {}
    return f'{words.get("pre_prompt", "")}{doc["question"]}{words.get("post_prompt", "")}'


def process_results(doc, results):
    """{'score': graded, 'exact': 0 or 1} of the model's answer, taken from <answer> tags if it has them."""
    said = re.findall(r'<answer>(.*?)</answer>', results[0], re.DOTALL)
    prediction = said[-1] if said else results[0]
    exact = float(_norm(prediction) == _norm(doc['answer']) or _letter_of(prediction, doc['choices']) == doc['answer'])
    score = exact
    if doc['task'] in ORDERS:
        score = max(exact, _tau(doc['answer'], prediction))
        exact = float(score == 1.0)
    elif doc['task'] == 'character_counting':
        numbers = re.findall(r'\d+', prediction)
        off = abs(int(numbers[0]) - int(doc['answer'])) if len(numbers) == 1 else 2
        exact, score = float(off == 0), {0: 1.0, 1: 0.5}.get(off, 0.0)
    elif not doc['choices']:
        score = max(exact, _f1(doc['answer'], prediction))
    return {'score': score, 'exact': exact}


def _norm(text):
    return ' '.join(re.findall(r'\w+', text.lower()))


def _letter_of(prediction, choices):
    """The choice that a lone letter names."""
    letter = re.fullmatch(r'\W*([A-Za-z])\W*', prediction)
    place = ord(letter[1].upper()) - ord('A') if letter else len(choices or ())
    return choices[place] if choices and place < len(choices) else None


def _tau(answer, prediction):
    """Kendall's tau between two comma-separated orders where it is positive; 0 if a label comes twice."""
    truth = [label.strip() for label in answer.split(',')]
    said = [label for label in re.findall(r'\b[A-Z]\b', prediction) if label in truth]
    if len(set(said)) < len(said) or len(truth) < 2:
        return 0.0
    pairs = list(combinations(truth, 2))
    known = [said.index(a) < said.index(b) for a, b in pairs if a in said and b in said]
    return max(0.0, (2 * sum(known) - len(known)) / len(pairs))


def _f1(answer, prediction):
    """Harmonic mean of precision and recall over words."""
    truth, said = _norm(answer).split(), _norm(prediction).split()
    shared = sum(min(truth.count(word), said.count(word)) for word in set(truth))
    return 2 * shared / (len(truth) + len(said)) if truth and said else 0.0
