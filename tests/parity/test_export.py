"""An export as transformers has it: its processor shows pages as the policy saw them, `generate` stops at a call, and the loop in the
folder, with transformers in a server's place, gives the sampler's own answers and boxes."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from configs._parts import small_model, small_qwen3_vl
from input_pipeline.loader import Sample
from input_pipeline.schema import Question
from input_pipeline.synthetic.pages import DrawSettings, draw_page
from rarl_jax.conversation.chat import IMAGE_PAD
from rarl_jax.conversation.dialogue import Budget, Host
from rarl_jax.conversation.opening import open_dialogues
from rarl_jax.conversation.tool import ZoomTool
from rarl_jax.export.folder import export
from rarl_jax.models.images import patchify
from rarl_jax.models.interface import read_config
from rarl_jax.policy import build_model, load_policy, open_chat
from rarl_jax.runtime.sharding import RULES, MeshSettings, make_mesh
from rarl_jax.sampler.engine import rollout
from rarl_jax.sampler.settings import SamplerSettings, Sampling
from rarl_jax.sampler.weights import Policy

BASES = {  # by family, with the limits of its training
    'qwen2_5_vl': small_model('experiments/quickstart_base'),
    'qwen3_vl': small_qwen3_vl('experiments/quickstart_base_qwen3_vl'),
}
BUDGET = Budget(max_turns=4, turn_tokens=64, total_tokens=700)
QUESTIONS = 12


@pytest.fixture(scope='module', params=BASES)
def run(request):
    """What export needs of a run, of the quickstart's base policy."""
    base = BASES[request.param]
    folder = Path(base.path)
    config, mesh = read_config(folder), make_mesh(MeshSettings())
    model = build_model(base, config, mesh)
    host = Host(open_chat(folder, config), config.vision, base.page, base.crop, ZoomTool())
    settings = SimpleNamespace(conversation=SimpleNamespace(budget=BUDGET))
    params = load_policy(folder, model, mesh, RULES)
    return SimpleNamespace(
        params=params, adapted=None, model=model, model_dir=folder, host=host, settings=settings, mesh=mesh
    )


@pytest.fixture(scope='module')
def folder(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp('run') / 'export'
    export(folder, run)
    return folder


@pytest.fixture(scope='module')
def samples():
    drawn = [draw_page(0, n, DrawSettings()) for n in range(QUESTIONS)]
    question = Question(
        'q', 'p', 'action_recognition', 'recognition', '', (), 'x', ((0.0, 0.0, 9.0, 9.0),), True, 'test'
    )
    prompts = [f'What is {page.figures[n % len(page.figures)].identity} doing?' for n, page in enumerate(drawn)]
    return [
        Sample(dataclasses.replace(question, id=f'q{n}', prompt=prompt), page.image)
        for n, (prompt, page) in enumerate(zip(prompts, drawn, strict=True))
    ]


class Served:
    """transformers in the place of a server: nothing is told to it but the folder."""

    def __init__(self, folder):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()

    def complete(self, messages):
        pictures = [part['image'] for m in messages if m['role'] == 'user' for part in m['content'] if 'image' in part]
        shown = [self.processor(picture, return_tensors='pt') for picture in pictures]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        head, *rest = text.split(IMAGE_PAD)
        for picture, tail in zip(shown, rest, strict=True):
            head += IMAGE_PAD * int(picture['image_grid_thw'].prod() // 4) + tail
        ids = torch.tensor([self.tokenizer.encode(head)])
        out = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == self.model.config.image_token_id).int(),
            pixel_values=torch.cat([picture['pixel_values'] for picture in shown]),
            image_grid_thw=torch.cat([picture['image_grid_thw'] for picture in shown]),
            max_new_tokens=BUDGET.turn_tokens,
        )[0, ids.shape[1] :]
        ended = int(out[-1]) in self.model.generation_config.eos_token_id
        return self.tokenizer.decode(out).removesuffix('<|im_end|>'), ended


@pytest.fixture(scope='module')
def served(folder):
    return Served(folder)


@pytest.mark.parametrize('size', [(672, 896), (3000, 2150), (40, 40), (56, 900)])
def test_their_processor_shows_our_pages(run, served, size):
    image = draw_page(1, 0, DrawSettings()).image.resize(size)
    theirs, ours = served.processor(image, return_tensors='pt'), patchify(image, run.host.page, run.host.vision)
    assert theirs['image_grid_thw'][0].tolist() == list(ours.grid)
    np.testing.assert_array_equal(theirs['pixel_values'].numpy(), ours.pixels)


def test_the_loop_gives_the_samplers_answers_and_boxes(run, folder, samples, served):
    spec = importlib.util.spec_from_file_location('ask', folder / 'ask.py')
    ask = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ask)
    told = json.loads((folder / 'rarl.json').read_text())
    policy = Policy.of(run.model, run.params, run.host, run.mesh)
    opened = open_dialogues(run.host, BUDGET, samples)
    ours = rollout(policy, opened, SamplerSettings(), Sampling(greedy=True), jax.random.key(0))
    turns = []

    def complete(messages):
        turn, ended = served.complete(messages)
        turns.append(turn)
        return turn, ended

    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)  # nothing of generation_config.json is contradictory
        for sample, episode in zip(samples, ours, strict=True):
            answer, boxes = ask.ask(sample.image, sample.question.prompt, complete, told)
            assert answer == episode.answer
            assert boxes == [zoom.box for zoom in episode.zooms if zoom.succeeded]
            assert turns[-len(episode.turns) :] == [turn.text for turn in episode.turns]
    calls = [turn for turn in turns if '<tool_call>' in turn]
    assert len(calls) >= QUESTIONS // 2 and all(turn.endswith('</tool_call>') for turn in calls)
    assert len({episode.answer for episode in ours}) > 2


def test_the_export_is_loaded_by_a_run(run, folder):
    config = read_config(folder)
    assert config == run.model.config
    assert open_chat(folder, config).prompt_ids('s', 'u', 4) == run.host.chat.prompt_ids('s', 'u', 4)
    written = json.loads((folder / 'config.json').read_text())
    assert written['architectures'] == config.to_hf()['architectures'] and written['torch_dtype'] == 'float32'
    again = load_policy(folder, run.model, run.mesh, RULES)
    assert jax.tree.all(jax.tree.map(lambda one, other: bool((one == other).all()), again, run.params))
