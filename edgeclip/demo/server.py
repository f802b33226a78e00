"""The page's server: the standard library's, with what keeps other people's pages and machines out.

Every request but the page itself bears a token that is made anew at each start. The Host must be this machine's, an address or a name of
its own: a page elsewhere that points its own name here (DNS rebinding) is refused. An Origin, where a browser sends one, must be the Host.
Nothing that a client sends becomes a path, and nothing is written.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import hmac
import ipaddress
import json
import re
import secrets
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edgeclip.demo.asking import MAX_LINE, Asking, NoPictureError, Query
from edgeclip.errors import EdgeClipError, InputError
from edgeclip.runtime.model import Model

MAX_BYTES = 24 << 20  # of a picture: a photograph of 24 megapixels has 5 to 15
TOKEN = "X-Edgeclip-Token"
IDLE_S = 60  # after which a silent connection is closed

_PAGE = Path(__file__).with_name("page.html")


class Demo:
    """The server, bound and not yet serving.

    Args:
        model: open; it stays the caller's.
        host: where to listen, an address or a name of this machine.
        port: 0: any that is free.
        pictures: that the page offers to begin with.
        prompts: that stand on the page when it is opened.
    Raises:
        InputError: the address cannot be bound.
    """

    def __init__(
        self,
        model: Model,
        host: str = "127.0.0.1",
        port: int = 8765,
        *,
        pictures: Sequence[Path] = (),
        prompts: str = "",
    ) -> None:
        self.token = secrets.token_urlsafe(24)
        self.asking = Asking(model, pictures, prompts)
        self.host = host
        try:
            self._server = _Server((host, port), self)
        except OSError as error:
            hint = (
                "Pass another --port, or 0 for any that is free." if error.errno == errno.EADDRINUSE else ""
            )
            raise InputError(
                f"{host}:{port}: cannot listen there ({error.strerror or error}). {hint or 'Check --host and --port.'}"
            ) from error
        self.port: int = self._server.server_address[1]

    @property
    def url(self) -> str:
        """To be opened in a browser. The token stands behind the #, which browsers keep to themselves."""
        name = socket.gethostname() if self.host in ("", "0.0.0.0", "::") else self.host
        return f"http://{f'[{name}]' if ':' in name else name}:{self.port}/#{self.token}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @cached_property
    def names(self) -> set[str]:
        """What the Host of a request may be, beside addresses."""
        own = socket.gethostname().lower()
        return {"localhost", own, f"{own}.local", self.host.lower()}

    def run(self) -> None:
        """Serve until `stop`, or Ctrl-C."""
        self._server.serve_forever(poll_interval=0.2)

    def stop(self) -> None:
        """End `run`, from another thread."""
        self._server.shutdown()

    def close(self) -> None:
        """Free the port, and wait for the answer that is being computed: afterwards the model may be closed."""
        self._server.server_close()
        self.asking.close()


