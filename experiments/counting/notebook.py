# %% [markdown]
# # Does counting fail because one zoom alone is paid?
#
# In the paper counting falls under RARL: its policy never learns to crop every panel. Its reward pays one zoom, whatever the question. Here the base
# (`experiments/wider_base`) was taught to call once for each figure that it counts. After a common warm start of five updates that pays one zoom, 25 updates of 16
# questions on counting alone have four rewards: one zoom paid, every zoom paid, every zoom paid a sixth, so that six earn what one earns in the first, and none.
# The IoU part is over all figures that are counted in every arm but the last.

# %%
from collections import Counter

import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from experiments import charts, plots, results, tables

found = results.load('counting').complete()
TASK = 'character_counting'
ARMS = {'one': plots.RED, 'every': plots.BLUE, 'every_shared': plots.GREEN, 'answer': plots.ORANGE}
ENDS = {'base': 'base:zoom'} | dict.fromkeys(ARMS, 'rarl:zoom')
seeds = found.seeds(*ENDS)
ASKED = {
    arm: [record for run in found.of(arm) for record in run.answers[evaluation] if record.task == TASK]
    for arm, evaluation in ENDS.items()
}

# %% [markdown]
# ## While they train
#
# Sampled, averaged over the last five steps; mean over seeds, the band their range; the dotted line ends the warm
# start. Named by what is paid.

# %%
metrics = {'reward/accuracy': 'accuracy', 'zoom/calls': 'calls per episode', 'reward/tool_iou': 'IoU over all figures'}
PAID = {'one': 'one zoom', 'every': 'every zoom', 'every_shared': 'every, a sixth', 'answer': 'none'}
figure = charts.training(found, ARMS, metrics, warm_start=5, labels=PAID)

# %% [markdown]
# ## On held-out pages
#
# Greedy. The score gives half a point to a count that is one off; exact counts only those that are right. Constant is the best that one and the same answer
# would have; with grey crops, the score when no crop can be read.


# %%
def exact(record) -> float:
    return float(record.score == 1)


def best_constant(records) -> float:
    """The score of the answer that would be best if it were given to all."""
    counts = np.array([int(record.answer) for record in records])
    off = np.abs(counts[None] - np.arange(counts.max() + 1)[:, None])
    return ((off == 0) + 0.5 * (off == 1)).mean(axis=1).max()


rows = []
for arm, evaluation in ENDS.items():
    blank = tables.ranged(100 * found.means(arm, 'rarl:blank_crop').loc[TASK]) if arm in ARMS else '–'
    rows.append(
        {
            'reward': found.label(arm),
            'score, %': tables.ranged(100 * found.means(arm, evaluation).loc[TASK]),
            'exact, %': tables.ranged(100 * found.means(arm, evaluation, exact).loc[TASK]),
            'constant, %': round(100 * best_constant(ASKED[arm]), 1),
            'with grey crops, %': blank,
        }
    )
display(pd.DataFrame(rows).set_index('reward'))


# %% [markdown]
# ## How an answer comes about
#
# A policy that counts by looking looks at each figure once and then says how often it looked. Looks: calls that succeeded; refused: the others, as a box that
# is asked for again is. Shares are of all questions, and in the last two rows of answers that are a number; the commonest answer beside its share.


# %%
def looks(record) -> int:
    return sum(zoom.status == 'ok' for zoom in record.attempts[0].zooms)


def said(record) -> str | None:
    """The number that was answered, None where there is none."""
    answer = (record.attempts[0].prediction or '').strip()
    return answer if answer.isdigit() else None


rows = []
for arm, asked in ASKED.items():
    calls = [len(record.attempts[0].zooms) for record in asked]
    answered = [record for record in asked if said(record)]
    commonest, times = Counter(map(said, answered)).most_common(1)[0]
    rows.append(
        {
            'reward': found.label(arm),
            'figures': round(np.mean([int(record.answer) for record in asked]), 2),
            'looks': round(np.mean([looks(record) for record in asked]), 2),
            'refused': round(np.mean(calls) - np.mean([looks(record) for record in asked]), 2),
            'as many looks as figures, %': round(100 * np.mean([looks(r) == int(r.answer) for r in asked]), 1),
            'no number, %': round(100 * (1 - len(answered) / len(asked)), 1),
            'says its number of looks, %': round(100 * np.mean([looks(r) == int(said(r)) for r in answered]), 1),
            'its commonest answer': f'{commonest} ({100 * times / len(answered):.1f} %)',
        }
    )
ways = pd.DataFrame(rows).set_index('reward').T
display(ways)

# %% [markdown]
# ## One reward against another


# %%
def counted(first: str, second: str) -> list:
    """The comparison of two arms' ends, on counting alone."""
    return found.compare((first, ENDS[first]), (second, ENDS[second]), tasks=[TASK])


against = {f'{found.label(arm)} − base': counted('base', arm) for arm in ARMS}
against |= {f'{found.label(arm)} − {found.label("one")}': counted('one', arm) for arm in ('every', 'every_shared')}
figure = charts.differences(found, against)

# %% [markdown]
# ## By the number of figures
#
# Scores, %, by how many are counted, all seeds together.

# %%
table = {}
for arm, asked in ASKED.items():
    by_count = {}
    for record in asked:
        by_count.setdefault(record.answer, []).append(record.score)
    table[found.label(arm)] = {count: 100 * np.mean(scores) for count, scores in sorted(by_count.items())}
display(pd.DataFrame(table).round(1).rename_axis('figures'))

# %% [markdown]
# ## Answer
#
# Six comparisons are looked at; none is adjusted for the others.

# %%
[every] = counted('one', 'every')
verdict = 'That is not shown, as paying every zoom is not shown to change anything'
if every.is_shown:
    verdict = 'Yes: paying every zoom helps' if every.seeds.mean > 0 else 'No: paying every zoom does harm'
commonest = ways.loc['its commonest answer']
Markdown(
    f'{verdict}. In points [95 % over seeds], over {len(seeds)} seeds: '
    + '; '.join(f'{label}: {tables.verdict(each)}' for label, [each] in against.items())
    + '. The commonest of its answers, with its share: '
    + ', '.join(f'{label} {commonest[label]}' for label in commonest.index)
    + f'. To say the best one number to every question would have {100 * best_constant(ASKED["base"]):.1f} %; '
    + f'the base, which counts, has {100 * np.mean([record.score for record in ASKED["base"]]):.1f} %.'
)
