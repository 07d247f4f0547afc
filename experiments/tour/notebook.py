# %% [markdown]
# # How does one look at a page become a gradient?
#
# One page, one question, one episode, token by token: what the policy is shown, what it chose, where it looked, what that earned, and what an update
# makes of it. The numbers were recorded by `python -m experiments.tour.record` with the quickstart's base policy; everything else is computed here by the
# functions that training calls.

# %%
import json
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from experiments import plots
from experiments.results import page_of
from rarl_jax.conversation.boxes import PageFrame, from_original, iou, to_original
from rarl_jax.conversation.protocol import read_turn
from rarl_jax.conversation.tool import cut
from rarl_jax.learner.advantages import grpo

record = json.loads(Path('experiments/tour/results/episode.json').read_text())
question, tokens = record['question'], record['tokens']
episode, frame = record['episodes'][record['told']], PageFrame(**record['frame'])
page = page_of(question['page_id'])

# %% [markdown]
# ## The page, twice
#
# The file has 672 x 896 pixels. The policy sees it shrunk to 168 x 224, cut into 48 squares of 28 pixels, a token each: what a figure *does* is no longer
# legible there. `image_zoom_in_tool` cuts its box from the file, so a crop brings back what the shrinking took.

# %%
figure, (left, right) = plots.panels(2, width=8, height=4.4)
plots.show_page(
    left, page, [(question['regions'][0], 'region', plots.GREEN)], f'{question["prompt"]}  ({question["answer"]})'
)
small = page.resize((frame.model_width, frame.model_height))
plots.show_page(right, small, [], 'what the policy sees: 6 x 8 tokens')
for x in range(0, frame.model_width + 1, 28):
    right.axvline(x - 0.5, color=plots.SKY, lw=0.6)
for y in range(0, frame.model_height + 1, 28):
    right.axhline(y - 0.5, color=plots.SKY, lw=0.6)
plots.foot(figure, record['commit'])

# %% [markdown]
# ## The conversation as tokens
#
# One row of ids. Only what the policy chose is in the loss (`loss_mask`, blue); prompt, page and crop are the host's. Runs of image tokens are drawn as one.
# The rollout never decodes and encodes again: these ids are the ones that the update sees.


# %%
def pieces():
    """(text, kind, first place) of every token, runs of image tokens as one."""
    found, place = [], 0
    while place < len(tokens):
        text, first = tokens[place]['text'], place
        while place < len(tokens) and tokens[place]['text'] == text == '<|image_pad|>':
            place += 1
        if place > first:
            found.append((f'[{place - first} image tokens]', plots.ORANGE, first))
            continue
        text = text.replace('\n', '↵')
        text = text if len(text) < 26 else f'{text[:16]}…{text[-6:]}'
        found.append((text, plots.BLUE if tokens[first]['chosen'] else plots.GREY, first))
        place += 1
    return found


figure, [axis] = plots.panels(1, width=9, height=1.7)
axis.set(xlim=(0, 112), ylim=(4.4, -0.4))
axis.set_axis_off()
x, row = 0.0, 0
for text, colour, _ in pieces():
    width = 0.72 * len(text) + 1.2
    if x + width > 112:
        x, row = 0.0, row + 1
    box = {'fc': colour, 'ec': 'none', 'alpha': 0.9 if colour != plots.GREY else 0.45, 'pad': 1.6}
    axis.text(
        x, row, text, family='monospace', fontsize=6.6, color='white' if colour != plots.GREY else 'black', bbox=box
    )
    x += width
plots.foot(figure, record['commit'])
chosen = [token for token in tokens if token['chosen']]
Markdown(
    f'{len(tokens)} tokens, {len(chosen)} of them chosen by the policy (blue), {sum(t["text"] == "<|image_pad|>" for t in tokens)} image tokens (orange).'
)

# %% [markdown]
# ## Positions
#
# M-RoPE gives every token three numbers. Text counts all three up together; an image stands still in time while its rows and columns count; what follows goes
# on after the largest of them. The page is the first block, the crop the second.

# %%
figure, [axis] = plots.panels(1, width=9, height=2.4)
places = np.array([token['position'] for token in tokens])
for column, colour in enumerate((plots.GREY, plots.BLUE, plots.RED)):
    axis.plot(places[:, column], color=colour, lw=1.4)
for name, start in (('page', 20), ('question', 66), ('call', 78), ('crop', 91), ('answer', 103)):
    axis.annotate(f'{name} ', (start, places[start].max() + 4), fontsize=8, color='#444444', ha='right')
for name, colour, y in (('time', plots.GREY, 18), ('row', plots.BLUE, 9), ('column', plots.RED, 0)):
    axis.text(len(tokens) - 1, y, name, color=colour, ha='right')
axis.set(title='position of each token', xlabel='place in the row')
plots.foot(figure, record['commit'])

# %% [markdown]
# ## The call
#
# The first turn is text until it is read. `read_turn` finds the call, its box is in pixels of the page *as the policy saw it*, and one module maps it to the
# file, where the crop is cut.

