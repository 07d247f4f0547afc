# %% [markdown]
# # Can a student say from the page at once what its teacher found out by zooming?
#
# After arXiv 2602.11858: if what is found with crops can be taught to a policy that sees the page alone, zooming was needed for learning and not for answering. The teacher
# is RARL's policy of the same seed, given the right crops, on training pages; the student begins where RARL began and is taught the teacher's answers without the
# tool, in four times as many updates. Two controls: the same base taught the true answers (SFT-S of `main_table`), and a student whose vision tower learns too,
# so that a frozen tower cannot be the reason.

# %%
import pandas as pd
from IPython.display import Markdown, display

from experiments import plots, results
from experiments.results import TASK_NAMES

found = results.load('distilled')
TASKS = ('action_recognition', 'depth_comparison')
SHOWN = (
    ('RARL, zooming', 'rarl', 'rarl:zoom', plots.RED),
    ('RARL, the page alone', 'rarl', 'rarl:direct', plots.RED),
    ('taught the true answers', 'truth', 'tuned:direct', plots.GREY),
    ('taught the teacher’s answers', 'distilled', 'distilled:direct', plots.BLUE),
    ('the same, tower too', 'distilled', 'distilled_tower:direct', plots.BLUE),
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
rows = []
for label, arm, evaluation, _ in SHOWN:
    scores = 100 * found.means(arm, evaluation)
    row = {'': label}
    for task in TASKS:
        low, high = scores.loc[task].min(), scores.loc[task].max()
        row[f'{TASK_NAMES[task]}, %'] = f'{scores.loc[task].mean():.1f} ({low:.1f}–{high:.1f})'
    rows.append(row)
display(pd.DataFrame(rows).set_index(''))

# %%
figure, axes = plots.panels(2, width=9, height=2.2)
for axis, task in zip(axes, TASKS, strict=True):
    shown = [
        results.estimate(label if axis is axes[0] else '', found.means(arm, evaluation).loc[task], colour)
        for label, arm, evaluation, colour in SHOWN
    ]
    plots.estimates(axis, shown, f'{TASK_NAMES[task]}: right, %')
    axis.set_xlim(0, 100)
plots.foot(figure, found.commits)

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
for label, arm, evaluation, _ in SHOWN[2:]:
    gaps[label] = found.compare(('rarl', 'rarl:zoom'), (arm, evaluation))
    display(results.table(gaps[label], 'RARL, zooming', label))

# %% [markdown]
# ## Answer
#
# A page has 48 image tokens here, and a figure on it is seldom larger than one of them: what an action is drawn with is lost before the tower sees it. That zooming cannot be
# distilled away here says what the limit is where details are lost in the page's resolution; a model whose pages keep them may come out otherwise. Both losses still fall when the
# updates end, that of the learning tower faster: what more updates would bring is not shown.

# %%
best = gaps['the same, tower too'], gaps['taught the teacher’s answers']
needed = all(each.is_shown and each.seeds.mean < 0 for compared in best for each in compared)
parts = '; '.join(
    f'{label} '
    + ', '.join(
        f'{100 * each.seeds.mean:+.1f} points [{100 * each.seeds.low:+.1f}, {100 * each.seeds.high:+.1f}] ({TASK_NAMES[each.task]})'
        for each in compared
    )
    for label, compared in gaps.items()
)
Markdown(
    f'{"No: zooming is needed for answering too" if needed else "That zooming is needed is not shown on both tasks"}. Against RARL with its zooms, over '
    f'{len(found.seeds("rarl", "distilled"))} seeds: {parts}.'
)
