import numpy as np
import pytest
from scipy import stats

from rarl_jax.evaluation.statistics import (
    bootstrap_interval,
    holm,
    mcnemar,
    over_seeds,
    pair,
    paired_bootstrap,
    pass_at_k,
)


def test_interval_of_single_question_pages_is_the_plain_bootstrap():
    values = (np.arange(80) % 4 == 0).astype(float)
    ours = bootstrap_interval(values, [str(i) for i in range(80)], draws=20_000)
    peer = stats.bootstrap((values,), np.mean, n_resamples=20_000, method='percentile', rng=1).confidence_interval
    assert ours.mean == 0.25
    np.testing.assert_allclose([ours.low, ours.high], peer, atol=0.0126)  # one step of 1/80


def test_pages_are_resampled_not_questions():
    """Ten questions that agree on every page say no more than one: the interval must be that of the pages."""
    pages, per_page = [f'p{i}' for i in range(20)], [float(i % 2) for i in range(20)]
    once = bootstrap_interval(per_page, pages)
    tenfold = bootstrap_interval(np.repeat(per_page, 10), np.repeat(pages, 10))
    assert once == tenfold
    as_questions = bootstrap_interval(np.repeat(per_page, 10), [str(i) for i in range(200)])
    assert as_questions.high - as_questions.low < 0.5 * (once.high - once.low)


def test_a_page_counts_by_its_questions():
    assert bootstrap_interval([1, 1, 1, 0], ['a', 'a', 'a', 'b']).mean == 0.75


@pytest.mark.parametrize(('value', 'low', 'high'), [(1.0, 0.025**0.5, 1.0), (0.0, 0.0, 1 - 0.025**0.5)])
def test_all_right_or_all_wrong_is_no_certainty(value, low, high):
    interval = bootstrap_interval([value] * 6, ['a', 'a', 'a', 'b', 'b', 'b'])  # two pages, so the bound of two
    assert (interval.low, interval.high) == pytest.approx((low, high))


def test_intervals_cover_the_truth():
    """95 % intervals of pages that differ in difficulty hold the true mean about 95 times in 100."""
    rng = np.random.default_rng(0)
    pages = np.repeat(np.arange(60), 5)
    covered = 0
    for trial in range(200):
        difficulty = rng.beta(3, 2, size=60)  # mean 0.6
        values = (rng.random(300) < difficulty[pages]).astype(float)
        interval = bootstrap_interval(values, [str(p) for p in pages], seed=trial, draws=500)
        covered += interval.low <= 0.6 <= interval.high
    assert 180 <= covered <= 198


def test_seed_fixes_the_interval():
    values, pages = [0.0, 1.0, 1.0, 0.0, 1.0], list('abcde')
    assert bootstrap_interval(values, pages, seed=3) == bootstrap_interval(values, pages, seed=3)


def test_paired_difference_is_second_minus_first():
    first, second = [0.0] * 10 + [1.0] * 10, [1.0] * 8 + [0.0] * 2 + [1.0] * 10
    result = pair(first, second, [str(i) for i in range(20)])
    assert (result.n, result.difference) == (20, 0.4)
    assert 0 < result.low < 0.4 < result.high and result.p_bootstrap < 0.01
    assert result.p_mcnemar == pytest.approx(2 * 0.5**8)


def test_pairing_removes_what_both_share():
    """A constant gain of 0.1 over wildly different questions is certain when paired."""
    first = np.linspace(0, 0.9, 30)
    interval, p = paired_bootstrap(first, first + 0.1, [str(i) for i in range(30)])
    assert interval.low == pytest.approx(0.1) and interval.high == pytest.approx(0.1)
    assert p == pytest.approx(2 / 2001)


def test_p_is_uniform_under_no_difference():
    rng = np.random.default_rng(1)
    pages = [str(i) for i in range(50)]
    ps = [paired_bootstrap(rng.random(50), rng.random(50), pages, seed=i, draws=400)[1] for i in range(200)]
    assert 0.01 <= np.mean(np.less(ps, 0.05)) <= 0.1


@pytest.mark.parametrize(('pages', 'least'), [(1, 1.0), (2, 0.5), (4, 0.125)])
def test_few_pages_prove_nothing(pages, least):
    """Turning the sign of each page's difference is as likely: with n pages no p is below 2 / 2^n."""
    names = [f'p{i % pages}' for i in range(40)]
    _, p = paired_bootstrap([0.0] * 40, [1.0] * 40, names)
    assert p == least


def test_pages_that_agree_add_no_certainty():
    first, second = [0.0] * 30, [1.0, 1.0] + [0.0] * 28
    assert paired_bootstrap(first, second, [str(i) for i in range(30)])[1] >= 0.5


def test_one_page_says_nothing_about_others():
    interval = bootstrap_interval([1.0, 0.0], ['a', 'a'])
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.0, 1.0)


def test_mcnemar_by_hand():
    assert mcnemar([0, 0, 0, 1, 1], [1, 1, 1, 0, 1]) == pytest.approx(2 * (1 + 4) / 16)  # 3 gained, 1 lost
    assert mcnemar([1, 0], [1, 0]) == 1.0
    assert mcnemar([0.5, 0.0], [1.0, 0.0]) is None


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_pass_at_k_by_hand():
    assert pass_at_k(right=1, attempts=4, k=2) == pytest.approx(0.5)
    assert pass_at_k(right=0, attempts=4, k=4) == 0.0
    assert pass_at_k(right=3, attempts=4, k=2) == 1.0


@pytest.mark.parametrize(('values', 'pages'), [([], []), ([1.0], ['a', 'b'])])
def test_lists_that_do_not_match_are_refused(values, pages):
    with pytest.raises(ValueError, match='one page id for each value'):
        bootstrap_interval(values, pages)


def test_seeds_are_judged_as_the_t_test_does():
    values = (0.31, 0.44, 0.37)
    interval, p = over_seeds(values)
    peer = stats.ttest_1samp(values, 0.0)
    assert (interval.low, interval.high) == pytest.approx(tuple(peer.confidence_interval(0.95)))
    assert (interval.mean, p) == pytest.approx((np.mean(values), peer.pvalue))


@pytest.mark.parametrize(
    ('values', 'low', 'high', 'p'),
    [((0.3,), -np.inf, np.inf, 1.0), ((0.2, 0.2), 0.2, 0.2, 0.0), ((0.0, 0.0), 0.0, 0.0, 1.0)],
)
def test_one_seed_says_nothing_and_equal_seeds_all(values, low, high, p):
    interval, found = over_seeds(values)
    assert (interval.low, interval.high, found) == (low, high, p)
