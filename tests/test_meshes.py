"""What `python -m tests.meshes` runs is the recipe, on a 7B that is made narrow."""

import pytest

from configs import rarl
from rarl_jax.models.interface import PRESETS
from rarl_jax.settings import settings_from
from tests.narrow_7b import SHAPE, get_config


@pytest.mark.parametrize(('variant', 'recipe', 'first'), [('full', rarl.full, ['eyes']), ('lora', rarl.lora, [])])
def test_its_stages_are_those_of_the_recipe(variant, recipe, first):
    narrow, whole = settings_from(get_config(variant).to_dict()), recipe()
    assert [*narrow.stages] == [*first, 'taught', 'warm_start', 'recognition', 'rarl']
    assert narrow.model.lora == whole.model.lora
    for name in ('warm_start', 'recognition'):
        mine, theirs = narrow.stage[name], whole.stage[name]
        assert (mine.tasks, mine.reward, mine.pack) == (theirs.tasks, theirs.reward, theirs.pack)


def test_its_heads_are_those_of_7b():
    published = PRESETS['Qwen2.5-VL-7B'].text
    assert SHAPE.hidden == SHAPE.heads * published.head_dim
    assert SHAPE.mrope_section == tuple(published.mrope_section)
