# %% [markdown]
# # What does each way of training bring, on the same pages and with as many updates?
#
# The paper's main table at the quickstart's size: the base policy untouched, taught by answers (SFT-S), taught by looks (SFT-R), trained by reinforcement without
# the tool, with it (RARL), and RARL on top of SFT-R. Every arm that learns has 50 updates with 32 questions each; reinforcement tries each question eight times.
# `experiment.py` has the same arms for 7B. In the paper, at 7B, the base is right on 43.5 % of actions and 49.5 % of depth, and with the right crops given on 55.8 and
# 54.3 %; RARL adds 32.7 and 7.3 points, and RL on top of SFT-R does worse than SFT-R.

# %%
import pandas as pd
from IPython.display import Markdown, display

from experiments import pictures, plots, results
from experiments.results import TASK_NAMES, first_iou

found = results.load('main_table')
TASKS = ('action_recognition', 'depth_comparison')

# %% [markdown]
# ## The table
#
# Held-out pages, greedy; the mean over seeds with its range. The last rows have the right crops given before they look for themselves: what seeing alone would bring.

# %%
rows = []
for label, arm, evaluation, _ in pictures.METHODS:
    row = {'': label}
    scores, boxes = 100 * found.means(arm, evaluation), found.means(arm, evaluation, first_iou)
    for task in TASKS:
        low, high = scores.loc[task].min(), scores.loc[task].max()
        row[f'{TASK_NAMES[task]}, %'] = f'{scores.loc[task].mean():.1f} ({low:.1f}–{high:.1f})'
        looks = evaluation.endswith(':zoom')
        row[f'{TASK_NAMES[task]}, IoU of the first zoom'] = f'{boxes.loc[task].mean():.2f}' if looks else '–'
    rows.append(row)
display(pd.DataFrame(rows).set_index(''))

# %%
figure = pictures.main_table()

# %% [markdown]
# ## Against RARL
#
# Paired by question, in points: each method minus RARL of the same seed.

# %%
RARL = ('rarl', 'rarl:zoom')
others = {
    label: found.compare(RARL, (arm, evaluation))
    for label, arm, evaluation, given in pictures.METHODS
    if not given and arm != 'rarl'
}
rows = [
    results.estimate(f'{label}, {TASK_NAMES[each.task]}{"" if each.is_shown else " (not shown)"}', each.by_seed, colour)
    for label, compared in others.items()
    for each, colour in zip(compared, (plots.BLUE, plots.GREEN), strict=True)
]
figure, [axis] = plots.panels(1, width=7.5, height=3.4)
plots.estimates(axis, rows, 'method − RARL in points: mean, 95 % over seeds, each seed', zero=0)
plots.foot(figure, found.commits)

# %% [markdown]
# RL on top of SFT-R against SFT-R, and against RARL:

# %%
on_top = found.compare(('sft_r', 'tuned:zoom'), ('rl_after_sft_r', 'rarl:zoom'))
display(results.table(on_top, 'SFT-R', 'RL on top'))
display(results.table(others['RL on top of SFT-R'], 'RARL', 'RL on top'))

# %% [markdown]
# ## Answer
#
# A world of drawn pages, where actions and depths can be read exactly and the base was taught to look: its distances are not those of real comics. SFT-R's traces are made
# from the annotations and hold the exact boxes that RARL's reward only scores; traces that a model has written need not be as good. Without the tool an answer cannot be
# seen on a page of 48 image tokens, so what is taught or rewarded there is guessing.

# %%


def told(label: str) -> str:
    return f'{label} ' + ', '.join(
        f'{100 * each.seeds.mean:+.1f} [{100 * each.seeds.low:+.1f}, {100 * each.seeds.high:+.1f}] ({TASK_NAMES[each.task]})'
        for each in others[label]
    )


better = [label for label, compared in others.items() if all(e.is_shown and e.seeds.mean < 0 for e in compared)]
verdict = 'is shown on both tasks' if all(e.is_shown for e in on_top) else 'is not shown on both tasks'
Markdown(
    f'RARL is better on both tasks, as shown by {len(found.seeds("rarl", "sft_r"))} seeds, than: {", ".join(better) or "none"}. Against RARL, in points: '
    f'{"; ".join(told(label) for label in others)}. RL on top of SFT-R changes SFT-R by '
    f'{", ".join(f"{100 * e.seeds.mean:+.1f} ({TASK_NAMES[e.task]})" for e in on_top)}, a difference that {verdict}.'
)
