"""A run's folder made by hand: what the stages of a short run would leave behind. `python -m tests.rarl_jax.report.made DIR` writes one to look at."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

from input_pipeline.schema import Question
from input_pipeline.synthetic.drawing import ACTIONS
from input_pipeline.synthetic.pages import DrawSettings, draw_page
from rarl_jax.conversation.boxes import PageFrame
from rarl_jax.conversation.dialogue import Episode
from rarl_jax.conversation.episodes import write_rollouts
from rarl_jax.conversation.protocol import FAILURE_WORDS, call_text, read_turn
from rarl_jax.conversation.rewards import RewardSettings, reward
from rarl_jax.conversation.tool import Zoom
from rarl_jax.evaluation.records import make_record
from rarl_jax.evaluation.results import Provenance, write_results
from rarl_jax.evaluation.samples import rewrite_samples

STAGES = (('warm_start', 1, 16), ('rl_main', 17, 60))
TOKEN = 40_000  # ids from here on are words of the made tokenizer


class Words:
    """A tokenizer for made episodes: every text is one token."""

    def __init__(self):
        self.texts: list[str] = []

    def encode(self, text: str) -> int:
        self.texts.append(text)
        return TOKEN + len(self.texts) - 1

    def decode(self, ids: list[int]) -> str:
        return ''.join(self.texts[each - TOKEN] for each in ids)


def make_question(number: int, page: int, drawn) -> Question:
    figure = drawn.figures[number % len(drawn.figures)]
    task = 'action_recognition' if number % 3 else 'depth_comparison'
    prompt = f'What is {figure.identity} doing?'
    return Question(
        f'q{page}-{number}',
        f'page_{page:03d}',
        task,
        'recognition',
        prompt,
        ACTIONS,
        figure.action,
        (figure.box,),
        True,
        'test',
    )


def make_episode(
    rng,
    question: Question,
    frame: PageFrame,
    words: Words,
    skill: float,
    group: int = 0,
    sample: int = 0,
    said: str | None = None,
) -> Episode:
    """An episode of a policy whose boxes and answers get better with `skill` (0 to 1)."""
    zooms, texts, tokens = [], [], [(words.encode('<|im_start|>user\n…<|im_end|>\n<|im_start|>assistant\n'), False)]
    for turn in range(int(rng.integers(0, 3)) if rng.random() > skill else 1):
        status = 'ok' if rng.random() < 0.6 + 0.4 * skill else 'bad_box'
        x1, y1, x2, y2 = question.regions[0]
        spread = (1.3 - 1.2 * skill) * np.array([x2 - x1, y2 - y1, x2 - x1, y2 - y1])
        box = np.asarray(question.regions[0]) + rng.normal(0, 0.35, 4) * spread
        low = np.maximum(np.minimum(box[:2], box[2:]), 0)
        box = tuple(float(v) for v in (*low, *np.maximum(np.maximum(box[:2], box[2:]), low + 8)))
        zooms.append(Zoom(box, box if status == 'ok' else None, 'original', status, turn, 'the figure'))
        texts.append(f'<think>I look closer at {question.prompt.split()[2]}.</think>\n{call_text(box)}')
        shown = (
            '<|vision_start|>' + '<|image_pad|>' * 16 + '<|vision_end|>' if status == 'ok' else FAILURE_WORDS[status]
        )
        tokens += [
            (words.encode(texts[-1]), True),
            (words.encode(f'<tool_response>\n{shown}\n</tool_response>'), False),
        ]
    right = rng.random() < 0.2 + 0.7 * skill
    answer = question.answer if right else str(rng.choice(ACTIONS))
    texts.append(said if said is not None else f'<think>Now I see it.</think><answer>{answer}</answer>')
    tokens.append((words.encode(texts[-1]), True))
    ids, chosen = zip(*tokens, strict=True)
    return Episode(
        question_id=question.id,
        group=group,
        sample=sample,
        ids=np.array(ids, np.int32),
        loss_mask=np.array(chosen, bool),
        sample_logprobs=np.zeros(len(ids), np.float32),
        images=(),
        zooms=tuple(zooms),
        turns=tuple(map(read_turn, texts)),
        finish_reason='answer',
        page=frame,
    )


def grade_of(question: Question, episode: Episode) -> float:
    return float(episode.answer == question.answer)


def write_metrics(folder: Path, rng) -> None:
    with (folder / 'metrics.jsonl').open('w') as file:
        for stage, first, last in STAGES:
            for step in range(first, last + 1):
                skill, wobble = step / 60, rng.normal(0, 0.05, 8)
                row = {
                    'step': step,
                    'stage': stage,
                    'reward/total': 1 + 2.5 * skill + 4 * wobble[0],
                    'reward/accuracy': 0.2 + 0.5 * skill + wobble[1],
                }
                row |= {
                    'reward/format': min(1, 0.7 + skill + wobble[2] / 5),
                    'reward/tool_count': min(1, 0.4 + skill + wobble[3]),
                    'reward/tool_iou': 0.3 + 0.4 * skill + wobble[4] / 2,
                }
                row |= {
                    'reward/accuracy/action_recognition': 0.3 + 0.4 * skill + wobble[5],
                    'reward/accuracy/depth_comparison': 0.5 + 0.1 * skill + wobble[6],
                }
                row |= {
                    'zoom/calls': 1 + wobble[0],
                    'zoom/iou_first': 0.35 + 0.4 * skill + wobble[7] / 2,
                    'zoom/failed': max(0, 0.3 - skill / 2),
                }
                row |= {
                    'policy/kl': 0.002 * step,
                    'policy/entropy': 1.4 - skill,
                    'policy/clip_fraction': 0.0,
                    'policy/ratio_gap': 2e-6 * (1 + wobble[1]),
                }
                row |= {
                    'length/response': 60 + 20 * wobble[2],
                    'time/total': 4.2 + wobble[3],
                    'time/rollout': 2.5 + wobble[3],
                    'throughput/tokens_per_second': 21_000 + 900 * wobble[4],
                    'compiles': 9,
                }
                file.write(json.dumps(row) + '\n')


def make_workdir(folder: Path, seed: int = 0, pages: int = 12, hostile: str | None = None) -> Path:
    """Writes every file a report reads. `hostile` is what one episode says instead of an answer, and names its zoom."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        'seed': seed,
        'stages': ['base', 'warm_start', 'rl_main', 'after'],
        'model': {'path': 'assets/base', 'dtype': 'float32'},
        'stage': {'rl_main': {'kind': 'rl', 'steps': 44, 'group_size': 6}},
    }
    (folder / 'config.json').write_text(json.dumps(config))
    times = ('began', '2026-01-02T03:04:05'), ('began', '2026-01-02T04:00:00'), ('finished', '2026-01-02T05:30:00')
    machine = {'host': 'node7', 'devices': '8 x NVIDIA H100', 'jax': '0', 'commit': 'abc123'}
    rows = [{'event': event, 'time': f'{time}+00:00', **machine} for event, time in times]
    (folder / 'launches.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    (folder / 'data' / 'built').mkdir(parents=True)
    (folder / 'data' / 'built' / 'report.json').write_text('{"pages": {"total": 20}, "questions": {"total": 1910}}')
    write_metrics(folder, rng)
    drawn = [draw_page(seed, number, DrawSettings()) for number in range(pages)]
    questions = [make_question(i, page, drawn[page]) for page in range(pages) for i in range(3)]
    frames = {f'page_{i:03d}': PageFrame(each.image.width, each.image.height, 168, 224) for i, each in enumerate(drawn)}
    images = {f'page_{i:03d}': each.image for i, each in enumerate(drawn)}
    words = Words()
    for stage, step, modes in (('before', 0, {'zoom': 0.1}), ('after', 60, {'zoom': 0.9, 'blank_crop': 0.1})):
        records = []
        for mode, skill in modes.items():
            for i, question in enumerate(questions):
                episode = make_episode(rng, question, frames[question.page_id], words, skill)
                records.append(
                    make_record(
                        i,
                        question,
                        [episode],
                        [episode.answer],
                        [grade_of(question, episode)],
                        mode,
                        'greedy',
                    )
                )
        provenance = Provenance(
            stage, step, 'made by hand', 'unknown', '0' * 64, {'page': (784, 50176), 'crop': (784, 12544)}, seed
        )
        rewrite_samples(folder / 'eval' / stage, records)
        write_results(folder / 'eval' / stage, provenance, records)
    for stage, first, last in STAGES:
        for step in (first, last):
            chosen = [questions[i] for i in rng.choice(len(questions), 3, replace=False)]
            episodes = [
                make_episode(rng, q, frames[q.page_id], words, step / 60, g, s)
                for g, q in enumerate(chosen)
                for s in range(6)
            ]
            if hostile is not None and (stage, step) == ('rl_main', last):
                q = chosen[0]
                episodes[0] = make_episode(rng, q, frames[q.page_id], words, 1.0, 0, 0, said=hostile)
                episodes[0] = dataclasses.replace(
                    episodes[0], zooms=tuple(dataclasses.replace(z, label=hostile) for z in episodes[0].zooms)
                )
            by_id = {q.id: q for q in chosen}
            rewards = [
                reward(e, by_id[e.question_id], grade_of(by_id[e.question_id], e), RewardSettings()) for e in episodes
            ]
            totals = np.array([r.total for r in rewards]).reshape(3, 6)
            advantages = ((totals - totals.mean(1, keepdims=True)) / (totals.std(1, keepdims=True) + 1e-6)).ravel()
            write_rollouts(
                folder / 'rollouts', step, stage, episodes, by_id, rewards, advantages.tolist(), images, words.decode
            )
    return folder


if __name__ == '__main__':
    print(make_workdir(Path(sys.argv[1])))