def serve(
    model: Model,
    host: str = "127.0.0.1",
    port: int = 8765,
    *,
    pictures: Sequence[Path] = (),
    prompts: str = "",
    ready: Callable[[Demo], object] | None = None,
) -> None:
    """Serve the page until Ctrl-C.

    Args:
        model: open; it stays the caller's.
        host: where to listen; anything but this machine's own 127.0.0.1 lets others in who have the address with its token.
        port: 0: any that is free.
        pictures: that the page offers to begin with.
        prompts: that stand on the page when it is opened.
        ready: called once it listens; None: the address is printed.
    Raises:
        InputError: the address cannot be bound.
    """
    demo = Demo(model, host, port, pictures=pictures, prompts=prompts)
    try:
        (ready or (lambda it: sys.stdout.write(f"{it.url}\n") and sys.stdout.flush()))(demo)
        demo.run()
    except KeyboardInterrupt:
        pass
    finally:
        demo.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # a browser that keeps its connection does not hold up the end

    def __init__(self, address: tuple[str, int], demo: Demo) -> None:
        self.demo = demo
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        page = _PAGE.read_bytes()
        self.page, self.policy = page, _policy(page.decode())
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)  # not HTTPServer's: it asks the DNS for this machine's name
        self.server_address = self.socket.getsockname()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class _RefusedError(Exception):
    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "edgeclip", ""
    timeout = IDLE_S
    wbufsize = (
        -1
    )  # head and body leave together: apart, the second waits 40 ms for the first's acknowledgement
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, *_: object) -> None:
        """A terminal is no place for a line a frame."""

    def _get(self) -> tuple[bytes, str]:
        path, demo = self.path.partition("?")[0], self.server.demo
        if path == "/":
            return self.server.page, "text/html; charset=utf-8"
        self._require_token()
        if path == "/facts":
            return _json({**demo.asking.facts(), "max_bytes": MAX_BYTES})
        number = re.fullmatch(r"/pictures/(\d{1,4})", path)
        if number and int(number[1]) < len(demo.asking.pictures):
            try:
                return demo.asking.pictures[int(number[1])].read_bytes(), "application/octet-stream"
            except OSError as error:
                raise InputError(f"{error.filename}: cannot be read ({error.strerror}).") from error
        raise _RefusedError(HTTPStatus.NOT_FOUND, "no such place.")

    def _post(self) -> tuple[bytes, str]:
        self._require_token()
        asking = self.server.demo.asking
        does = {"/detect": asking.detect, "/example": asking.example}.get(self.path.partition("?")[0])
        if does is None:
            raise _RefusedError(HTTPStatus.NOT_FOUND, "no such place.")
        line, _, picture = self._body().partition(b"\n")
        if len(line) > MAX_LINE:
            raise InputError(
                f"request: expected at most {MAX_LINE} bytes of JSON, got {len(line)}. Use fewer prompts."
            )
        return _json(does(Query.of(line), picture))

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,18}", length):
            raise _RefusedError(HTTPStatus.LENGTH_REQUIRED, "expected a Content-Length.")
        if int(length) > MAX_BYTES + MAX_LINE:
            raise _RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"expected at most {MAX_BYTES >> 20} MB, got {int(length) / 2**20:.0f}. Use a smaller picture.",
            )
        self._unread = False
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ConnectionAbortedError
        return body

    def _require_token(self) -> None:
        if not hmac.compare_digest(self.headers.get(TOKEN, "").encode(), self.server.demo.token.encode()):
            raise _RefusedError(
                HTTPStatus.FORBIDDEN,
                "wrong token. Open the address that `edgeclip demo` printed when it was started last.",
            )

    def _require_own_host(self) -> None:
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if not _is_own(host, self.server.demo.names):
            raise _RefusedError(
                HTTPStatus.FORBIDDEN,
                f"{host[:80]!r} is no name of this machine. Use its address, or pass the name as --host.",
            )
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise _RefusedError(
                HTTPStatus.FORBIDDEN, f"requests of pages from {origin[:80]!r} are not answered."
            )

    def _answer(self, make: Callable[[], tuple[bytes, str]]) -> None:
        self._unread = self.command == "POST"
        status, (body, kind) = HTTPStatus.OK, (b"", "")
        try:
            self._require_own_host()
            body, kind = make()
        except _RefusedError as error:
            status, (body, kind) = error.status, _json({"error": str(error)})
        except EdgeClipError as error:
            status = HTTPStatus.CONFLICT if isinstance(error, NoPictureError) else HTTPStatus.BAD_REQUEST
            body, kind = _json({"error": str(error)})
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:
            traceback.print_exc()
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            body, kind = _json(
                {"error": f"this is a bug in edgeclip ({type(error).__name__}); see the terminal."}
            )
        self.close_connection |= self._unread  # what was not read would be taken for the next request
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": self.server.policy,
            "Cache-Control": "no-store",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            **({"Connection": "close"} if self.close_connection else {}),
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _json(record: dict[str, Any]) -> tuple[bytes, str]:
    return json.dumps(record, ensure_ascii=False).encode(errors="backslashreplace"), "application/json"


def _is_own(host: str, names: set[str]) -> bool:
    """Whether a Host header means this machine. The port is left aside: `ssh -L` changes it."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _policy(page: str) -> str:
    """The page's own script and style, by their hashes, and nothing from anywhere else."""
    own = {
        kind: base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        for kind, content in re.findall(r"<(script|style)>(.*?)</\1>", page, re.DOTALL)
    }
    return (
        f"default-src 'none'; script-src 'sha256-{own['script']}'; style-src 'sha256-{own['style']}'; connect-src 'self'; "
        "img-src blob: data:; media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
