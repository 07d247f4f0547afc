"""How far one gets without looking at the page: what the builder reports so that nobody mistakes a shortcut for sight.

    chance         the mean of 1/choices, or of 1/n! for an ordering; none for open answers
    answer_prior   the choice that was right most often, of the times it was offered, on training pages; the most frequent answer of open questions
    position       the place among the choices that was right most often
    text           naive Bayes on the words of prompt and choices: for each choice, whether it is the right one (its words, and each of them
                   together with each word of the prompt); for open questions the answer; for orderings whether an item comes early or late

Of choices that score alike the alphabetically first is taken, so that their place plays no part but in `position`.
All are fitted on pages of the training split and scored by exact match on another, so none has seen the pages it is scored on.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from input_pipeline.schema import Question, Task
from input_pipeline.tasks import METRICS

ORDERS: frozenset[Task] = frozenset(task for task, metric in METRICS.items() if metric == 'kendall_tau')
SMOOTHING = 1.0  # pseudo-count of every feature

_ITEM = re.compile(r'\b([A-Z]): ')


def held_out(questions: Sequence[Question]) -> list[Question]:
    """Of each task the questions of the test split, or those of validation where it has none there: a source may know less of its test pages."""
    tested = {question.task for question in questions if question.split == 'test'}
    return [
        question for question in questions if question.split == ('test' if question.task in tested else 'validation')
    ]


def score_baselines(train: Sequence[Question], held_out: Sequence[Question]) -> dict[str, dict[str, Any]]:
    """Per task {'n', 'split', 'n_train', 'chance', 'answer_prior', 'position', 'text', 'margin'}: exact-match accuracies in [0, 1].

    A task that is asked in both forms has two rows, 'TASK, choices' and 'TASK, open'. None where a baseline has no meaning. `margin` is half the
    95 % interval of an accuracy of 0.5 over n questions: a baseline is above chance only if it is so by more than that.
    """
    table = {}
    groups = dict.fromkeys(_form(question) for question in held_out)
    for task, form in groups:
        fit = [question for question in train if _form(question) == (task, form)]
        asked = [question for question in held_out if _form(question) == (task, form)]
        name = f'{task}, {form}' if sum(other == task for other, _ in groups) > 1 else task
        table[name] = row = {
            'n': len(asked),
            'split': asked[0].split,
            'n_train': len(fit),
            'chance': _chance(asked),
            'margin': 0.98 / math.sqrt(len(asked)),
        }
        for baseline, learn in (('answer_prior', learn_prior), ('position', learn_position), ('text', learn_text)):
            answer = learn(fit) if fit else None
            row[baseline] = None if answer is None else _accuracy(answer, asked)
    return table


def _form(question: Question) -> tuple[Task, str]:
    return question.task, 'choices' if question.choices else 'open'


def learn_prior(questions: Sequence[Question]) -> Callable[[Question], str]:
    """Answers with the choice that was right most often when offered; open questions with the most frequent answer."""
    offered = Counter(choice for question in questions for choice in question.choices)
    right = Counter(question.answer for question in questions if question.choices)
    frequent = Counter(question.answer for question in questions if not question.choices)

    def answer(question: Question) -> str:
        if question.choices:
            return max(
                sorted(question.choices),
                key=lambda choice: (right[choice] + SMOOTHING) / (offered[choice] + 2 * SMOOTHING),
            )
        usual = _same_labels(frequent, question) if question.task in ORDERS else frequent
        return usual.most_common(1)[0][0] if usual else ''

    return answer


def learn_position(questions: Sequence[Question]) -> Callable[[Question], str] | None:
    """Answers with the place that was right most often among as many choices; None if no question has choices."""
    positions: dict[int, Counter[int]] = defaultdict(Counter)
    for question in questions:
        if question.choices:
            positions[len(question.choices)][question.choices.index(question.answer)] += 1
    if not positions:
        return None

    def answer(question: Question) -> str:
        usual = positions.get(len(question.choices))
        if not question.choices or not usual:
            return ''
        return question.choices[usual.most_common(1)[0][0]]

    return answer


def learn_text(questions: Sequence[Question]) -> Callable[[Question], str]:
    """Answers by naive Bayes on words alone."""
    closed = NaiveBayes(
        (_pair(question, choice), choice == question.answer) for question in questions for choice in question.choices
    )
    opened = NaiveBayes((_words(question.prompt), question.answer) for question in questions if not question.choices)
    items = NaiveBayes(
        example for question in questions if question.task in ORDERS for example in _item_examples(question)
    )

    def answer(question: Question) -> str:
        if question.choices:
            return max(sorted(question.choices), key=lambda choice: closed.odds(_pair(question, choice), True))
        if question.task in ORDERS:
            shown = split_items(question.prompt)
            return ', '.join(sorted(shown, key=lambda label: items.odds(_words(shown[label]), 'late')))
        return opened.best(_words(question.prompt)) or ''

    return answer


class NaiveBayes:
    """Multinomial naive Bayes over sets of features with additive smoothing."""

    def __init__(self, examples: Iterable[tuple[set[str], Any]]):
        self._classes: Counter[Any] = Counter()
        self._features: dict[Any, Counter[str]] = defaultdict(Counter)
        for features, label in examples:
            self._classes[label] += 1
            self._features[label].update(features)
        self._vocabulary = len({feature for counts in self._features.values() for feature in counts}) + 1
        self._totals = {
            label: counts.total() + SMOOTHING * self._vocabulary for label, counts in self._features.items()
        }

    def log_score(self, features: set[str], label: Any) -> float:
        """log p(label) + sum of log p(feature | label), up to a constant."""
        if not self._classes[label]:
            return -math.inf
        counts, total = self._features[label], self._totals.get(label, SMOOTHING)
        return math.log(self._classes[label]) + sum(
            math.log((counts[feature] + SMOOTHING) / total) for feature in sorted(features)
        )

    def odds(self, features: set[str], label: Any) -> float:
        """log of p(label) against the best other label."""
        others = [self.log_score(features, other) for other in self._classes if other != label]
        return self.log_score(features, label) - max(others, default=0.0)

    def best(self, features: set[str]) -> Any:
        """The likeliest label; None if nothing was learnt."""
        return max(self._classes, key=lambda label: self.log_score(features, label), default=None)


def split_items(prompt: str) -> dict[str, str]:
    """The items of an ordering: label -> its words."""
    parts = _ITEM.split(prompt)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _item_examples(question: Question) -> list[tuple[set[str], str]]:
    """Each item that is not in the middle of the right order, as 'early' or 'late'."""
    shown, order = split_items(question.prompt), question.answer.split(', ')
    middle = (len(order) - 1) / 2
    return [
        (_words(shown[label]), 'early' if place < middle else 'late')
        for place, label in enumerate(order)
        if place != middle and label in shown
    ]


def _pair(question: Question, choice: str) -> set[str]:
    asked, offered = _words(question.prompt), _words(choice)
    return offered | {f'{a}|{b}' for a in asked for b in offered}


def _words(text: str) -> set[str]:
    return set(re.findall(r'\w+', text.lower()))


def _same_labels(answers: Counter[str], question: Question) -> Counter[str]:
    number = len(split_items(question.prompt))
    return Counter({answer: n for answer, n in answers.items() if len(answer.split(', ')) == number})


def _chance(questions: Sequence[Question]) -> float | None:
    shares = []
    for question in questions:
        if question.choices:
            shares.append(1 / len(question.choices))
        elif question.task in ORDERS:
            shares.append(1 / math.factorial(len(question.answer.split(', '))))
    return sum(shares) / len(shares) if shares else None


def _accuracy(answer: Callable[[Question], str], questions: Sequence[Question]) -> float:
    return sum(answer(question) == question.answer for question in questions) / len(questions)
