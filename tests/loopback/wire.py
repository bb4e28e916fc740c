"""Bytes on a connection: bodies in both directions, and the ways in which a connection ends."""

import fcntl
import hashlib
import os
import select
import socket
import struct
import termios
import time
from typing import TYPE_CHECKING, BinaryIO

from loopback.content import CHUNK_BYTES, Content
from loopback.log import Open

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loopback.answers import Answer
    from loopback.faults import Fault
    from loopback.server import Handler

SEND_BYTES = 8 << 20
DRAIN_SECONDS = 2.0


class Cut(Exception):
    """The connection is to be closed with nothing more said."""


def cut(handler: "Handler") -> None:
    """RST, after the client's machine has everything that was sent.

    Raises:
        Cut: always.
    """
    handler.wfile.flush()
    unsent, deadline = struct.pack("i", 1), time.monotonic() + DRAIN_SECONDS
    while struct.unpack("i", unsent)[0] and time.monotonic() < deadline:
        unsent = fcntl.ioctl(handler.connection, termios.TIOCOUTQ, b"\0" * 4)
        time.sleep(0.001)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(handler.connection.detach())
    raise Cut


def _wait_for_client(handler: "Handler") -> None:
    """Says nothing until the client has gone, or the server is stopped; what it still sends is left unread."""
    poll = select.poll()
    poll.register(handler.connection, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
    while not handler.server.closing.is_set() and not poll.poll(50):
        continue


def stop(handler: "Handler", entry: Open, fault: "Fault") -> None:
    """Ends a body that is not whole, the way the fault says.

    Raises:
        Cut: always.
    """
    if fault.kind == "stall":
        handler.server.hub.log.settle(entry)
        _wait_for_client(handler)
    if fault.kind == "reset":
        cut(handler)
    raise Cut


def receive(handler: "Handler", entry: Open, fault: "Fault | None") -> Content:
    """The request's body: an object that is uploaded goes to a file and is hashed on the way.

    Raises:
        Cut: a fault ended it before it was whole, or the client did.
    """
    limit = None if fault is None else fault.after
    hashed, kept, target = hashlib.sha256(), [], None
    if handler.command == "PUT" and handler.server.origin == "cdn":
        target = handler.server.hub.new_file()
    with open(target or os.devnull, "wb") as file:  # noqa: PTH123 - one of two names
        for data in _pieces(handler, limit):
            entry.note(received=entry.done.received + len(data))
            if target is None:
                kept.append(data)
            else:
                hashed.update(data)
                file.write(data)
    if fault is not None:
        stop(handler, entry, fault)
    return Content(b"".join(kept)) if target is None else Content(target, hashed.hexdigest())


def _pieces(handler: "Handler", limit: int | None) -> "Iterator[bytes]":
    if "chunked" in handler.headers.get("Transfer-Encoding", ""):
        while size := int(handler.rfile.readline().split(b";")[0], 16):
            yield _exactly(handler.rfile, size)
            handler.rfile.readline()
        handler.rfile.readline()
        return
    left = int(handler.headers.get("Content-Length", "0"))
    left = left if limit is None else min(left, limit)
    while left:
        data = _exactly(handler.rfile, min(left, CHUNK_BYTES))
        left -= len(data)
        yield data


def _exactly(file: "BinaryIO", count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise Cut
    return data


def send_body(handler: "Handler", entry: Open, answer: "Answer", count: int, flip: int | None) -> None:
    """The first `count` bytes of an answer; the byte at `flip`, a place in the content, with its lowest bit changed."""
    start, end = answer.start, answer.start + count
    data = answer.content.data
    if not isinstance(data, bytes) and flip is None:
        _send_file(handler, entry, answer.content, start, end)
        return
    while start < end:
        piece = bytearray(answer.content.read(start, min(CHUNK_BYTES, end - start)))
        if flip is not None and start <= flip < start + len(piece):
            piece[flip - start] ^= 1
        handler.wfile.write(piece)
        start += len(piece)
        entry.note(sent=entry.done.sent + len(piece))


def _send_file(handler: "Handler", entry: Open, content: Content, start: int, end: int) -> None:
    handler.wfile.flush()
    with content.data.open("rb") as file:  # type: ignore[union-attr]
        while start < end:
            count = os.sendfile(handler.connection.fileno(), file.fileno(), start, min(SEND_BYTES, end - start))
            if count == 0:
                raise Cut  # the file has become shorter
            start += count
            entry.note(sent=entry.done.sent + count)
