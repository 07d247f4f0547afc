# %% [markdown]
# # How many updates of warm start are best, when the number of updates is given?
#
# The paper's warm start has about 16 steps that pay form and tool use alone, before 200 with the full reward. Here 50 updates are divided: 0, 5, 10, 16 or 20 of warm
# start, and the rest with the full reward, from the quickstart's base. `experiment.py` has the same arms for 7B.

# %%
import numpy as np
from IPython.display import Markdown, display

from experiments import charts, plots, results, tables
from experiments.results import TASK_NAMES, first_iou

found = results.load('warm_length').complete()
LENGTHS = {0: 'warm_0', 5: 'warm_5', 10: 'warm_10', 16: 'warm_16', 20: 'warm_20'}
TASKS = {'action_recognition': plots.BLUE, 'depth_comparison': plots.RED}
seeds = found.seeds(*LENGTHS.values())

# %% [markdown]
# ## While they train
#
# On the training questions, sampled, averaged over the last five steps; mean over seeds, the band their range.

# %%
metrics = {'reward/accuracy': 'accuracy', 'zoom/iou_first': 'IoU of the first zoom', 'reward/tool_count': 'paid zooms'}
figure = charts.training(found, dict(zip(LENGTHS.values(), plots.COLOURS, strict=False)), metrics)

# %% [markdown]
# ## On held-out pages
#
# Greedy, own zooms, against the length; the line is the mean over seeds, the band their range, a small mark each seed.

# %%
figure, axes = plots.panels(2, width=9, height=2.6)
for axis, title, scale, value in (
    (axes[0], 'right, %', 100, results.score),
    (axes[1], 'IoU of the first zoom', 1, first_iou),
):
    ends = []
    for task, colour in TASKS.items():
        values = scale * np.array([found.means(arm, 'rarl:zoom', value).loc[task] for arm in LENGTHS.values()])
        axis.fill_between(list(LENGTHS), values.min(1), values.max(1), color=colour, alpha=0.18, lw=0)
        axis.plot(list(LENGTHS), values.mean(1), 'o-', color=colour)
        axis.plot(list(LENGTHS), values, '_', color=colour, ms=6)
        ends.append((values.mean(1)[-1], TASK_NAMES[task], colour))
    axis.set(title=title, xlabel='updates of warm start, of 50', xticks=list(LENGTHS))
    plots.label_ends(axis, max(LENGTHS), ends)
plots.foot(figure, found.commits)

# %% [markdown]
# Each length against none, in points, paired by question:

# %%
against = {
    f'{length} updates': found.compare(('warm_0', 'rarl:zoom'), (arm, 'rarl:zoom'))
    for length, arm in LENGTHS.items()
    if length
}
for words, compared in against.items():
    display(tables.paired(compared, 'none', words))

# %% [markdown]
# The trend: points that each further update of warm start brings, by a line through the five lengths of every seed.

# %%
trends = {}
for task in TASKS:
    ends = 100 * np.array([found.means(arm, 'rarl:zoom').loc[task, seeds] for arm in LENGTHS.values()])
    trends[task] = results.over_seeds(np.polyfit(list(LENGTHS), ends, 1)[0])
    interval, p = trends[task]
    print(f'{TASK_NAMES[task]}: {tables.span(interval, 1, 2)} points an update, p = {p:.3f}')

# %% [markdown]
# ## Answer
#
# To be read with this in mind: the base already zooms nearly always when it answers greedily, so a warm start has little to teach it, and each of its updates is one
# less with the full reward. The arms 0 and 5 are older runs, of a program that adds up its gradients in another order. Four comparisons a task are looked at here; the adjustment is over the tasks of each.

# %%
shown = tables.shown(against)
means = {
    TASK_NAMES[task]: {length: 100 * found.means(arm, 'rarl:zoom').loc[task].mean() for length, arm in LENGTHS.items()}
    for task in TASKS
}
parts = '; '.join(
    f'{task}: {", ".join(f"{value:.1f} % with {length}" for length, value in each.items())}'
    for task, each in means.items()
)
Markdown(
    f'Over {len(seeds)} seeds: {parts}. '
    + (
        'No length differs from no warm start by more than the seeds do: that any is best is not shown.'
        if shown == 'none'
        else f'A difference from no warm start is shown for {shown}.'
    )
    + ' Each further update changes '
    + ', '.join(
        f'{TASK_NAMES[task]} by {tables.span(interval, 1, 2)} points{"" if p < 0.05 else " (not shown)"}'
        for task, (interval, p) in trends.items()
    )
    + '.'
)
