"""What is set before any test: compiled programs stay on disk, for both workers and for every command that a test types."""

import os
from pathlib import Path

_CACHE = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache'))
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_CACHE / 'rarl_jax' / 'xla'))  # where runs keep theirs
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.2')
