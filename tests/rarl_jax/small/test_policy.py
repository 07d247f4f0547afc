import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarl_jax.conversation import protocol
from rarl_jax.models.interface import build_model, read_config
from rarl_jax.models.params import count_params
from rarl_jax.small.policy import SmallShape, smooth_number_embeddings, train_tokenizer, write_small_folder
from tests.rarl_jax import small_policy


def test_whole_numbers_are_tokens_whose_id_is_their_value():
    words = small_policy.host().chat
    assert [words.encode(str(value)) for value in range(256)] == [[value] for value in range(256)]
    comma = words.encode(', 7')[0]
    assert words.encode('12, 255, 0') == [12, comma, 255, comma, 0] and words.decode([comma]) == ', '


@given(st.text())
def test_any_text_round_trips(text):
    words = small_policy.host().chat
    assert words.decode(words.encode(text)) == text


def test_near_numbers_start_near():
    rows = smooth_number_embeddings(64, 0.1)
    likeness = rows @ rows[100] / (rows[100] @ rows[100])
    assert likeness[100] == pytest.approx(1) and likeness[101] > likeness[104] > likeness[130]
    assert np.sqrt((rows**2).mean()) == pytest.approx(0.1, rel=1e-3)


def test_folder_is_read_by_the_model_and_is_as_small_as_it_says():
    config = read_config(small_policy.folder())
    assert config.text.mrope_section == (2, 3, 3) and config.text.tie_word_embeddings
    weights = Path(small_policy.folder()) / 'model.safetensors'
    header = json.loads(weights.read_bytes()[8 : 8 + int.from_bytes(weights.read_bytes()[:8], 'little')])
    assert sum(
        int(np.prod(tensor['shape'])) for name, tensor in header.items() if name != '__metadata__'
    ) == count_params(build_model(config))


def test_sections_of_a_published_head():
    assert SmallShape(hidden=256, heads=2).mrope_section == (16, 24, 24)


def test_special_tokens_split_phrases():
    tokenizer = train_tokenizer(['a'], ['left<tool_call>right'], 600)
    assert tokenizer.encode('left<tool_call>right').tokens == ['left', '<tool_call>', 'right']


def test_answers_that_are_numbers_leave_other_numbers_whole():
    """Counts are answers, and answers are phrases: '5' as one would be found in '57' first."""
    tokenizer = train_tokenizer(['a'], ['5', '7', 'B, A, C'], 600)
    assert [tokenizer.encode(text).ids for text in ('5', '57', '157')] == [[5], [57], [157]]


@pytest.mark.parametrize('phrase', ['panel 1', '7 figures', '1984'])
def test_a_phrase_that_would_tear_numbers_is_refused(phrase):
    with pytest.raises(ValueError, match=f"'{phrase}'.* would tear numbers"):
        train_tokenizer(['a'], [phrase], 600)


def test_a_vocabulary_too_small_for_its_phrases_is_refused(tmp_path):
    with pytest.raises(ValueError, match='vocab_size 300 is too small'):
        write_small_folder(
            tmp_path, corpus=[], phrases=['x'], chat_template=protocol.CHAT_TEMPLATE, shape=SmallShape(vocab_size=300)
        )
