# %% [markdown]
# # How many updates of warm start are best, when the number of updates is given?
#
# The paper's warm start has about 16 steps that pay form and tool use alone, before 200 with the full reward. Here 50 updates are divided: 0, 5, 10, 16 or 20
# of warm start, and the rest with the full reward, from the quickstart's base. `experiment.py` has the same arms for 7B.

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
    (axes[0], 'score, %', 100, results.score),
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
# Each length against none, paired by question: scores, and the IoU of the first zoom.

# %%
ends = {f'{length} updates': (('warm_0', 'rarl:zoom'), (arm, 'rarl:zoom')) for length, arm in LENGTHS.items() if length}
against = {words: found.compare(*pair) for words, pair in ends.items()}
boxes = {words: found.compare(*pair, first_iou) for words, pair in ends.items()}
for words, compared in against.items():
    display(tables.paired(compared, 'none', words))
    display(tables.paired(boxes[words], 'none', words, 'IoU', 1, 3))

# %% [markdown]
# The trend: points that each further update of warm start brings, by a line through the five lengths of every seed; shown or not by seeds alone, after Holm.

# %%
slopes = {}
for task in TASKS:
    ends = np.array([found.means(arm, 'rarl:zoom').loc[task, seeds] for arm in LENGTHS.values()])
    slopes[TASK_NAMES[task]] = np.polyfit(list(LENGTHS), ends, 1)[0]
trends = tables.by_seeds(slopes, digits=2)
for task, words in trends.items():
    print(f'{task}: {words} points per update')

# %% [markdown]
# ## Answer
#
# To be read with this in mind: the base already zooms nearly always when it answers greedily, so a warm start has little to teach it, and each of its updates
# is one less with the full reward. The arms 0 and 5 are older runs, of a program that adds up its gradients in another order. Four comparisons a task are
# looked at here; the adjustment is over the tasks of each.

# %%
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
    + f'Differences from no warm start that are shown, in points: {tables.shown(against)}; in IoU of the first zoom: {tables.shown(boxes, 1, 3)}. '
    + f'By seeds alone, each further update changes, in points [95 % over seeds], {", ".join(f"{task} by {words}" for task, words in trends.items())}.'
)
