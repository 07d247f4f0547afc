"""An update on disk is the same update when it is read."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from input_pipeline.traces import Step
from rarl_jax.learner.batches import Buckets, collate, distinct_images, sizes_of
from rarl_jax.learner.kept import Update, UpdateRecord, read_update, write_update
from rarl_jax.models.features import FeatureCache
from rarl_jax.models.interface import read_config
from tests.rarl_jax.small_policy import acted, folder, sample

RECORD = UpdateRecord('main', 3, 7, {'loss': 'nan', 'policy/entropy': '0.10000000149011612'})


class Made(NamedTuple):
    """Features of several leaves, as a family may have them."""

    tokens: np.ndarray
    deep: np.ndarray


def made(old: bool, features: bool) -> Update:
    asked = [sample(0), sample(1)]
    box = Step(box=(40.0, 60.0, 140.0, 200.0))
    episodes = [acted(s, *turns, group=g) for g, s in enumerate(asked) for turns in ((box, Step(answer='a')), (Step(answer='b'),))]  # fmt: skip
    rng = np.random.default_rng(0)
    own = [rng.standard_normal(int(e.loss_mask.sum())).astype(np.float32) for e in episodes]
    kept = FeatureCache() if features else None
    for image in distinct_images(episodes) if features else ():
        leaves = (rng.standard_normal((1, image.merged(2), width)).astype(np.float32) for width in (3, 5))
        kept.keep([image], Made(*leaves), 2)
    return Update(episodes, np.array([1.5, np.nan, 0, -2]), own if old else None, 123.0, 4, kept)


@pytest.mark.parametrize(('old', 'features'), [(False, False), (True, True)])
def test_what_is_read_makes_the_same_batch(tmp_path, old, features):
    update = made(old, features)
    write_update(tmp_path / 'kept' / 'update.safetensors', update, RECORD)
    read, record = read_update(tmp_path / 'kept' / 'update.safetensors')
    assert record == RECORD and (read.tokens, read.sequences) == (123.0, 4)
    if features:
        read = dataclasses.replace(
            read, features=read.features.like(Made(np.zeros(1, np.float32), np.zeros(1, np.float32)))
        )
    batches = [batch(each) for each in (update, read)]
    assert jax.tree.structure(batches[0]) == jax.tree.structure(batches[1])
    jax.tree.map(np.testing.assert_array_equal, *batches)


def batch(update: Update):
    config = read_config(folder())
    sizes = sizes_of(update.episodes, config, Buckets(), 1)
    return collate(update.episodes, update.advantages, config, sizes, 4, 1, update.old_logprobs, update.features)


def test_other_files_are_told(tmp_path):
    (tmp_path / 'text').write_text('no update')
    with pytest.raises(ValueError, match='is no safetensors file'):
        read_update(tmp_path / 'text')
    save_file({'x': np.zeros(1)}, tmp_path / 'weights.safetensors')
    with pytest.raises(ValueError, match="is None, expected 'rarl_jax update 2'"):
        read_update(tmp_path / 'weights.safetensors')
    with pytest.raises(FileNotFoundError):
        read_update(tmp_path / 'none')
