"""A run's export, loaded by transformers, answers as the run's own evaluation did: same turns, same boxes, same answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from input_pipeline.loader import LoaderSettings, Sample, SampleSource
from rarl_jax.conversation.chat import IMAGE_PAD, Chat
from rarl_jax.conversation.dialogue import Dialogue, Episode, Host, view_page
from rarl_jax.conversation.opening import open_dialogues
from rarl_jax.conversation.protocol import system_text, user_text
from rarl_jax.conversation.tool import cut
from rarl_jax.evaluation.samples import read_samples
from rarl_jax.models.images import PixelLimits
from rarl_jax.models.interface import build_model, read_config
from rarl_jax.policy import load_policy
from rarl_jax.runtime.sharding import RULES, MeshSettings, make_mesh
from rarl_jax.sampler.engine import rollout
from rarl_jax.sampler.settings import Sampling
from rarl_jax.sampler.weights import Policy
from rarl_jax.settings import RunSettings, settings_from
from tests.commands import FULL, launch

BASE = Path('experiments/quickstart_base')
QUESTIONS = 25  # a task; there are two
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Finished:
    """A run that is over, and the questions of its last evaluation."""

    workdir: Path
    settings: RunSettings
    host: Host
    samples: list[Sample]

    @property
    def export(self) -> Path:
        return self.workdir / 'export'


@pytest.fixture(scope='module')
def finished(tmp_path_factory) -> Finished:
    """Three updates of the quickstart's base policy, which zooms and answers sensibly, and an evaluation."""
    workdir = tmp_path_factory.mktemp('run')
    asked = [f'--config.model.path={BASE}', '--config.data.pages.test=40', f'--config.stage.rarl.questions={QUESTIONS}']
    asked += [
        "--config.stages=('main', 'rarl')",
        '--config.stage.main.steps=3',
        "--config.stage.rarl.modes=('zoom',)",
        '--config.compare=()',
    ]
    done = launch('--config=configs/quickstart.py:smoke', f'--workdir={workdir}', *asked, compiled=FULL)
    assert done.returncode == 0, done.stderr
    settings = settings_from(json.loads((workdir / 'config.json').read_text()))
    export = workdir / 'export'
    vision, model = read_config(export).vision, settings.model
    host = Host(Chat.from_folder(export), vision, model.page, model.crop, settings.conversation.tool)
    stage = settings.stage['rarl']
    loader = LoaderSettings(split='test', tasks=stage.tasks, per_task=QUESTIONS, seed=settings.seed)
    source = SampleSource(workdir / 'data' / 'built', loader)
    return Finished(workdir, settings, host, [source[n] for n in range(len(source))])


class Reference:
    """The exported folder as transformers has it: its tokenizer and template, its image processor, its weights."""

    def __init__(self, run: Finished):
        self.run = run
        self.tokenizer = AutoTokenizer.from_pretrained(run.export)
        self.processor = Qwen2VLImageProcessorPil.from_pretrained(run.export)
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(run.export, dtype=torch.float32).eval()
        self.banned = np.flatnonzero(self._never_chosen()).tolist()

    def _never_chosen(self) -> np.ndarray:
        chat = self.run.host.chat
        ids = np.arange(self.model.config.text_config.vocab_size)
        return np.isin(ids, chat.banned_ids) | (ids >= chat.vocab_size)

    def answer(self, sample: Sample) -> Episode:
        """Turn after turn; the host's part (reading a turn, cutting the crop, its words) is the run's own."""
        host, budget = self.run.host, self.run.settings.conversation.budget
        dialogue = Dialogue(host, view_page(host, sample.image), budget, question_id=sample.question.id)
        dialogue.ask(sample.question.prompt)
        seen = [self.processed(sample.image, host.page)]
        assert dialogue.ids == self.prompt(sample, seen[0]['image_grid_thw'])
        while dialogue.finish_reason is None:
            tokens = self.generate(dialogue, seen)
            dialogue.take(tokens, [0.0] * len(tokens))
            dialogue.advance()
            if len(dialogue.images) > len(seen):
                seen.append(self.processed(cut(sample.image, dialogue.zooms[-1].box), host.crop))
        return dialogue.episode()

    def processed(self, image: Image.Image, limits: PixelLimits) -> dict:
        size = {'shortest_edge': limits.min_pixels, 'longest_edge': limits.max_pixels}
        return self.processor(image, size=size, return_tensors='pt')

    def prompt(self, sample: Sample, grid: torch.Tensor) -> list[int]:
        frame = self.run.host.tool.box_frame
        question = {'type': 'text', 'text': user_text(sample.question.prompt, frame, sample.image.size)}
        messages = [
            {'role': 'system', 'content': system_text(self.run.host.tool.schema())},
            {'role': 'user', 'content': [{'type': 'image'}, question]},
        ]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self.tokenizer.encode(text.replace(IMAGE_PAD, IMAGE_PAD * int(grid.prod() // 4)))

    def generate(self, dialogue: Dialogue, seen: list[dict]) -> list[int]:
        ids = torch.tensor(dialogue.ids)[None]
        out = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == self.model.config.image_token_id).int(),
            pixel_values=torch.cat([image['pixel_values'] for image in seen]),
            image_grid_thw=torch.cat([image['image_grid_thw'] for image in seen]),
            max_new_tokens=dialogue.tokens_left,
            do_sample=False,
            suppress_tokens=self.banned,
            eos_token_id=list(self.run.host.chat.stop_ids),
        )
        return out[0, ids.shape[1] :].tolist()


@pytest.fixture(scope='module')
def reference_episodes(finished) -> list[Episode]:
    reference = Reference(finished)
    return [reference.answer(sample) for sample in finished.samples]


def test_answers_of_the_evaluation(finished, reference_episodes):
    """samples.jsonl holds what transformers says: each answer, each box and its fate, the number of turns, the end."""
    records = [record for record in read_samples(finished.workdir / 'eval' / 'rarl') if record.mode == 'zoom']
    ours = {record.question_id: record.attempts[0] for record in records}
    assert len(ours) == len(reference_episodes) == 2 * QUESTIONS
    for theirs in reference_episodes:
        mine = ours[theirs.question_id]
        assert mine.prediction == theirs.answer
        assert [(zoom.status, zoom.box) for zoom in mine.zooms] == [(zoom.status, zoom.box) for zoom in theirs.zooms]
        assert (mine.turns, mine.finish_reason) == (len(theirs.turns), theirs.finish_reason)


def test_the_questions_are_worth_asking(finished, reference_episodes):
    """Crops are shown, answers differ, and the policy is not the one that the run began with."""
    assert sum(len(episode.images) > 1 for episode in reference_episodes) >= 25
    assert len({episode.answer for episode in reference_episodes}) >= 5
    before, after = (load_file(folder / 'model.safetensors') for folder in (BASE, finished.export))
    assert any(not np.array_equal(before[name], after[name]) for name in before)


def test_every_token(finished, reference_episodes):
    """The export read back here: turn by turn, the very tokens."""
    model, mesh = build_model(read_config(finished.export)), make_mesh(MeshSettings())
    policy = Policy.of(model, load_policy(finished.export, model, mesh, RULES), finished.host, mesh)
    dialogues = open_dialogues(finished.host, finished.settings.conversation.budget, finished.samples)
    ours = rollout(policy, dialogues, finished.settings.sampler, Sampling(greedy=True), jax.random.key(0))
    for mine, theirs in zip(ours, reference_episodes, strict=True):
        assert mine.ids.tolist() == theirs.ids.tolist() and mine.turns == theirs.turns
