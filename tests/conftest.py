"""What holds for all tests: compiled programs stay on disk, for both workers and for every command that a test types, and long files come first."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

_CACHE = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache'))
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_CACHE / 'rarl_jax' / 'xla'))  # where runs keep theirs
# All commands have some hundred small programs in common.
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
# A test runs its programs for a moment: compiling them with all optimisations takes longer. tests/parity turns these on again.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')

# The same examples every time: what a change breaks is told of that change. `--hypothesis-profile=search` draws new ones.
settings.register_profile('fixed', derandomize=True)
settings.register_profile('search', derandomize=False, print_blob=True)
settings.load_profile('fixed')


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: handed out last, one of them would keep one worker busy while the other has nothing left."""
    long = {item.path for item in items if item.get_closest_marker('slow')}
    items.sort(key=lambda item: item.path not in long)
