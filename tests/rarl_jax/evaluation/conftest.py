"""What tests of several files need."""

import pytest

from tests.rarl_jax.evaluation.judge_server import Server


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    monkeypatch.setattr('openai._base_client.INITIAL_RETRY_DELAY', 0.01)
    servers = []

    def start(answer):
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
