# %% [markdown]
# # Is it better to learn one category after the other than all at once, and what does it cost the earlier ones?
#
# The paper trains recognition, then ordering, then characters, and says that joint training degraded the earlier tasks. Here all arms start from one base that
# knows the three categories (`experiments/wider_base`) and have 80 updates of 16 questions: five of warm start, then 25 for each category in turn, with or
# without a quarter of earlier questions, or 75 for all at once, at the recipe's rate and at a third of it. `experiment.py` has
# the same arms for 7B.

# %%
import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from experiments import charts, plots, results, tables
from experiments.results import TASK_NAMES

found = results.load('curriculum').complete()
CATEGORIES = {
    'recognition': ('action_recognition', 'depth_comparison'),
    'order': ('panel_reordering',),
    'characters': ('character_counting', 'character_identification'),
}
TASKS = [task for tasks in CATEGORIES.values() for task in tasks]
STAGES = ('base', 'recognised', 'reordered', 'rarl')  # evaluations of an arm that learns one after the other
APART = {'sequential': plots.BLUE, 'replay': plots.GREEN}
JOINT = {'joint': plots.RED, 'joint_slow': plots.ORANGE}
seeds = found.seeds(*APART, *JOINT)

# %% [markdown]
# ## After each stage
#
# Scores on held-out pages, greedy, own zooms (counting gets half a point for one off, ordering Kendall's tau); mean over seeds, the band their range. The
# shaded stage is the one that trains the task; all lines start at the base. Squares at the right are the joint arms' ends, with their range over seeds.

# %%
figure, axes = plots.panels(3, rows=2, width=11, height=2.6)
PLACES = dict(zip(JOINT, (3.4, 3.7), strict=True))  # of the joint arms' ends, beside the last stage
for axis, task in zip(axes, TASKS, strict=False):
    place = next(number for number, tasks in enumerate(CATEGORIES.values()) if task in tasks)
    axis.axvspan(place + 0.02, place + 0.98, color='#F2F2F2')
    for arm, colour in APART.items():
        values = 100 * np.array([found.means(arm, f'{stage}:zoom').loc[task] for stage in STAGES])
        axis.fill_between(range(4), values.min(1), values.max(1), color=colour, alpha=0.18, lw=0)
        axis.plot(range(4), values.mean(1), 'o-', color=colour)
    for arm, colour in JOINT.items():
        values = 100 * found.means(arm, 'rarl:zoom').loc[task]
        axis.plot([PLACES[arm]] * 2, [values.min(), values.max()], color=colour, lw=4, alpha=0.3)
        axis.plot(PLACES[arm], values.mean(), 's', color=colour, ms=6)
    axis.set(title=f'{TASK_NAMES[task]}: score, %', xticks=range(4), xticklabels=['base', *CATEGORIES])
    axis.set(xlim=(-0.1, 4), ylim=(-3, 103))
key = axes[-1]
key.set_axis_off()
for row, (arm, colour) in enumerate((APART | JOINT).items()):
    key.plot([0, 0.12], [-row] * 2, 'o-' if arm in APART else 's', color=colour, markevery=[1])
    key.text(0.2, -row, found.label(arm), color=colour, va='center')
key.set(xlim=(-0.05, 1.6), ylim=(-5, 1))
plots.foot(figure, found.commits)

# %% [markdown]
# ## What is forgotten
#
# From the stage that trained a task to the end, in points, paired by question; the adjustment is over the tasks of a stage.

# %%
AFTER = {'recognised': CATEGORIES['recognition'], 'reordered': CATEGORIES['order']}
forgotten = {}
for arm in APART:
    forgotten[arm] = [
        each
        for stage, tasks in AFTER.items()
        for each in found.compare((arm, f'{stage}:zoom'), (arm, 'rarl:zoom'), tasks=tasks)
    ]
    display(Markdown(f'**{found.label(arm)}**'))
    display(tables.paired(forgotten[arm], 'after its stage', 'at the end'))

# %% [markdown]
# ## Does it still answer in kind?
#
# A question about a count wants a number, one about an action a verb. The share of answers, right or wrong, that would be right for some held-out question of that
# task, %, all seeds together. What a policy no longer says, no reward can teach it again.

