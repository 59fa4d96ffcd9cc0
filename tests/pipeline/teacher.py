"""A teacher at an endpoint on loopback, whose pace a test decides."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Teacher(ThreadingHTTPServer):
    """An endpoint that answers as a function of the question, each `pause_s` after it was asked.

    Questions whose place in `order` is `limit` or more wait until they are released.
    """

    daemon_threads = True

    def __init__(self, limit: int, pause_s: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.order: dict[str, int] = {}
        self.limit = limit
        self.pause_s = pause_s
        self.released = threading.Condition()

    def release(self, limit: int) -> None:
        with self.released:
            self.limit = limit
            self.released.notify_all()


class _Handler(BaseHTTPRequestHandler):
    server: Teacher

    def do_GET(self) -> None:
        self.send_error(404)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = asked["messages"][-1]["content"]
        with self.server.released:
            self.server.released.wait_for(lambda: self.server.order.get(question, -1) < self.server.limit)
        time.sleep(self.server.pause_s)
        number = int(hashlib.sha256(f"{question}{asked.get('seed')}".encode()).hexdigest(), 16)
        text = f"{number % 7} + {number % 5} = {number % 7 + number % 5}. The answer is \\boxed{{{number % 13}}}"
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": 9, "completion_tokens": 9}
        body = json.dumps({"id": "x", "model": "m", "choices": [choice], "usage": usage}).encode()
        with contextlib.suppress(ConnectionError):  # who asked was ended meanwhile
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
