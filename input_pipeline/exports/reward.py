"""The accuracy reward of questions about comic pages, for verl and TRL. Stands beside grading.py and about.json.

The answer must stand in <answer> tags, as the system turn asks; after calls of a tool it is that of the last turn.
"""

import importlib.util
import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
METRICS = json.loads((HERE / 'about.json').read_text(encoding='utf-8'))['metrics']

_spec = importlib.util.spec_from_file_location('comics_grading', HERE / 'grading.py')
grading = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(grading)


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_):
    """verl: `custom_reward_function.path=exports/verl/reward.py`, which calls this for every answer. From 0 to 1."""
    choices = (extra_info or {}).get('choices')
    return _score(data_source.rpartition('/')[2], ground_truth, solution_str, () if choices is None else choices)


def reward(completions, task, answer, choices, **_):
    """TRL: `GRPOTrainer(reward_funcs=reward, ...)`, which calls this for a batch of completions and the columns of their rows. From 0 to 1 each."""
    rows = zip(task, answer, completions, choices, strict=True)
    return [_score(row_task, right, _text(said), offered) for row_task, right, said, offered in rows]


def _score(task, answer, text, choices):
    last_turn = text.rpartition('</tool_response>')[2]
    return grading.grade(METRICS[task], answer, grading.read_answer(last_turn), choices)


def _text(completion):
    """The words of a completion: a string, or messages whose last one answers."""
    content = completion if isinstance(completion, str) else completion[-1]['content'] or ''
    return content if isinstance(content, str) else ''.join(part.get('text', '') for part in content)
