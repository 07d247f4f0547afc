import pytest

from tests.parity.reference import CONFIGS


def pytest_collection_modifyitems(items):
    for item in items:
        if 'tests/parity/' in str(item.path):
            item.add_marker(pytest.mark.parity)


@pytest.fixture(params=CONFIGS, scope='module')
def name(request) -> str:
    return request.param
