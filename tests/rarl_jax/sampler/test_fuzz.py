"""Whatever a policy writes, a rollout ends with whole episodes. The device is replaced by a script: no model runs here."""

import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rarl_jax.conversation.dialogue import Budget
from rarl_jax.conversation.opening import open_dialogues
from rarl_jax.conversation.protocol import Call, is_thinking, read_turn
from rarl_jax.conversation.rewards import is_well_formed
from rarl_jax.sampler import slots
from rarl_jax.sampler.engine import rollout
from rarl_jax.sampler.settings import SamplerSettings, Sampling
from tests.rarl_jax.small_policy import host, policy, sample

BUDGET = Budget(max_turns=4, turn_tokens=60, total_tokens=400)
CALL = '<tool_call>\n{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [0, 0, 1, 1]}}\n</tool_call>'


class Script:
    """Stands for the compiled programs: conversation q chooses the tokens of stream q one by one, then `<|im_end|>` for ever.

    It draws by the question's number, as the programs do.
    """

    def __init__(self, streams: list[list[int]]):
        self.streams = [iter(stream) for stream in streams]
        self.numbers = {zlib.crc32(f'page-{number}/q'.encode()): number for number in range(len(streams))}
        self.end = host().chat.turn_end_id

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(slots, 'encode', lambda policy, images, patches, kept, call: None)
        patch.setattr(slots, 'write_features', lambda features, row, places, images, kept: None)
        patch.setattr(slots, 'empty_cache', lambda model, rows, length: np.full(rows, -1))
        patch.setattr(slots, 'take_rows', lambda model, layers, rows, length: np.array(layers)[rows])
        patch.setattr(slots, 'fork', lambda model, cache, source, target: cache)
        patch.setattr(slots, 'extend', lambda model, fresh, params, cache, chunk: cache)
        patch.setattr(slots, 'decode', self.decode)

    def decode(self, program, params, cache, rows, resting, sampling):
        numbers = [self.numbers.get(int(question)) for question in rows.questions]
        ids, left = np.full((program.segment, len(cache)), -1), np.array(rows.left)
        for step in range(program.segment):
            if (left == 0).sum() >= resting:
                break
            ids[step] = [next(self.streams[n], self.end) if more else -1 for n, more in zip(numbers, left, strict=True)]
            left = np.where((left > 0) & ~np.isin(ids[step], program.stop_ids), left - 1, 0)
        return ids, np.full(ids.shape, -1.0), cache


number = st.one_of(
    st.integers(-(10**6), 10**6).map(str),
    st.floats(allow_nan=True).map(repr),
    st.sampled_from(['NaN', 'Infinity', '-1', '1e999', '9' * 400, '"12"', 'null', 'true', '[]', '{}']),
)
box = st.lists(number, max_size=6).map(lambda numbers: f'[{", ".join(numbers)}]')
name = st.sampled_from(['image_zoom_in_tool', 'other', ''])
call = st.builds('<tool_call>\n{{"name": "{}", "arguments": {{"bbox_2d": {}}}}}\n</tool_call>'.format, name, box)
good = st.tuples(*[st.integers(0, 160)] * 4).map(lambda b: f'{[b[0], b[1], b[0] + b[2] + 1, b[1] + b[3] + 1]}')
zoom = st.builds(
    '<tool_call>\n{{"name": "image_zoom_in_tool", "arguments": {{"bbox_2d": {}}}}}\n</tool_call>'.format, good
)
piece = st.one_of(
    zoom,
    call,
    st.text(max_size=20),
    st.sampled_from(
        [
            '<think>',
            '</think>',
            '<answer>',
            '</answer>',
            '<tool_call>',
            '</tool_call>',
            '<answer>running</answer>',
            '<|im_end|>',
            '\n',
            '[' * 50,
        ]
    ),
)
tokens = st.lists(piece, max_size=8).map(lambda pieces: host().chat.encode(''.join(pieces)))
bytes_ = st.lists(st.integers(0, 511), max_size=80)  # any ids: halves of characters among them


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(tokens, bytes_), min_size=1, max_size=20), st.booleans())
@example([[]], True)
# A call is opened, then a whole one drafted in a thought that never ends.
@example([host().chat.encode(f'<tool_call><think>{CALL}')], False)
@example([host().chat.encode(f'<think>{CALL}</think>{CALL}')], True)
def test_no_output_breaks_a_rollout(streams, offers_tool):
    """Failure mode 10, with anything at all: broken JSON, NaN, huge, reversed, strings, several calls, calls with answers, noise."""
    banned = set(host().chat.banned_ids)
    streams = [[token for token in stream if token not in banned] for stream in streams]
    samples = [sample(number) for number in range(len(streams))]
    with pytest.MonkeyPatch.context() as patch:
        Script(streams).install(patch)
        dialogues = open_dialogues(host(), BUDGET, samples, offers_tool=offers_tool)
        episodes = rollout(policy(), dialogues, SamplerSettings(segment=7), Sampling(), None)
    assert len(episodes) == len(streams)
    for number, episode in enumerate(episodes):
        check(episode, streams[number], number)


def check(episode, stream, number):
    chat, budget = host().chat, BUDGET
    assert (episode.group, episode.question_id) == (number, f'page-{number}/q')
    assert episode.finish_reason in ('answer', 'stop', 'turn_limit', 'turn_length', 'total_length')
    assert len(episode.ids) == len(episode.loss_mask) == len(episode.sample_logprobs) <= budget.total_tokens
    chosen = episode.ids[episode.loss_mask].tolist()
    assert chosen == [*stream, *[chat.turn_end_id] * len(chosen)][: len(chosen)]
    assert ((episode.sample_logprobs != 0) == episode.loss_mask).all()
    assert len(episode.turns) <= budget.max_turns
    shown = [zoom for zoom in episode.zooms if zoom.succeeded]
    assert len(episode.images) == 1 + len(shown) <= 1 + host().tool.max_crops
    assert (episode.ids == chat.image_id).sum() == sum(image.merged(2) for image in episode.images)
    for zoom in shown:
        x1, y1, x2, y2 = zoom.box
        assert 0 <= x1 < x2 <= episode.page.width and 0 <= y1 < y2 <= episode.page.height
    assert episode.turns == tuple(read_turn(turn.text) for turn in episode.turns)
    ended = episode.turns if episode.finish_reason in ('answer', 'stop', 'turn_limit') else episode.turns[:-1]
    assert [zoom.turn for zoom in episode.zooms][: len(ended)] == [n for n, turn in enumerate(ended) if turn.call]
    for turn in episode.turns:
        # A call's end outside a thought ends the turn, so before a thought that is still open no call is complete: what it drafts is not made.
        assert not is_thinking(turn.text) or turn.call in (None, Call('bad_json'))
    assert (episode.answer is not None) >= (episode.finish_reason == 'answer')
    assert is_well_formed(episode.turns) in (True, False)
