"""Serve a folder of pages on this machine alone: `python tools/open_book.py FOLDER [PORT]`."""

from __future__ import annotations

import functools
import http.server
import sys
import webbrowser
from pathlib import Path


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def main(folder: str, port: int) -> None:
    if not Path(folder, "index.html").exists():
        sys.exit(f"{folder} has no pages yet: run `make book` first")
    handler = functools.partial(Quiet, directory=folder)
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError:  # taken: any free port will do
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    url = f"http://127.0.0.1:{server.server_port}/"
    print(f"{url}  (stop with Ctrl-C)", flush=True)
    webbrowser.open(url)  # False where there is no browser: the address is on the screen
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 8000)
