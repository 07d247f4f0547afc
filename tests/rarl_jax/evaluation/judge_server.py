"""A judge on localhost, for tests of those who ask it."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from rarl_jax.evaluation.endpoint import Endpoint, EndpointJudge
from rarl_jax.evaluation.judge import Item

ITEMS = [Item('What happens?', 'he falls', f'he falls {i}') for i in range(6)]


class Server(ThreadingHTTPServer):
    """A judge on localhost whose nth reply is what `answer(n, request body)` returns: (status, body, headers)."""

    daemon_threads = True

    def __init__(self, answer, port=0):
        super().__init__(('127.0.0.1', port), Handler)
        self.answer, self.requests, self.keys = answer, [], []
        self.busy, self.busiest, self.lock = 0, 0, threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self):
        return f'http://127.0.0.1:{self.server_address[1]}/v1'


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        with self.server.lock:
            n = len(self.server.requests)
            self.server.requests.append((self.path, body))
            self.server.keys.append(self.headers.get('Authorization'))
            self.server.busy += 1
            self.server.busiest = max(self.server.busiest, self.server.busy)
        status, text, headers = self.server.answer(n, body)
        with self.server.lock:
            self.server.busy -= 1
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode('utf-8', 'replace') if isinstance(text, str) else text)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client had left

    def log_message(self, *arguments):
        pass


def says(text, status=200, **headers):
    return status, json.dumps({'choices': [{'message': {'role': 'assistant', 'content': text}}]}), headers


def judge_at(url, tmp_path, **settings):
    quick = {'attempts': 3, 'timeout': 5.0, 'concurrency': 3} | settings
    return EndpointJudge(Endpoint(url, 'm', **quick), tmp_path / 'judge.jsonl')
