"""A proxy in front of a tracking server that fails on purpose: it loses answers, cuts bodies, refuses and rejects."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

Fault = str
"""``lose`` the answer, ``cut`` its body, ``fail`` with 500 instead, or ``reject`` as an invalid parameter."""


class FlakyProxy:
    """Forwards requests to a server; ``choose(method, path, body)`` returns the fault of each, None for none."""

    def __init__(self, upstream: str, choose: Callable[[str, str, bytes], Fault | None]) -> None:
        self.choose = choose
        self.counts: Counter[str] = Counter()
        address = urlsplit(upstream).netloc
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                fault = proxy.choose(self.command, self.path, body)
                if fault is not None:
                    proxy.counts[fault] += 1
                if fault in ("fail", "reject"):
                    code = "INVALID_PARAMETER_VALUE" if fault == "reject" else "INTERNAL_ERROR"
                    text = json.dumps({"error_code": code, "message": f"the proxy says {fault}"}).encode()
                    self.answer(400 if fault == "reject" else 500, text, "application/json", len(text))
                    return
                upstream = http.client.HTTPConnection(address, timeout=30)
                headers = {key: value for key, value in self.headers.items() if key.lower() != "host"}
                upstream.request(self.command, self.path, body, headers)
                reply = upstream.getresponse()
                content = reply.read()
                upstream.close()
                if fault == "lose":
                    self.close_connection = True
                    return
                sent = content[: len(content) // 2] if fault == "cut" else content
                self.answer(reply.status, sent, reply.headers.get("Content-Type", "text/plain"), len(content))
                if fault == "cut":
                    self.close_connection = True

            def answer(self, status: int, content: bytes, kind: str, length: int) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> FlakyProxy:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def at_random(seed: int, *, lose: float, cut: float, fail: float, reject: float) -> Callable[..., Fault | None]:
    """Returns a choice of faults with these probabilities; only lines, which are logged in batches, are rejected."""
    random_, lock = random.Random(seed), threading.Lock()

    def choose(method: str, path: str, body: bytes) -> Fault | None:
        with lock:
            drawn = random_.random()
        for fault, share in (("lose", lose), ("cut", cut), ("fail", fail), ("reject", reject)):
            if drawn < share:
                return fault if fault != "reject" or path.endswith("/log-batch") else None
            drawn -= share
        return None

    return choose


@contextlib.contextmanager
def failing_at(upstream: str, ending: str, fault: Fault) -> Iterator[FlakyProxy]:
    """A proxy whose requests to paths with this ending always have this fault."""
    with FlakyProxy(upstream, lambda method, path, body: fault if ending in path else None) as proxy:
        yield proxy
