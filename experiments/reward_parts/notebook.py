# %% [markdown]
# # Which parts of the reward does the policy need to look at the right place and to answer from what it sees?
#
# R = R_acc + R_format + (constant + gate · 1[R_acc > 0]) · (w_count R_count + w_iou R_iou), all weights 1 in the paper. Every arm changes one of these, one arm
# two, after the same warm start of five updates, which pays form and tool count; 45 updates follow, from the quickstart's base. The paper has one such ablation
# (without the constant: slower, and less over-use of the tool); its reviewers asked for the others. `experiment.py` has the same arms for 7B.

# %%
import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from experiments import charts, plots, results, tables
from experiments.results import SMALL_TASKS, TASK_NAMES, first_iou, zoomed

found = results.load('reward_parts').complete()
PARTS = {'no_iou': plots.RED, 'no_count': plots.GREEN, 'no_tool': plots.ORANGE}
FACTORS = {'no_constant': plots.PINK, 'no_gate': plots.SKY}
WEIGHTS = {'iou_half': plots.GREEN, 'iou_double': plots.RED, 'count_double': plots.ORANGE}
CHANGED = (*PARTS, *FACTORS, *WEIGHTS)
seeds = found.seeds('paper', *CHANGED)

# %% [markdown]
# ## While they train
#
# On the training questions, sampled, averaged over the last five steps; mean over seeds, the band their range; the dotted line ends the warm start. First parts
# left out, then factors, then other weights; the paper's reward is blue in each.

# %%
metrics = {'reward/accuracy': 'accuracy', 'zoom/iou_first': 'IoU of the first zoom', 'zoom/calls': 'calls per episode'}
figures = [
    charts.training(found, {'paper': plots.BLUE, **arms}, metrics, warm_start=5) for arms in (PARTS, FACTORS, WEIGHTS)
]

# %% [markdown]
# ## On held-out pages
#
# Greedy. Each arm minus the paper's reward, paired by question. Red: shown, by seeds and by pages; grey: not.

# %%
ends = {found.label(arm): (('paper', 'rarl:zoom'), (arm, 'rarl:zoom')) for arm in CHANGED}
scores = {label: found.compare(*pair) for label, pair in ends.items()}
boxes = {label: found.compare(*pair, first_iou) for label, pair in ends.items()}
figures = (
    charts.differences(found, scores, 'score, points'),
    charts.differences(found, boxes, 'IoU of the first zoom', scale=1),
)

# %% [markdown]
# ## What it does with the tool at the end
#
# Held-out pages, both tasks and all seeds together: the share of answers with a zoom, calls, IoU of the first zoom, and the score with its own crop and with a grey
# one in its place. The last column is what is left when the crop is not to be read.

# %%
rows = []
for arm in ('paper', *CHANGED):
    asked = [record for run in found.of(arm) for record in run.answers['rarl:zoom']]
    blank = [record for run in found.of(arm) for record in run.answers['rarl:blank_crop']]
    rows.append(
        {
            'reward': found.label(arm),
            'with a zoom, %': round(100 * np.mean([zoomed(record) for record in asked]), 1),
            'calls per answer': round(np.mean([len(record.attempts[0].zooms) for record in asked]), 2),
            'first IoU': round(np.mean([first_iou(record) for record in asked]), 3),
            'score, %': round(100 * np.mean([record.score for record in asked]), 1),
            'score with a grey crop, %': round(100 * np.mean([record.score for record in blank]), 1),
        }
    )
display(pd.DataFrame(rows).set_index('reward'))

# %% [markdown]
# ## How count and IoU interact
#
# Left out one at a time, and both: the effect of both less the two effects alone, seed by seed. Below 0 the loss of both is more than the two losses together:
# one part stands in for the other. Above 0 it is less: neither does much without the other. Shown or not by seeds alone, after Holm over the two tasks.

# %%
rows = []
for words, compared, scale, digits in (('score, points', scores, 100, 1), ('IoU of the first zoom', boxes, 1, 3)):
    both_less_each = {}
    for place, task in enumerate(SMALL_TASKS):
        iou, count, both = (np.array(compared[found.label(arm)][place].by_seed) for arm in PARTS)
        both_less_each[task] = both - iou - count
        means = {'IoU': iou, 'count': count, 'both': both}
        alone = {f'without {part}': f'{scale * each.mean():+.{digits}f}' for part, each in means.items()}
        rows.append({'of': words, 'task': TASK_NAMES[task]} | alone)
    for row, told in zip(rows[-2:], tables.by_seeds(both_less_each, scale, digits).values(), strict=True):
        row['interaction'] = told
display(pd.DataFrame(rows).set_index(['of', 'task']))

# %% [markdown]
# ## Answer
#
# The base was taught to look before it learns here, so parts that would teach a model of 7B to look at all can be missed without harm: what is shown is what
# they do to a policy that looks already. The paper's reward is `warm_start`'s run, of an older program, which adds up its gradients in another order (see
# `stability`). Eight changes are compared with one arm; the adjustment is over the tasks of each.

# %%
Markdown(
    f'Over {len(seeds)} seeds, of {len(CHANGED)} changes these are shown to matter. Score, in points: {tables.shown(scores)}. IoU of the first zoom: '
    f'{tables.shown(boxes, 1, 3)}. For the others no difference is shown, which with three seeds does not say that there is none.'
)
