"""A server of one file on this machine, for tests of downloads."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONTENT = bytes(range(256)) * 2000


@contextmanager
def server(content: bytes = CONTENT, *, ranges: bool = True, stop_after: int | None = None):
    """Serve one file; yield its address, the ranges asked for, and what ends `stop_after`."""
    asked: list[str | None] = []
    limits = {"end": stop_after}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            span = self.headers.get("Range")
            asked.append(span)
            start = int(span[len("bytes=") : -1]) if span and ranges else 0
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if span and ranges else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start : limits.get("end")])

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}/file.bin", asked, limits.clear
        finally:
            http.shutdown()
            thread.join()
