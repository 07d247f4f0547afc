# %% [markdown]
# # How much does a run vary with its seed, and what does it cost?
#
# One seed is one draw. These are the quickstart's two phases with several seeds: the same base policy, pages and settings; the seed decides the order of the
# questions, what is sampled, and which of the test questions are asked. What a step costs is told three ways: seconds measured on this run's machine, shared with
# other work, operations counted by the preflight, and what these operations come to at 7B.

# %%
import json
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from scipy import stats

from experiments import plots, results
from experiments.results import TASK_NAMES

found = results.load('warm_start').only('base', 'warm_start').complete()
runs = found.of('warm_start')

# %% [markdown]
# ## Every seed's curve

# %%
metrics = {
    'reward/accuracy': 'accuracy',
    'zoom/iou_first': 'IoU of the first zoom',
    'policy/entropy': 'entropy of chosen tokens, nats',
}
figure, axes = plots.panels(3, width=10, height=2.4)
for axis, (metric, title) in zip(axes, metrics.items(), strict=True):
    curve = found.curve('warm_start', metric)
    for seed, colour in zip(curve, plots.COLOURS, strict=False):
        axis.plot(curve.index, curve[seed], color=colour, lw=1.2)
    axis.set(title=title, xlabel='update')
    ends = [(curve[seed].iloc[-1], f'seed {seed}', c) for seed, c in zip(curve, plots.COLOURS, strict=False)]
    plots.label_ends(axis, curve.index[-1], ends)
plots.foot(figure, found.commits)

# %% [markdown]
# ## How far the ends lie apart
#
# Held-out pages, greedy, in percent: the three seeds, and the same seeds once more (the teachers of `distilled`), on the same pages with the same settings, but
# by a later program that adds up its gradients in another order and pads otherwise. The first updates earn the same rewards; then rounding tells, as one token
# that is sampled otherwise changes what is learned: a seed does not fix a run.

# %%
first = 100 * found.means('warm_start', 'rarl:zoom')
again = 100 * results.load('distilled').means('distilled', 'rarl:zoom')
replicates = pd.concat({'first': first, 'again': again, 'change': again - first}, axis=1).round(1)
replicates.index = [TASK_NAMES[task] for task in replicates.index]
display(replicates)

# %% [markdown]
# Two spreads: of these six runs, and the one that 300 questions alone would give (binomial; seeds share about half of their questions, so it is an upper bound
# of what their draw adds). The last column is what two arms must differ by on one task alone for Student's test over their seeds to show it beside the other
# task, after Holm, where pairing gains nothing.

# %%
rows = []
seeds = found.seeds('warm_start')
for task in first.index:
    values = np.concatenate([first.loc[task], again.loc[task]])
    n = len([record for record in runs[0].answers['rarl:zoom'] if record.task == task])
    mean, spread = values.mean(), values.std(ddof=1)
    sampling = 100 * np.sqrt(mean / 100 * (1 - mean / 100) / n)
    least = stats.t.ppf(1 - 0.05 / 2 / len(first), len(seeds) - 1) * spread * np.sqrt(2 / len(seeds))
    rows.append(
        {
            'task': TASK_NAMES[task],
            'mean': round(mean, 1),
            'sd of runs': round(spread, 1),
            'sd of the questions alone': round(sampling, 1),
            f'least difference that {len(seeds)} seeds per arm would show': round(least, 1),
        }
    )
spreads = pd.DataFrame(rows).set_index('task')
display(spreads)

# %% [markdown]
# ## Where a step's seconds go
#
# Medians over the main stage's steps, a share of each. The machine was shared: the shares are meant, not the seconds.

# %%
parts = ['rollout', 'reward', 'update']
times = pd.concat([run.metrics[run.metrics.stage == 'main'] for run in runs])
median = times[[f'time/{part}' for part in parts]].median()
share = (100 * median / median.sum()).round(1)
display(pd.DataFrame({'share of a step, %': share.values, 'median, s': median.round(2).values}, index=parts))

# %% [markdown]
# ## Operations, and 7B
#
# Counted by the preflight on the programs that a run compiles: matrix products of the largest update that the config allows, recomputation included, and of a
# decoded token of all rows. The hours assume that an H100 reaches 40 % of its 989 TFLOP/s on an update: an assumption, not a measurement.

# %%
cost = json.loads(Path('experiments/stability/results/cost.json').read_text())
rows = []
for config, known in cost['configs'].items():
    update = known['needs']['update_flops'] * known['largest']['micro_batches']
    rows.append(
        {
            'config': config,
            'parameters': f'{known["parameters"] / 1e6:,.1f} M',
            'devices': known['devices'],
            'GB on each at most': round(max(known['phases'].values()) / 1e9, 2),
            'TFLOP per update': round(update / 1e12, 2),
            'GFLOP per decoded token of all rows': round(known['needs']['decode_flops'] / 1e9, 2),
            'update at 40 % of 989 TFLOP/s per device': ''
            if 'quickstart' in config
            else f'{update / known["devices"] / 0.4 / 989e12 / 60:.1f} min',
        }
    )
display(pd.DataFrame(rows).set_index('config'))
print('counted at commit', cost['commit'])

# %% [markdown]
# ## Answer

# %%
spread = ' and '.join(
    f'{a} points ({task}; the questions alone give {b})'
    for task, a, b in spreads[['sd of runs', 'sd of the questions alone']].itertuples()
)
least = ' and '.join(f'{value} points ({task})' for task, value in spreads[spreads.columns[-1]].items())
seven = cost['configs']['configs/rarl.py']
update = seven['needs']['update_flops'] * seven['largest']['micro_batches']
Markdown(
    f'The ends of {len(seeds)} seeds, each run twice, have a standard deviation of {spread}. Two arms with {len(seeds)} seeds each must differ by about {least} to be shown, '
    f'where pairing gains nothing. At 7B the largest update that the recipe allows is {update / 1e15:,.0f} PFLOP: a bound of a step’s learning, as typical rows are shorter.'
)
