# %% [markdown]
# # Which parts of the reward does the policy need to look at the right place and to answer from what it sees?
#
# R = R_acc + R_format + (constant + gate · 1[R_acc > 0]) · (w_count R_count + w_iou R_iou), all weights 1 in the paper. Every arm changes one thing after the same warm start of
# five updates, which pays form and tool count; 45 updates follow, from the quickstart's base. The paper has one such ablation (without the constant: slower, and less
# over-use of the tool); its reviewers asked for the others. `experiment.py` has the same arms for 7B.

# %%
import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from experiments import plots, results
from experiments.results import TASK_NAMES, first_iou, zoomed

found = results.load('reward_parts').complete()
TASKS = ('action_recognition', 'depth_comparison')
PARTS = {'no_iou': plots.RED, 'no_count': plots.GREEN, 'no_tool': plots.ORANGE}
FACTORS = {'no_constant': plots.PINK, 'no_gate': plots.SKY}
WEIGHTS = {'iou_half': plots.GREEN, 'iou_double': plots.RED, 'count_double': plots.ORANGE}
CHANGED = (*PARTS, *FACTORS, *WEIGHTS)
seeds = found.seeds('paper', *CHANGED)

# %% [markdown]
# ## While they train
#
# On the training questions, sampled, averaged over the last five steps; mean over seeds, the band their range. A row: parts left out, factors left out, weights changed;
# the paper's reward is blue in each.

# %%
metrics = {'reward/accuracy': 'accuracy', 'zoom/iou_first': 'IoU of the first zoom', 'zoom/calls': 'calls an episode'}
figure, axes = plots.panels(3, rows=3, width=12, height=2.4)
for row, arms in enumerate((PARTS, FACTORS, WEIGHTS)):
    for axis, (metric, title) in zip(axes[3 * row : 3 * row + 3], metrics.items(), strict=True):
        lines = {found.label(arm): found.curve(arm, metric) for arm in ('paper', *arms)}
        plots.curves(axis, lines, title, colours=(plots.BLUE, *arms.values()))
plots.foot(figure, found.commits)

# %% [markdown]
# ## On held-out pages
#
# Greedy. Each arm minus the paper's reward, paired by question, in points, and for the IoU of the first zoom.

# %%
ends = {arm: (('paper', 'rarl:zoom'), (arm, 'rarl:zoom')) for arm in CHANGED}
scores = {arm: found.compare(*pair) for arm, pair in ends.items()}
boxes = {arm: found.compare(*pair, first_iou) for arm, pair in ends.items()}
figure, axes = plots.panels(2, rows=2, width=10, height=2.5)
for row, (compared, scale, words) in enumerate(
    ((scores, 100, 'accuracy, points'), (boxes, 1, 'IoU of the first zoom'))
):
    for column, task in enumerate(TASKS):
        rows = []
        for arm in CHANGED:
            each = next(each for each in compared[arm] if each.task == task)
            colour = plots.RED if each.is_shown else plots.GREY
            rows.append(results.estimate('' if column else found.label(arm), each.by_seed, colour, scale))
        plots.estimates(axes[2 * row + column], rows, f'{TASK_NAMES[task]}: {words}', zero=0)
plots.foot(figure, found.commits)

# %% [markdown]
# Red: shown, by seeds and by pages; grey: not.

# %% [markdown]
# ## What it does with the tool at the end
#
# Held-out pages, both tasks and all seeds together: the share of answers with a zoom, calls, IoU of the first zoom, and what is right with its own crop and with a grey
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
            'calls an answer': round(np.mean([len(record.attempts[0].zooms) for record in asked]), 2),
            'first IoU': round(np.mean([first_iou(record) for record in asked]), 3),
            'right, %': round(100 * np.mean([record.score for record in asked]), 1),
            'right with a grey crop, %': round(100 * np.mean([record.score for record in blank]), 1),
        }
    )
display(pd.DataFrame(rows).set_index('reward'))

# %% [markdown]
# ## How count and IoU interact
#
# Left out one at a time, and both: the effect of both less the two effects alone, seed by seed. Below 0 they add to each other; above 0 one stands in for the other.

# %%
rows, interplay = [], {}
for task in TASKS:
    for words, compared, scale in (('accuracy, points', scores, 100), ('IoU of the first zoom', boxes, 1)):
        iou, count, both = (
            np.array(next(e for e in compared[arm] if e.task == task).by_seed)
            for arm in ('no_iou', 'no_count', 'no_tool')
        )
        interval, p = results.over_seeds(scale * (both - iou - count))
        interplay[task, words] = interval, p
        rows.append(
            {
                'task': TASK_NAMES[task],
                'of': words,
                'without IoU': round(scale * iou.mean(), 3),
                'without count': round(scale * count.mean(), 3),
                'without both': round(scale * both.mean(), 3),
                'interaction': f'{interval.mean:+.3g} [{interval.low:+.3g}, {interval.high:+.3g}]',
                'shown': 'yes' if p < 0.05 else 'not significant',
            }
        )
display(pd.DataFrame(rows).set_index(['task', 'of']))

# %% [markdown]
# ## Answer
#
# The base was taught to look before it learns here, so parts that would teach a model of 7B to look at all can be missed without harm: what is shown is what they do to a policy
# that looks already.


# %%
def told(compared, scale: float, form: str) -> str:
    """What is shown of all arms, as words."""
    shown = [
        f'{found.label(arm)} ({TASK_NAMES[each.task]} {scale * each.seeds.mean:{form}})'
        for arm, each_task in compared.items()
        for each in each_task
        if each.is_shown
    ]
    return ', '.join(shown) or 'none'


Markdown(
    f'Over {len(seeds)} seeds, of {len(CHANGED)} changes these are shown to matter. Accuracy, in points: {told(scores, 100, "+.1f")}. IoU of the first zoom: '
    f'{told(boxes, 1, "+.3f")}. All others differ from the paper’s reward by no more than seeds or pages do.'
)
