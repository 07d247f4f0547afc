# %% [markdown]
# # Is it the same model, and the same training step, as in PyTorch?
#
# Two comparisons with transformers on PyTorch, float32, recorded by `python -m experiments.parity.record` with the quickstart's base policy. First a conversation
# (page, question, call, crop), layer by layer. Then a whole training step: eight sampled episodes of one question, their advantages, the policy loss, the
# gradient of every weight, the clipped AdamW step, and the weights after it; here by the package's own updater, the eight episodes packed into one row, there an
# episode a forward pass and the loss written out.

# %%
import json
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from experiments import plots

record = json.loads(Path('experiments/parity/results/parity.json').read_text())
layers, step = record['layers'], record['step']

# %% [markdown]
# ## Layer by layer
#
# Ids, pixels and positions must be equal to the bit. What the model computes differs by rounding: the largest relative difference of any token's vector.

# %%
rows = pd.DataFrame(layers['rows'])
inputs = rows[rows.note == 'equal']
states = rows[~rows.what.isin(inputs.what) & ~rows.what.str.startswith('greedy')]
figure, [axis] = plots.panels(1, width=8, height=3)
axis.barh(states.what, states.difference, color=plots.BLUE)
axis.axvline(layers['tolerance'], color=plots.RED, lw=1)
axis.text(layers['tolerance'], -0.6, 'allowed ', color=plots.RED, ha='right', fontsize=8)
axis.set(xscale='log', title=f'relative difference, {layers["versions"]}')
axis.invert_yaxis()
plots.foot(figure, record['commit'])
greedy = rows[rows.what.str.startswith('greedy')]
continued = '; '.join(
    f'{what.removeprefix("greedy, ")}, {note}' for what, note in zip(greedy.what, greedy.note, strict=True)
)
Markdown(f'Equal to the bit: {", ".join(inputs.what)}. Continued greedily: {continued}.')

# %% [markdown]
# ## One training step
#
# Each dot is a weight: how far the two gradients lie apart, relative to the gradient's length.

# %%
weights = pd.DataFrame(step['weights']).T
figure, (left, right) = plots.panels(2, width=9.5, height=2.8)
kinds = {
    'vision tower': (weights.index.str.startswith('visual'), plots.RED),
    'decoder': (weights.index.str.startswith('model.layers'), plots.BLUE),
    'embedding, last norm': (~weights.index.str.startswith(('visual', 'model.layers')), plots.GREEN),
}
for (name, (chosen, colour)), height in zip(kinds.items(), (0.95, 0.87, 0.79), strict=True):
    part = weights[chosen]
    left.plot(part.gradient_norm.astype(float), part.gradient.astype(float), 'o', ms=4, color=colour, alpha=0.8)
    right.plot(part.gradient_norm.astype(float), part.after.astype(float), 'o', ms=4, color=colour, alpha=0.8)
    left.text(0.99, height, name, color=colour, transform=left.transAxes, ha='right', fontsize=8.5)
left.set(xscale='log', yscale='log', xlabel='length of the gradient', title='gradient: relative difference')
right.set(
    xscale='log', yscale='log', xlabel='length of the gradient', title='weights after the step: largest difference'
)
plots.foot(figure, record['commit'])

# %% [markdown]
# Why the weights may differ by more than the gradients: AdamW's first step moves every number by the learning rate times the sign of its gradient, whatever its
# size. Where a gradient is nothing but rounding, so is its sign; such numbers are few, and the mean square says how few.

# %%
ours, theirs = step['loss']
numbers = pd.DataFrame(
    {
        'episodes, chosen tokens': f'{record["episodes"]}, {record["tokens"]}',
        'loss here': f'{ours:.7f}',
        'loss in PyTorch': f'{theirs:.7f}',
        'log-probs, largest difference': f'{step["logprobs"]:.1e}',
        'gradients, largest relative difference': f'{weights.gradient.max():.1e}',
        'weights after the step, root mean square difference': f'{np.sqrt((weights.after_rms.astype(float) ** 2).mean()):.1e}',
    },
    index=['value'],
).T
display(numbers)

# %% [markdown]
# ## Answer

# %%
Markdown(
    f'Yes, within float32: {"every" if rows.agrees.all() else "not every"} layer agrees to {layers["tolerance"]:.0e} '
    f'(largest {max(row["difference"] for row in layers["rows"]):.1e}), {len(weights)} gradients to {weights.gradient.max():.1e}, and the loss to '
    f'{abs(ours - theirs):.0e}. One policy, one machine, one seed: `tests/parity` compares other shapes, and `configs/compare_torch.py` any folder.'
)
