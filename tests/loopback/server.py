"""One origin: a socket that takes requests, gives answers, and breaks them where a fault says so."""

import socket
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import unquote, unquote_plus

from loopback.access import account_of
from loopback.answers import Answer, Call, Refused, refusal
from loopback.content import Content
from loopback.faults import READS, UPLOADS, Fault
from loopback.log import Open, Request
from loopback.routes import route
from loopback.wire import Cut, cut, receive, send_body, stop

if TYPE_CHECKING:
    from loopback.hub import Hub

POLL_SECONDS = 0.02


class Server(ThreadingHTTPServer):
    """A thread for each connection; connections stay open for further requests."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, hub: "Hub", origin: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub, self.origin = hub, origin
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.closing = threading.Event()
        self.connections: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(POLL_SECONDS,), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()
        self._thread.join()
        for connection in list(self.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it is closed already

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is part of the tests; anything else is a mistake of this server, or of a test."""
        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError):
            self.hub.mistakes.append(error)


class Handler(BaseHTTPRequestHandler):
    """Receives, routes and answers the requests of one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    server: Server

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def version_string(self) -> str:
        return "loopback"

    def serve(self) -> None:
        target, _, query = self.path.partition("?")
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.server.origin, unquote(target), unquote_plus(query), headers)
        with self.server.hub.log.entry(request) as entry:
            try:
                self._serve(Call(self.server.hub, request, target, query, None, Content(b"")), entry)
            except (Cut, ConnectionError):
                self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = serve

    def _serve(self, call: Call, entry: Open) -> None:
        """What only reads is answered first and spoiled then, so that all its faults strike in their order."""
        faults = self.server.hub.faults
        answer = self._route(call) if self.command in READS else None
        fault = faults.take(call.request, answer)
        if fault is not None and fault.kind == "drop":
            cut(self)
        if fault is not None and fault.strikes == "request":
            receive(self, entry, None)
            answer, fault = self._failure(fault, call.raw_query), None
        if answer is None:
            body = receive(self, entry, fault)
            answer = self._route(replace(call, body=body))
            fault = faults.take(call.request, answer)
        self._send(answer, fault, entry)

    def _failure(self, fault: Fault, query: str) -> Answer:
        if fault.kind == "expired":
            self.server.hub.signer.expire(query)
            return refusal(403, "Request has expired").answer
        return refusal(int(fault.kind), "This was asked for").answer.plus(fault.headers())

    def _route(self, call: Call) -> Answer:
        hub = self.server.hub
        with hub.lock:
            if self.server.origin == "cdn":
                if call.request.authorized:
                    return refusal(400, "Only one auth mechanism allowed").answer
                return route(call)
            try:
                account = account_of(call.request.headers, hub.accounts)
            except Refused as refused:
                return refused.answer
            return route(replace(call, account=account))

    def _send(self, answer: Answer, fault: Fault | None, entry: Open) -> None:
        if fault is not None and fault.kind == "lost_answer":
            cut(self)
        if fault is not None and fault.kind == "ignore_range":
            answer = answer.whole()
        if fault is not None and fault.kind == "short":
            answer = answer.cut(fault.after)
        self.send_response(answer.status)
        entry.note(status=answer.status)
        for name, value in {**answer.headers, "Content-Length": str(answer.length)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        ends = fault is not None and fault.kind in UPLOADS
        flip = fault.after if fault is not None and fault.kind == "flip" else None
        send_body(self, entry, answer, fault.after if fault is not None and ends else answer.length, flip)
        if fault is not None and ends:
            self.wfile.flush()
            stop(self, entry, fault)