# %%
right = {}
for run in found.of('sequential'):
    for record in run.answers['base:zoom']:
        right.setdefault(record.task, set()).add(record.answer)


def in_kind(record) -> float:
    return float(record.attempts[0].prediction in right[record.task])


def kinds(arm: str, evaluation: str) -> dict[str, float]:
    shares = 100 * found.means(arm, evaluation, in_kind).mean(axis=1)
    return {TASK_NAMES[task]: round(shares.loc[task], 1) for task in TASKS}


after = dict(zip(STAGES, ('base', *(f'after {name}' for name in CATEGORIES)), strict=True))
rows = {(found.label(arm), name): kinds(arm, f'{stage}:zoom') for arm in APART for stage, name in after.items()}
rows |= {(found.label(arm), 'at the end'): kinds(arm, 'rarl:zoom') for arm in JOINT}
display(pd.DataFrame.from_dict(rows, orient='index'))

# %% [markdown]
# Whether it answers at all: the share of conversations at the end that have no answer, %, seed by seed. The later stages pay up to three
# zooms, and half as much for each where the answer is wrong or missing: a policy can live on calls.


# %%
def silent(run) -> float:
    records = run.answers['rarl:zoom']
    return 100 * np.mean([record.attempts[0].finish_reason != 'answer' for record in records])


unanswered = pd.DataFrame(
    {found.label(arm): {f'seed {run.seed}': silent(run) for run in found.of(arm)} for arm in (*APART, *JOINT)}
)
display(unanswered.T.round(1))

# %% [markdown]
# ## All at once against one after the other
#
# At the end, each arm against `one after the other`, paired by question. Red: shown, by seeds and by pages; grey: not.

# %%
against = {
    found.label(arm): found.compare(('sequential', 'rarl:zoom'), (arm, 'rarl:zoom')) for arm in ('replay', *JOINT)
}
for tasks in (TASKS[:3], TASKS[3:]):
    shown = {label: [each for each in compared if each.task in tasks] for label, compared in against.items()}
    figure = charts.differences(found, shown, 'points')
by_task = {
    label: {TASK_NAMES[each.task]: tables.verdict(each) for each in compared} for label, compared in against.items()
}
display(pd.DataFrame.from_dict(by_task, orient='index'))

# %% [markdown]
# ## All five tasks together
#
# The mean over the tasks, %, seed by seed; the differences in points [95 % over seeds], shown or not after Holm over those of a column.

# %%
overall = pd.DataFrame({found.label(arm): found.means(arm, 'rarl:zoom').loc[TASKS].mean() for arm in (*APART, *JOINT)})
overall['base'] = found.means('sequential', 'base:zoom').loc[TASKS].mean()
first = found.label('sequential')
gained = tables.by_seeds({label: overall[label] - overall[first] for label in against})
trained = tables.by_seeds({label: overall[label] - overall['base'] for label in (first, *against)})
table = (100 * overall).round(1).rename(index='seed {}'.format).astype(str)
table.loc['mean'] = (100 * overall.mean()).map('{:.1f}'.format)
table.loc['Δ to one after the other'] = pd.Series(gained)
table.loc['Δ to the base'] = pd.Series(trained)
display(table.T.fillna('–'))

# %% [markdown]
# ## Answer
#
# A stage is compared with itself later, an arm with another: neither knows how far the same arm with the same seed would lie from itself (see `stability`).

# %%
Markdown(
    f'Over {len(seeds)} seeds, in points [95 % over seeds]. Mean over the five tasks against one after the other: '
    f'{"; ".join(f"{label} {words}" for label, words in gained.items())}. '
    f'Against the base: {"; ".join(f"{label} {words}" for label, words in trained.items())}. '
    f'Forgotten from a task’s own stage to the end: {tables.told(forgotten["sequential"])}; with a quarter of earlier questions '
    f'{tables.told(forgotten["replay"])}. Runs that answer fewer than half of the questions at the end: {(unanswered > 50).to_numpy().sum()} of {unanswered.size}. '
    f'Task by task, against one after the other, these differences are shown: {tables.shown(against)}.'
)
