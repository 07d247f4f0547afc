"""What an answer looks like, where it stands in a policy's words, and how right it is, from 0 (wrong) to 1 (exactly right).

| metric                  | 1                 | between                                              | 0                         |
|-------------------------|-------------------|------------------------------------------------------|---------------------------|
| accuracy                | the right choice  | -                                                    | another, none or several  |
| accuracy_or_off_by_one  | equal             | 0.5 when off by one                                  | else                      |
| kendall_tau             | equal             | Kendall's tau where positive, missing labels allowed | tau <= 0, a label twice   |
| token_f1                | the same words    | F1 of the words, articles left out                   | no word shared            |

A question with choices is graded by accuracy, an open one by the metric that its task declares. A random order has a mean tau of 0, so
chance is not paid much; a list of everything names no choice. Any string is graded, in linear time, and none raises.
This file needs Python alone: exports carry it as it is, so that whoever trains or measures elsewhere grades alike.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations

INSTRUCTION = (
    'You answer questions about a comic page. Think inside <think></think>. When you are sure, give the answer alone '
    'inside <answer></answer>.'
)
THOUGHT = re.compile(r'<think>(.*?)(</think>|\Z)', re.DOTALL)

OFF_BY_ONE = 0.5  # credit of a count that is one too many or one too few
SMALL = str.split(
    'zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen'
)
TENS = str.split('twenty thirty forty fifty sixty seventy eighty ninety')
TIMES = {
    'none': 0,
    'never': 0,
    'once': 1,
    'twice': 2,
    'thrice': 3,
}  # counts where nothing else in the answer is a number
ARTICLES = frozenset({'a', 'an', 'the'})
# Words that people put around the letter or the text of their choice, and those that markup leaves behind.
AROUND = frozenset(
    str.split(
        'the my our this that it its i we would will should must am is are be was so therefore thus hence '
        'correct right best final likely most sure confident certainly definitely probably clearly ans answer answers option choice letter '
        'choose chose pick picked select selected take say think believe guess go going with for to question '
        'boxed text textbf textit mathrm mathbf'
    )
)

_MARKS = 8  # combining marks in a row that count; more are no writing, and putting them in order takes quadratic time
_MARKUP = re.compile(
    r"\b(?:i|it|that|we)['’](?:d|ll|m|s|ve)\b|</?[a-z]{1,6}>"
)  # contractions that frame an answer, and HTML's tags
_DASH = re.compile('[\u2010\u2012-\u2015\u2212]')  # as people write a minus
_NUMBER = re.compile(r'(?<![\w.])-?\d+[\w.]*')
_WHOLE = re.compile(r'(-?\d+)(?:\.0+)?\D*')
_IN_WORDS = re.compile(rf'(?<!\w)(?:({"|".join(TENS)})(?:[- ]?({"|".join(SMALL[1:10])}))?|({"|".join(SMALL)}))(?!\w)')
_NO_COUNT = re.compile(r'(?<!\w)(?:minus|negative|half|dozens?|hundreds?|thousands?|millions?)(?!\w)')


# ---------------------------------------------------------------- reading


def acts_of(text: str) -> str:
    """A turn without its thoughts. A thought runs from <think> to the next </think>, or to the end of the turn."""
    return THOUGHT.sub(' ', text)


def last_answer(acts: str) -> str | None:
    """Between the last <answer> that is closed and the </answer> that closes it, stripped; None if there is none."""
    start = acts.rfind('<answer>', 0, max(acts.rfind('</answer>'), 0))
    return None if start < 0 else acts[start + len('<answer>') : acts.index('</answer>', start)].strip()


def read_answer(text: str) -> str | None:
    """The answer that one turn gives: none inside a thought counts, and none in a turn that also calls a tool."""
    acts = acts_of(text)
    return None if '</tool_call>' in acts else last_answer(acts)


def read_reply(text: str) -> str | None:
    """As `read_answer`; of a model that uses none of the tags, as it may never have heard of them, all that it says outside its thoughts."""
    acts = acts_of(text)
    tagged = any(tag in acts for tag in ('<answer>', '</answer>', '<tool_call>', '</tool_call>'))
    return read_answer(text) if tagged else acts.strip()


# ---------------------------------------------------------------- grading


def grade(metric: str, answer: str, prediction: str | None, choices: Sequence[str] = ()) -> float:
    """Grades `prediction` (None = no answer was given) against the one right `answer`; `metric` is that of the open form. In [0, 1]."""
    if prediction is None:
        return 0.0
    if len(choices):
        picked = pick_choice(prediction, choices)
        return float(picked is not None and normalize(choices[picked]) == normalize(answer))
    return OPEN_METRICS[metric](answer, prediction)


def fold(text: str) -> str:
    """Compatibility characters (full-width, circled) as plain ones, in lower case, without heaps of combining marks."""
    if text.isascii():
        return text.casefold()
    return _cut_marks(unicodedata.normalize('NFKC', _cut_marks(text)).casefold())


def _cut_marks(text: str) -> str:
    kept, run = [], 0
    for character in text:
        run = run + 1 if unicodedata.combining(character) else 0
        if run <= _MARKS:
            kept.append(character)
    return ''.join(kept)


def normalize(text: str) -> str:
    """Words in lower case with single spaces and no punctuation, compatibility characters folded; text without a word stays what it is."""
    folded = fold(text)
    return re.sub(r'[\W_]+', ' ', folded).strip() or folded.strip()


def pick_choice(prediction: str, choices: Sequence[str]) -> int | None:
    """Index of the choice that `prediction` names, by its text or its letter (the text decides where they disagree); None if none or several."""
    texts = [normalize(choice) for choice in choices]
    said = normalize(prediction)
    if not said:
        return None
    if said in texts:
        return texts.index(said)
    bare = [_without_article(text) for text in texts]
    for words in (said, _without_frame(prediction)):
        if bare.count(_without_article(words)) == 1:
            return bare.index(_without_article(words))
        letter, _, rest = words.partition(' ')
        if len(letter) == 1 and 0 <= (index := ord(letter) - ord('a')) < len(texts) and rest in ('', texts[index]):
            return index
    return _only_mention(said, texts)


def _without_frame(prediction: str) -> str:
    """What is left of 'I think the answer is (B).' or '\\boxed{B}' without the words around it; one word is left at least."""
    words = normalize(_MARKUP.sub(' ', fold(prediction))).split()
    framed = [i for i, word in enumerate(words) if word not in AROUND]
    first, last = (framed[0], framed[-1]) if framed else (len(words) - 1, len(words) - 1)
    return ' '.join(words[first : last + 1])


def _without_article(text: str) -> str:
    article, _, rest = text.partition(' ')
    return rest if rest and article in ARTICLES else text


def _only_mention(said: str, texts: Sequence[str]) -> int | None:
    """Index of the one text that occurs in `said` as whole words; a text inside a longer mentioned one ('run' in 'run away') does not count."""
    found = [i for i, text in enumerate(texts) if text and f' {text} ' in f' {said} ']
    widest = [i for i in found if not any(i != j and f' {texts[i]} ' in f' {texts[j]} ' for j in found)]
    return widest[0] if len(widest) == 1 else None


def parse_number(text: str) -> int | None:
    """The only whole number that `text` holds, in digits or in words below a hundred; None if there is none or several differ."""
    folded = _DASH.sub('-', fold(text))
    digits = [whole[1] for token in _NUMBER.findall(folded) if (whole := _WHOLE.fullmatch(token))]
    if _NO_COUNT.search(folded) or any(len(number) > 9 for number in digits):
        return None
    numbers = set(map(int, digits))
    for ten, one, small in _IN_WORDS.findall(folded):
        numbers.add(SMALL.index(small) if small else 20 + 10 * TENS.index(ten) + (SMALL.index(one) if one else 0))
    numbers = numbers or {TIMES[word] for word in re.findall(r'\w+', folded) if word in TIMES}
    return numbers.pop() if len(numbers) == 1 else None


def grade_number(answer: str, prediction: str) -> float:
    """1 if the counts are equal, OFF_BY_ONE if they differ by one, else 0."""
    truth, said = parse_number(answer), parse_number(prediction)
    if truth is None or said is None:
        return 0.0
    return {0: 1.0, 1: OFF_BY_ONE}.get(abs(truth - said), 0.0)


def parse_order(text: str, labels: Sequence[str]) -> list[str]:
    """The labels that `text` names, as whole words, or all of them as letters written together ('BAC'), in its order of naming them."""
    said = normalize(text)
    if len(said) == len(labels) and sorted(said) == sorted(labels):
        return list(said)
    pattern = '|'.join(re.escape(label) for label in sorted(labels, key=len, reverse=True))
    return re.findall(rf'(?<!\w)(?:{pattern})(?!\w)', said)


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
    rank = {label: i for i, label in enumerate(said)}
    pairs = list(combinations(truth, 2))
    known = [rank[first] < rank[second] for first, second in pairs if first in rank and second in rank]
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


OPEN_METRICS: dict[str, Callable[[str, str], float]] = {
    'accuracy_or_off_by_one': grade_number,
    'kendall_tau': grade_order,
    'token_f1': token_f1,
}
