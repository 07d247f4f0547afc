import jax
import pytest

from tests.parity.reference import CONFIGS


def pytest_collection_modifyitems(items):
    for item in items:
        if 'tests/parity/' in str(item.path):
            item.add_marker(pytest.mark.parity)


@pytest.fixture(scope='module', autouse=True)
def compiled_as_for_a_user():
    """What is compared with PyTorch is optimised in full; programs of other tests, which are not, must not take its place."""
    before = jax.config.read('jax_disable_most_optimizations')
    jax.config.update('jax_disable_most_optimizations', False)
    jax.clear_caches()
    yield
    jax.config.update('jax_disable_most_optimizations', before)
    jax.clear_caches()


@pytest.fixture(params=CONFIGS, scope='module')
def name(request) -> str:
    return request.param
