# %% [markdown]
# # Can a student say from the page at once what its teacher found out by zooming?
#
# After arXiv 2602.11858: if what is found with crops can be taught to a policy that sees the page alone, zooming was needed for learning and not for answering.
# The teacher is RARL's policy of the same seed, given the right crops, on training pages; the student begins where RARL began and is taught the teacher's
# answers without the tool, in 200 updates. Two controls: the same base taught the true answers (SFT-S of `main_table`, 50 updates), and a student whose vision
# tower learns too, so that a frozen tower cannot be the reason.

# %%
import pandas as pd
from IPython.display import Markdown, display

from experiments import charts, plots, results, tables
from experiments.results import TASK_NAMES
from experiments.tables import Row

found = results.load('distilled')
SHOWN = (
    Row('RARL, zooming', 'distilled', 'rarl:zoom', plots.RED),
    Row('another RARL, the page alone', 'rarl', 'rarl:direct', plots.GREY),
    Row('taught the true answers', 'truth', 'tuned:direct', plots.GREY),
    Row('taught the teacher’s answers', 'distilled', 'distilled:direct', plots.BLUE),
    Row('the same, tower too', 'distilled', 'distilled_tower:direct', plots.BLUE),
)

# %% [markdown]
# ## What the teacher says on training pages
#
# Shares that are right, with the right crops given. These answers, right or wrong, are what the student is taught.

# %%
teacher = 100 * found.means('distilled', 'teacher:oracle_zoom')
teacher.index = [TASK_NAMES[task] for task in teacher.index]
display(teacher.round(1).rename(columns=lambda seed: f'seed {seed}, %'))

# %% [markdown]
# ## On held-out pages

# %%
display(tables.scores(found, SHOWN))

# %%
figure = charts.scores(found, SHOWN)

# %% [markdown]
# Does it learn its training pages? The loss of what it is taught, over its updates:

# %%
figure, axes = plots.panels(2, width=9, height=2.2)
for axis, stage, title in zip(
    axes, ('student', 'student_tower'), ('loss, tower frozen', 'loss, tower learns'), strict=True
):
    lines = {}
    for run in found.of('distilled'):
        rows = run.metrics[run.metrics.stage == stage].reset_index(drop=True)
        lines[run.seed] = rows.loss.rolling(5, min_periods=1).mean()
    plots.curves(axis, {'': pd.DataFrame(lines)}, title)
    axis.set_ylim(bottom=0)
plots.foot(figure, found.commits)

# %% [markdown]
# Against RARL with its zooms, paired by question:

# %%
gaps = {}
for row in SHOWN[2:]:
    gaps[row.label] = found.compare(('distilled', 'rarl:zoom'), (row.arm, row.evaluation))
    display(tables.paired(gaps[row.label], 'RARL, zooming', row.label))

# %% [markdown]
# The student whose tower learns against the one whose tower is frozen:

# %%
tower = found.compare(('distilled', 'distilled:direct'), ('distilled', 'distilled_tower:direct'))
display(tables.paired(tower, 'frozen', 'learning'))

# %% [markdown]
# ## Answer
#
# A page has 48 image tokens here, and a figure covers one or two of them: what an action is drawn with is lost before the tower sees it. That zooming cannot be
# distilled away here says what the limit is where details are lost in the page's resolution; a model whose pages keep them may come out otherwise. Both losses
# still fall when the updates end, that of the learning tower faster: what more updates would bring is not shown.

# %%
best = gaps['the same, tower too'], gaps['taught the teacher’s answers']
needed = all(each.is_shown and each.seeds.mean < 0 for compared in best for each in compared)
parts = '; '.join(f'{label} {tables.told(compared)}' for label, compared in gaps.items())
Markdown(
    f'{"No: zooming is needed for answering too" if needed else "That zooming is needed is not shown on both tasks"}. Against RARL with its zooms, over '
    f'{len(found.seeds("truth", "distilled"))} seeds, in points [95 % over seeds]: {parts}. With the tower learning, against frozen: {tables.told(tower)}.'
)
