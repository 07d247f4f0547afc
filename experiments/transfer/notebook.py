# %% [markdown]
# # Does a policy that was trained on actions and depth identify characters better than before?
#
# The paper tests its policy on a task that it was not trained for. Here: the base (`experiments/wider_base`), what 30 updates on actions and depth make of it,
# and, to measure transfer by, what as many updates on identification itself do. The first two are evaluations of `curriculum`'s first arm.

# %%
from IPython.display import Markdown, display

from experiments import charts, plots, results, tables
from experiments.results import first_iou
from experiments.tables import Row

found = results.load('transfer').complete()
TASK, OTHERS = 'character_identification', ('action_recognition', 'depth_comparison')
seeds = found.seeds('recognition', 'identification')
BASE = ('recognition', 'base:zoom')
TRAINED = {
    'trained on actions and depth': ('recognition', 'recognised:zoom'),
    'trained on identification': ('identification', 'rarl:zoom'),
}

# %% [markdown]
# ## On held-out pages
#
# Greedy, own zooms: identification, then the two tasks that the second policy was trained on.

# %%
colours = (plots.BLUE, plots.GREEN)
rows = [Row('base', *BASE, plots.GREY)]
rows += [Row(label, *end, colour) for (label, end), colour in zip(TRAINED.items(), colours, strict=True)]
figure = charts.scores(found, rows, (TASK, *OTHERS))

# %%
scores = {label: found.compare(BASE, end, tasks=[TASK]) for label, end in TRAINED.items()}
boxes = {label: found.compare(BASE, end, first_iou, [TASK]) for label, end in TRAINED.items()}
for label, end in TRAINED.items():
    display(tables.paired(scores[label], 'base', label))
    display(tables.paired(boxes[label], 'base', label, 'IoU', 1, 3))
    display(tables.paired(found.compare(BASE, end, tasks=OTHERS), 'base', label))

# %% [markdown]
# ## Answer

# %%
(here, own), (looks, own_looks) = scores.values(), boxes.values()
verdict = 'That is not shown'
if here[0].is_shown:
    verdict = 'Yes' if here[0].seeds.mean > 0 else 'No: it does worse'
caution = ''
if not own[0].is_shown:
    caution = ' Where training on the task itself is not shown to raise its score, little can be said of transfer by the score; boxes tell more.'
Markdown(
    f'{verdict}: {tables.told(here)} points [95 % over seeds] over {len(seeds)} seeds; training on the task itself brings {tables.told(own)}. '
    f'IoU of the first zoom: {tables.told(looks, 1, 3)}, and by training on the task itself {tables.told(own_looks, 1, 3)}.{caution}'
)
