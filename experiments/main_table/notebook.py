# %% [markdown]
# # What does each way of training bring, on the same pages and with as many updates?
#
# The paper's main table at the quickstart's size: the base policy untouched, taught by answers (SFT-S), taught by looks (SFT-R), trained by reinforcement
# without the tool, with it (RARL), and RARL on top of SFT-R. Every arm that learns has 50 updates with 32 questions each, RL on top of SFT-R these after
# SFT-R's own, 100 in all; reinforcement tries each question eight times. `experiment.py` has the same arms for 7B. In the paper, at 7B, the base is right on
# 43.5 % of actions and 49.5 % of depth, and with the right crops given on 55.8 and 54.3 %; RARL adds up to 32.7 and 7.3 points, and RL on top of SFT-R does
# worse than SFT-R.

# %%
from IPython.display import Markdown, display

from experiments import charts, pictures, results, tables
from experiments.results import SMALL_TASKS, TASK_NAMES, first_iou

found = results.load('main_table')

# %% [markdown]
# ## The table
#
# Held-out pages, greedy; the mean over seeds with its range. The last rows have the right crops given before they look for themselves: what seeing alone would
# bring.

# %%
table = tables.scores(found, pictures.METHODS)
for task in SMALL_TASKS:
    table[f'{TASK_NAMES[task]}, IoU of the first zoom'] = [
        f'{found.means(row.arm, row.evaluation, first_iou).loc[task].mean():.2f}'
        if row.evaluation.endswith(':zoom')
        else '–'
        for row in pictures.METHODS
    ]
display(table)

# %%
figure = pictures.main_table()

# %% [markdown]
# ## Against RARL
#
# Paired by question, in points: each method minus RARL of the same seed.

# %%
RARL = ('rarl', 'rarl:zoom')
others = {
    row.label: found.compare(RARL, (row.arm, row.evaluation))
    for row in pictures.METHODS
    if row.arm != 'rarl' and not row.evaluation.endswith('oracle_zoom')
}
figure = charts.differences(found, others, 'method − RARL, points')

# %% [markdown]
# Red: shown, by seeds and by pages; grey: not. RL on top of SFT-R against SFT-R, and against RARL:

# %%
on_top = found.compare(('sft_r', 'tuned:zoom'), ('rl_after_sft_r', 'rarl:zoom'))
display(tables.paired(on_top, 'SFT-R', 'RL on top'))
display(tables.paired(others['RL on top of SFT-R'], 'RARL', 'RL on top'))

# %% [markdown]
# ## Answer
#
# A world of drawn pages, where actions and depths can be read exactly and the base was taught to look: its distances are not those of real comics. SFT-R's
# traces are made from the annotations and hold the exact boxes that RARL's reward only scores; traces that a model has written need not be as good. Without the
# tool an answer cannot be seen on a page of 48 image tokens, so what is taught or rewarded there is guessing; RL without tool ends in one constant answer a
# task. RARL's and zero-shot's runs are of an older program, which adds up its gradients in another order (see `stability`).

# %%
better = [label for label, compared in others.items() if all(e.is_shown and e.seeds.mean < 0 for e in compared)]
Markdown(
    f'RARL is better on both tasks, as shown by {len(found.seeds("rarl", "sft_r"))} seeds, than: {"; ".join(better) or "none"}. Against RARL, in points [95 % over seeds]: '
    f'{"; ".join(f"{label} {tables.told(compared)}" for label, compared in others.items())}. RL on top of SFT-R changes SFT-R by '
    f'{tables.told(on_top)}.'
)
