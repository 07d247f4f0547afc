"""How right an answer is, from 0 (wrong) to 1 (exactly right), by the kind of answer that a question asks for.

| answer                  | 1               | between                                    | 0                         |
|-------------------------|-----------------|--------------------------------------------|---------------------------|
| a choice                | that choice     | -                                          | another, none or several  |
| a number (counting)     | equal           | 0.5 when off by one                        | else                      |
| an order                | equal           | Kendall's tau where positive, missing labels allowed | tau <= 0, a label twice |
| words                   | the same words  | F1 of the words, articles left out         | no word shared            |

A random order has a mean tau of 0, so chance is not paid much; a list of everything names no choice. Any string is graded, none raises.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

from input_pipeline.schema import Task

OFF_BY_ONE = 0.5  # credit of a count that is one too many or one too few
NUMBER_WORDS = (
    'zero',
    'one',
    'two',
    'three',
    'four',
    'five',
    'six',
    'seven',
    'eight',
    'nine',
    'ten',
    'eleven',
    'twelve',
)
ORDERS: frozenset[Task] = frozenset({'dialogue_reordering', 'panel_reordering'})
ARTICLES = frozenset({'a', 'an', 'the'})

_LETTER = re.compile(r'\W*(?:(?:option|answer|choice)\W+)?([a-z])(?:\W+(.*))?', re.DOTALL)
_NUMBER = re.compile(r'(?<![\w.])-?\d+(?:\.0+)?(?![\w.]*\d)')


def grade(task: Task, answer: str, prediction: str | None, choices: Sequence[str] = ()) -> float:
    """Grades `prediction` (None = no answer was given) against the one right `answer`; in [0, 1]."""
    if prediction is None:
        return 0.0
    if choices:
        picked = pick_choice(prediction, choices)
        return float(picked is not None and normalize(choices[picked]) == normalize(answer))
    if task in ORDERS:
        return grade_order(answer, prediction)
    if task == 'character_counting':
        return grade_number(answer, prediction)
    return token_f1(answer, prediction)


def metric_name(task: Task, choices: Sequence[str] = ()) -> str:
    """What `grade` computes for such a question; a result table's column."""
    if choices:
        return 'accuracy'
    if task in ORDERS:
        return 'kendall_tau'
    return 'accuracy_or_off_by_one' if task == 'character_counting' else 'token_f1'


def normalize(text: str) -> str:
    """Words in lower case with single spaces and no punctuation, compatibility characters folded; text without a word stays what it is."""
    folded = unicodedata.normalize('NFKC', text).casefold()
    return re.sub(r'[\W_]+', ' ', folded).strip() or folded.strip()


def pick_choice(prediction: str, choices: Sequence[str]) -> int | None:
    """Index of the choice that `prediction` names, by its text or its letter (the text decides where they disagree); None if none or several."""
    said = normalize(prediction)
    texts = [normalize(choice) for choice in choices]
    if said and said in texts:
        return texts.index(said)
    letter = _LETTER.fullmatch(unicodedata.normalize('NFKC', prediction).casefold())
    if letter and ord(letter[1]) - ord('a') < len(choices):
        index, rest = ord(letter[1]) - ord('a'), normalize(letter[2] or '')
        if rest in ('', texts[index]):
            return index
    return _only_mention(said, texts)


def _only_mention(said: str, texts: Sequence[str]) -> int | None:
    """Index of the one text that occurs in `said` as whole words; a text inside a longer mentioned one ('run' in 'run away') does not count."""
    found = [i for i, text in enumerate(texts) if text and f' {text} ' in f' {said} ']
    widest = [i for i in found if not any(i != j and f' {texts[i]} ' in f' {texts[j]} ' for j in found)]
    return widest[0] if len(widest) == 1 else None


def parse_number(text: str) -> int | None:
    """The only whole number that `text` holds, in digits or as a word up to twelve; None if there is none or several differ."""
    folded = unicodedata.normalize('NFKC', text).casefold()
    digits = _NUMBER.findall(folded)
    if any(len(number) > 9 for number in digits):
        return None
    numbers = {int(float(number)) for number in digits}
    numbers |= {NUMBER_WORDS.index(word) for word in re.findall(r'[a-z]+', folded) if word in NUMBER_WORDS}
    return numbers.pop() if len(numbers) == 1 else None


def grade_number(answer: str, prediction: str) -> float:
    """1 if the counts are equal, OFF_BY_ONE if they differ by one, else 0."""
    truth, said = parse_number(answer), parse_number(prediction)
    if truth is None or said is None:
        return 0.0
    return {0: 1.0, 1: OFF_BY_ONE}.get(abs(truth - said), 0.0)


def parse_order(text: str, labels: Sequence[str]) -> list[str]:
    """The labels that `text` names, as whole words, in its order of naming them."""
    longest_first = sorted(labels, key=len, reverse=True)
    pattern = '|'.join(re.escape(label) for label in longest_first)
    return re.findall(rf'(?<!\w)(?:{pattern})(?!\w)', normalize(text))


def grade_order(answer: str, prediction: str) -> float:
    """Kendall's tau between two comma-separated orders where it is positive, else 0.

    tau = (concordant - discordant pairs) / all pairs of the right order. A pair with a label that the prediction leaves out is neither, so
    half an order earns less than a whole one. A label named twice makes the prediction worth 0: repeating the list is no order.
    """
    truth = [label for label in map(normalize, answer.split(',')) if label]
    said = parse_order(prediction, truth) if truth else []
    if not said or len(set(said)) < len(said):
        return 0.0
    if len(truth) == 1:
        return 1.0
    place = {label: i for i, label in enumerate(said)}
    pairs = list(combinations(truth, 2))
    known = [place[first] < place[second] for first, second in pairs if first in place and second in place]
    return max(0.0, (2 * sum(known) - len(known)) / len(pairs))


def token_f1(answer: str, prediction: str) -> float:
    """Harmonic mean of precision and recall over the bags of words, articles left out (SQuAD, arXiv 1606.05250)."""
    truth, said = _bag(answer), _bag(prediction)
    shared = sum((truth & said).values())
    if not truth or not said:
        return float(truth == said)
    return 2 * shared / (truth.total() + said.total())


def _bag(text: str) -> Counter[str]:
    return Counter(word for word in normalize(text).split() if word not in ARTICLES)
