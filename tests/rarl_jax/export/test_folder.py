"""What stands in an export beside the weights. What transformers makes of it is in tests/parity."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from rarl_jax.conversation.dialogue import Budget
from rarl_jax.export.folder import differing, write_words
from rarl_jax.models.images import PixelLimits
from rarl_jax.models.interface import read_config
from rarl_jax.policy import open_chat
from tests.rarl_jax.small_policy import folder, host

PAGE, CROP = PixelLimits(256 * 784, 2048 * 784), PixelLimits(4 * 784, 300 * 784)
BUDGET = Budget(3, 99, 1234)
PUBLISHED = {
    'image_processor_type': 'Qwen2VLImageProcessor',
    'min_pixels': 3136,
    'max_pixels': 12845056,
    'patch_size': 14,
}
SAMPLED = {'do_sample': True, 'repetition_penalty': 1.05, 'temperature': 1e-6, 'top_k': 1, 'eos_token_id': [7, 3]}


def read(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.fixture
def source(tmp_path):
    shutil.copytree(folder(), tmp_path / 'source')
    (tmp_path / 'source' / 'preprocessor_config.json').write_text(json.dumps(PUBLISHED))
    (tmp_path / 'source' / 'generation_config.json').write_text(json.dumps(SAMPLED))
    return tmp_path / 'source'


def exported(source, name='export', **tool):
    target = source.parent / name
    target.mkdir()
    write_words(
        target, source, dataclasses.replace(host(**tool), page=PAGE, crop=CROP), BUDGET, host().chat.vocab_size + 2
    )
    return target


LIMITS = {
    'min_pixels': PAGE.min_pixels,
    'max_pixels': PAGE.max_pixels,
    'size': {'shortest_edge': PAGE.min_pixels, 'longest_edge': PAGE.max_pixels},
}


@pytest.mark.parametrize(
    'published',
    [
        PUBLISHED,
        {'image_processor_type': 'Qwen2VLImageProcessor', 'size': {'shortest_edge': 3136, 'longest_edge': 12845056}},
        {'size': {'min_pixels': 3136, 'max_pixels': 12845056}},
        None,
    ],
)
def test_limits_of_pages_wherever_versions_look(source, published):
    if published is None:
        (source / 'preprocessor_config.json').unlink()
    else:
        (source / 'preprocessor_config.json').write_text(json.dumps(published))
    whole = {
        'processor_class': 'Qwen2_5_VLProcessor',
        'image_processor': {'size': {'longest_edge': 1}, 'do_resize': True},
    }
    (source / 'processor_config.json').write_text(json.dumps(whole))
    target = exported(source)
    told, nested = read(target / 'preprocessor_config.json'), read(target / 'processor_config.json')
    assert LIMITS.items() <= told.items() and LIMITS.items() <= nested['image_processor'].items()
    assert (told['patch_size'], told['merge_size'], told['temporal_patch_size']) == (14, 2, 2)
    assert told['image_processor_type'] == 'Qwen2VLImageProcessor' and nested['image_processor']['do_resize']
    (source / 'processor_config.json').write_text('{"processor_class": "Qwen2_5_VLProcessor"}')
    assert read(exported(source, 'other') / 'processor_config.json') == {'processor_class': 'Qwen2_5_VLProcessor'}


@pytest.mark.parametrize('ends', [[7, 3], 7, None])
def test_generation_ends_at_a_call_and_bends_nothing(source, ends):
    (source / 'generation_config.json').write_text(json.dumps({**SAMPLED, 'eos_token_id': ends}))
    told, chat = read(exported(source) / 'generation_config.json'), host().chat
    assert set(chat.stop_ids) <= set(told['eos_token_id']) and (ends is None or 7 in told['eos_token_id'])
    neutral = {'do_sample': False, 'temperature': 1.0, 'top_p': 1.0, 'repetition_penalty': 1.0}
    assert (
        neutral.items() <= told.items()
        and 'top_k' not in told
        and told['suppress_tokens'] == [*chat.banned_ids, chat.vocab_size, chat.vocab_size + 1]
    )
    (source / 'generation_config.json').unlink()
    assert read(exported(source, 'other') / 'generation_config.json')['eos_token_id'] == list(chat.stop_ids)


def test_what_a_conversation_needs(source):
    target = exported(source, box_frame='original', max_crops=2)
    told = read(target / 'rarl.json')
    assert told['page'] == dataclasses.asdict(PAGE) and told['crop'] == dataclasses.asdict(CROP)
    assert told['budget'] == {'max_turns': 3, 'turn_tokens': 99, 'total_tokens': 1234}
    assert (told['tool']['box_frame'], told['tool']['max_crops'], told['stop']) == ('original', 2, '</tool_call>')
    assert told['question'] == '{question}\nThe page is {width} x {height} pixels.'
    assert told['tool']['name'] in told['system'] and told['tool']['name'] not in told['system_without_tool']
    assert '{"image": 3}' in (target / 'README.md').read_text() and (target / 'ask.py').is_file()


def test_an_export_is_a_policy_of_a_run(source):
    """Its tokenizer opens, and it says where a run would show it something else."""
    (source / 'additional_chat_templates').mkdir()
    shutil.move(source / 'chat_template.jinja', source / 'additional_chat_templates' / 'default.jinja')
    target = exported(source)
    shutil.copyfile(source / 'config.json', target / 'config.json')
    chat = open_chat(target, read_config(target))
    assert chat.prompt_ids('s', 'u', 3) == host().chat.prompt_ids('s', 'u', 3)
    same = dataclasses.replace(host(), page=PAGE, crop=CROP)
    assert differing(target, same, BUDGET) == [] == differing(source, same, BUDGET)
    assert differing(target, dataclasses.replace(same, crop=PAGE), BUDGET) == ['crop']
    assert differing(target, dataclasses.replace(host(box_frame='original'), page=PAGE, crop=CROP), BUDGET) == [
        'system',
        'question',
    ]


def test_a_tokenizer_of_another_model(source):
    config = read_config(source)
    with pytest.raises(ValueError, match=r'image_token_id is 3, but <\|image_pad\|> is \d+ in its tokenizer'):
        open_chat(source, dataclasses.replace(config, image_token_id=3))
    text = dataclasses.replace(config.text, vocab_size=config.image_token_id + 1)
    with pytest.raises(ValueError, match=r"its tokenizer\.json has \d+ tokens, but config\.json's vocab_size is"):
        open_chat(source, dataclasses.replace(config, text=text))
