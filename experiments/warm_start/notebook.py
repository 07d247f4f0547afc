# %% [markdown]
# # Does a warm start lead to better boxes and answers than the full reward from the first step?
#
# RARL trains in two phases: some steps that pay only form and tool use, then the full reward. The paper says that this matters. Here both arms have the same
# base policy, pages, questions and number of updates, 50: five of warm start and 45 of the full reward, or 50 of the full reward. The size is the
# quickstart's; `experiment.py` has the same arms for 7B.

# %%
from IPython.display import Markdown, display

from experiments import plots, results
from experiments.results import first_iou

found = results.load('warm_start')
colours = {'warm_start': plots.BLUE, 'single_phase': plots.RED}

# %% [markdown]
# ## While they train
#
# On the training questions, sampled, averaged over the last five steps; the line is the mean over seeds, the band their range. The dotted line marks the end of
# the warm start.

# %%
metrics = {
    'reward/accuracy': 'accuracy',
    'zoom/iou_first': 'IoU of the first zoom',
    'reward/tool_count': 'paid zooms an episode',
    'reward/format': 'well-formed',
}
figure, axes = plots.panels(2, rows=2, height=2.4)
for axis, (metric, title) in zip(axes, metrics.items(), strict=True):
    plots.curves(
        axis, {found.label(arm): found.curve(arm, metric) for arm in colours}, title, colours=tuple(colours.values())
    )
    axis.axvline(5.5, color='#444444', lw=0.8, ls=':')
plots.foot(figure, found.commits)

# %% [markdown]
# ## On held-out pages
#
# Greedy answers with the policy's own zooms, in points, and the IoU of the first zoom. A difference counts as shown only where the seeds agree on it (Student's
# interval over the seeds' differences) and the pages do (bootstrap, after Holm).

# %%
ends = ('single_phase', 'rarl:zoom'), ('warm_start', 'rarl:zoom')
scores = found.compare(*ends)
display(results.table(scores, 'single phase', 'warm start'))
boxes = found.compare(*ends, first_iou)
display(results.table(boxes, 'single phase', 'warm start', percent=False))

# %%
gain = found.compare(('base', 'base:zoom'), ('warm_start', 'rarl:zoom'))
display(results.table(gain, 'base', 'warm start'))

# %%
figure, [axis] = plots.panels(1, width=7, height=2.2)
rows = [
    results.estimate(f'{label}, {results.TASK_NAMES[each.task]}', each.by_seed, colour)
    for label, compared, colour in (
        ('warm start − base', gain, plots.GREEN),
        ('warm start − single phase', scores, plots.BLUE),
    )
    for each in compared
]
plots.estimates(axis, rows, 'difference in points: mean, 95 % over seeds, each seed', zero=0)
plots.foot(figure, found.commits)

# %% [markdown]
# ## Answer
#
# To be read with this in mind: the base policy already zooms nearly always when it answers greedily, and in about half of its samples, so there is little that a
# warm start must teach it. To a model of 7B the tool is new. The intervals are over seeds of training; the base policy is one and the same.

# %%
seeds = found.seeds(*colours)
shown = [results.TASK_NAMES[each.task] for each in scores if each.is_shown]
parts = ', '.join(
    f'{results.TASK_NAMES[each.task]} {100 * each.seeds.mean:+.1f} points [{100 * each.seeds.low:+.1f}, {100 * each.seeds.high:+.1f}]'
    for each in scores
)
verdict = f'A difference is shown for {", ".join(shown)}.' if shown else 'No difference between the two is shown.'
Markdown(
    f'With {len(seeds)} seeds of each arm{"" if len(seeds) > 2 else ", too few to tell a small difference"}, warm start against single phase: {parts}; IoU of the first zoom '
    f'{", ".join(f"{each.seeds.mean:+.3f}" for each in boxes)}. {verdict} Against the base policy both gain: the warm start '
    f'{", ".join(f"{results.TASK_NAMES[each.task]} {100 * each.seeds.mean:+.1f}" for each in gain)}.'
)
