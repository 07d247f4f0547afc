# %% [markdown]
# # Does a warm start lead to better boxes and answers than the full reward from the first step?
#
# RARL trains in two phases: some steps that pay only form and tool use, then the full reward. The paper says that this matters. Here both arms have the same
# base policy, pages, questions and number of updates, 50: five of warm start and 45 of the full reward, or 50 of the full reward. The size is the
# quickstart's; `experiment.py` has the same arms for 7B.

# %%
from IPython.display import Markdown, display

from experiments import charts, plots, results, tables
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
    'reward/tool_count': 'paid zooms per episode',
    'reward/format': 'well-formed',
}
figure = charts.training(found, colours, metrics, columns=2, warm_start=5)

# %% [markdown]
# ## On held-out pages
#
# Greedy answers with the policy's own zooms, and the IoU of the first zoom. A difference counts as shown only where both agree on it, the seeds (Student's test over
# their differences) and the pages (bootstrap), after Holm over the two tasks.

# %%
ends = ('single_phase', 'rarl:zoom'), ('warm_start', 'rarl:zoom')
scores = found.compare(*ends)
display(tables.paired(scores, 'single phase', 'warm start'))
boxes = found.compare(*ends, first_iou)
display(tables.paired(boxes, 'single phase', 'warm start', 'IoU', 1, 3))

# %%
gain = found.compare(('base', 'base:zoom'), ('warm_start', 'rarl:zoom'))
display(tables.paired(gain, 'base', 'warm start'))

# %%
figure = charts.differences(found, {'warm start − base': gain, 'warm start − single phase': scores})

# %% [markdown]
# Red: shown, by seeds and by pages; grey: not.

# %% [markdown]
# ## Answer
#
# To be read with this in mind: the base policy already zooms nearly always when it answers greedily, and in about half of its samples, so there is little that a
# warm start must teach it. To a model of 7B the tool is new. The intervals are over seeds of training; the base policy is one and the same.

# %%
seeds = found.seeds(*colours)
shown = tables.shown({'warm start': scores})
verdict = 'No difference between the two is shown.' if shown == 'none' else f'A difference is shown for {shown}.'
Markdown(
    f'With {len(seeds)} seeds of each arm{"" if len(seeds) > 2 else ", too few to tell a small difference"}, warm start against single phase, in points [95 % over seeds]: {tables.told(scores)}; IoU of the first zoom '
    f'{tables.told(boxes, 1, 3)}. {verdict} Against the base policy the warm start brings {tables.told(gain)}.'
)
