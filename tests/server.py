"""A real HTTP server on this machine that answers as a test tells it to."""

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Site(ThreadingHTTPServer):
    """A server on this machine that answers as it is told to.

    `answers` are functions of the request handler, one a request; the last
    one goes on answering. `requests` are the requests' headers.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.answers = []
        self.requests = []
        self.url = f'http://127.0.0.1:{self.server_port}'

    def handle_error(self, request, client_address):
        """A client that hangs up is part of the tests."""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        answers = self.server.answers
        self.server.requests.append(self.headers)
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        answer(self)

    def log_message(self, *args):
        pass


def send(body, status=200, length=None, **headers):
    """Answer with a body, saying that it has `length` bytes."""

    def answer(handler):
        handler.send_response(status)
        handler.send_header('Content-Length', length or len(body))
        for name, value in headers.items():
            handler.send_header(name.replace('_', '-'), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@contextlib.contextmanager
def serving():
    """Serve in a thread until the block ends."""
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:  # or a test that fails would never end
            server.shutdown()
            thread.join()
