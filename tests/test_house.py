"""Imports run one way: what each room may not know."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# (the room, what it may not import, files of it that may)
RULES = [
    ('input_pipeline', 'rarl_jax', ()),
    ('rarl_jax/sampler', 'input_pipeline', ()),
    ('rarl_jax/models', 'input_pipeline.tasks', ()),
    ('rarl_jax', 'rarl_jax.models.qwen2_5_vl', ('rarl_jax/models',)),
    ('rarl_jax', 'rarl_jax.models.qwen3_vl', ('rarl_jax/models',)),
    ('rarl_jax/models/qwen3_vl', 'rarl_jax.models.qwen2_5_vl', ()),
    ('rarl_jax', 'rarl_jax.small', ('rarl_jax/small',)),
    ('rarl_jax/conversation', 'rarl_jax.stages', ()),
    ('rarl_jax/conversation', 'rarl_jax.sampler', ()),
    ('rarl_jax/models', 'rarl_jax.conversation', ()),
    ('rarl_jax/learner', 'rarl_jax.stages', ()),
    ('rarl_jax/learner', 'rarl_jax.settings', ()),
    ('rarl_jax/sampler', 'rarl_jax.stages', ()),
    ('rarl_jax/runtime', 'rarl_jax.models', ()),
    ('rarl_jax', 'absl.flags', ('rarl_jax/main.py',)),
]


def imported(path: Path) -> Iterator[str]:
    """Dotted names of the modules that a file imports, those that only type checkers read included."""
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f'{node.module}.{name.name}' for name in node.names)


@pytest.mark.parametrize(('room', 'unknown', 'allowed'), RULES)
def test_imports_run_one_way(room, unknown, allowed):
    files = [path for path in (ROOT / room).rglob('*.py') if not str(path.relative_to(ROOT)).startswith(allowed or '-')]
    assert files
    wrong = [
        f'{path.relative_to(ROOT)}: {name}'
        for path in files
        for name in imported(path)
        if f'{name}.'.startswith(f'{unknown}.')
    ]
    assert not wrong
