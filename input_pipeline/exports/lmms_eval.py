"""A task folder for lmms-eval: one YAML a task, a group of all, utils.py and the questions as JSON lines (lmms-eval's docs/task_guide.md).

    python -m lmms_eval --include_path exports/lmms_eval --tasks comics_fg ...

The YAML files name the data by absolute path, as lmms-eval hands it to `datasets.load_dataset`: export again after moving the folder.
"""

from __future__ import annotations

import json
from pathlib import Path

from input_pipeline.baselines import held_out
from input_pipeline.exports.common import Export, ship
from input_pipeline.schema import Question

GROUP = 'comics_fg'

_TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.doc_to_visual
doc_to_text: !function utils.doc_to_text
doc_to_target: "answer"
process_results: !function utils.process_results
generation_kwargs:
  max_new_tokens: 512
  temperature: 0
  do_sample: false
metric_list:
  - metric: score
    aggregation: mean
    higher_is_better: true
  - metric: exact
    aggregation: mean
    higher_is_better: true
lmms_eval_specific_kwargs:
  default:
    pre_prompt: ""
    post_prompt: "\\nGive only the answer."
metadata:
  - version: 1.0
"""
_AGGREGATES = """aggregate_metric_list:
  - metric: score
    aggregation: mean
    weight_by_size: true
  - metric: exact
    aggregation: mean
    weight_by_size: true
metadata:
  version: 1.0
"""


def write(export: Export, folder: Path) -> None:
    """Writes the held-out questions of each task."""
    (folder / 'data').mkdir()
    asked = held_out(export.questions)
    names = []
    for task in dict.fromkeys(question.task for question in asked):
        lines = [json.dumps(document(question), ensure_ascii=False) for question in asked if question.task == task]
        (folder / 'data' / f'{task}.jsonl').write_text('\n'.join(lines) + '\n', encoding='utf-8')
        names.append(f'{GROUP}_{task}')
        data = json.dumps(str(export.final / 'lmms_eval' / 'data' / f'{task}.jsonl'))
        (folder / f'{names[-1]}.yaml').write_text(_TASK.format(name=names[-1], data=data), encoding='utf-8')
    members = ''.join(f'  - {name}\n' for name in names)
    (folder / f'{GROUP}.yaml').write_text(f'group: {GROUP}\ntask:\n{members}{_AGGREGATES}', encoding='utf-8')
    ship(export, folder, 'lmms_eval_utils.py', 'utils.py')


def document(question: Question) -> dict[str, object]:
    """A `plain` question as lmms-eval has it, and as it hashes it."""
    return {
        'id': question.id,
        'page_id': question.page_id,
        'question': question.prompt,
        'choices': list(question.choices),
        'answer': question.answer,
        'task': question.task,
        'category': question.category,
        'regions': [list(map(float, box)) for box in question.regions],
        'zoom_needed': question.zoom_needed,
    }