# %%
call = read_turn(episode['turns'][0]).call
box = to_original(call.box, 'model', frame)
overlap = float(iou(np.array([box]), np.array(question['regions'])).max())
figure, axes = plots.panels(3, width=9, height=3.4)
region = question['regions'][0]
plots.show_page(
    axes[0],
    small,
    [(call.box, 'called', plots.BLUE), (from_original(region, 'model', frame), '', plots.GREEN)],
    'on the page as seen',
)
plots.show_page(axes[1], page, [(box, 'cut', plots.BLUE), (region, 'region', plots.GREEN)], 'on the file')
plots.show_page(axes[2], cut(page, box), [], 'the crop')
plots.foot(figure, record['commit'])
Markdown(
    f'`{episode["turns"][0].strip()}` → box {tuple(round(v) for v in box)} of the file, IoU with the region **{overlap:.2f}**; then `{episode["turns"][1]}`.'
)

# %% [markdown]
# ## Log-probs
#
# Each chosen token has the log-prob that the sampler saw. The learner computes it again in one pass over the whole row; were the two different, the gradient
# would be of another policy than the one that acted. Red: after one update on this group of eight.

# %%
figure, [axis] = plots.panels(1, width=9, height=2.6)
at = np.arange(len(chosen))
axis.bar(at - 0.2, [token['sampler'] for token in chosen], 0.4, color=plots.BLUE)
axis.bar(at + 0.2, [token['after'] for token in chosen], 0.4, color=plots.RED)
axis.set_xticks(at, [t['text'].strip().replace('\n', '↵')[:12] for t in chosen], rotation=50, ha='right', fontsize=7.5)
axis.set_title('log-prob of the chosen tokens')
axis.text(0.99, 0.12, 'sampled', color=plots.BLUE, transform=axis.transAxes, ha='right')
axis.text(0.99, 0.03, 'after the update', color=plots.RED, transform=axis.transAxes, ha='right')
plots.foot(figure, record['commit'])
gap = max(abs(token['sampler'] - token['learner']) for token in chosen)
Markdown(
    f'Largest difference between sampler and learner: {gap:.0e}. The boxes are where the policy is unsure: its coordinates carry most of the surprise.'
)

# %% [markdown]
# ## Reward and advantage
#
# $R = R_\text{acc} + R_\text{format} + (1 + 1[R_\text{acc} > 0])\,(R_\text{count} + R_\text{iou})$. The same question was answered eight times. A reward says
# little by itself; what teaches is how it differs from the group's: $A = (R - \text{mean}) / \text{std}$.

# %%
rows = pd.DataFrame(
    [
        {
            'called': ', '.join(f'IoU {zoom["iou"]:.2f}' for zoom in each['zooms']) or '–',
            'last turn': each['turns'][-1],
            **{
                name: round(each['parts'][name], 2) for name in ('accuracy', 'format', 'tool_count', 'tool_iou', 'tool')
            },
            'R': round(each['total'], 2),
            'A': round(each['advantage'], 2),
            'log-prob': round(each['logprob'], 1),
            'after': round(each['logprob_after'], 1),
        }
        for each in record['episodes']
    ]
)
totals = np.array([each['total'] for each in record['episodes']])
assert np.allclose(grpo(totals, np.zeros(len(totals), int)), rows['A'], atol=0.01)
display(rows)

# %%
figure, [axis] = plots.panels(1, width=6, height=2.8)
change = rows['after'] - rows['log-prob']
axis.axhline(0, color='#444444', lw=0.8)
axis.axvline(0, color='#444444', lw=0.8)
axis.scatter(rows['A'], change, color=plots.BLUE, zorder=3)
for advantage, alike in rows.groupby('A').groups.items():  # episodes of one reward lie close together
    told = ', '.join(str(number) for number in alike)
    axis.annotate(f'  {told}', (advantage, change[alike].mean()), fontsize=8, va='center')
axis.set(title='what one update does', xlabel='advantage', ylabel='change of log-prob')
plots.foot(figure, record['commit'])

# %% [markdown]
# ## Answer
#
# An episode is a row of ids with a mask. Its advantage multiplies the log-prob of every chosen token, the box's coordinates among them, so a look that led to
# the right answer becomes likelier token by token, and the guesses beside it rarer.

# %%
moved = rows['after'] - rows['log-prob']
paid = record['episodes'][record['told']]['total']
display(
    Markdown(
        f'Here the best look earned {paid:.2f} where the group earned {totals.mean():.2f} on average. '
        f'One update of rate {record["learning_rate"]:g} on this group alone moved the log-prob of its {int((rows["A"] > 1).sum())} best '
        f'episodes by {", ".join(f"{m:+.1f}" for m in moved[rows["A"] > 1])}, and of the {int((rows["A"] < 0).sum())} below average by '
        f'{moved[rows["A"] < 0].mean():+.1f} in the mean. Episode 4, barely above average, lost all the same: its box shares its first tokens with better ones, '
        "but not its numbers, and tokens of one distribution win at each other's cost. A single update on a single question shows the direction, no more."
    )
)
