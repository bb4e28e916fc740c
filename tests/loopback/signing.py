"""Addresses that hold for a while and for one purpose, as a CDN's do."""

import hashlib
import hmac
import itertools
import secrets
from urllib.parse import parse_qs, quote, urlencode

LIFETIME_SECONDS = "3600"


class Signer:
    """Signs addresses, knows its own, and can take them back."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(16)
        self._numbers = itertools.count(1)
        self._issued: set[str] = set()

    def sign(self, method: str, url: str, **query: str) -> str:
        """The address with a query that no other call is given."""
        path = "/" + url.split("/", 3)[3]
        number = str(next(self._numbers))
        signature = self._signature(method, path, number)
        self._issued.add(signature)
        words = query | {"X-Amz-Expires": LIFETIME_SECONDS, "Key-Pair-Id": number, "Signature": signature}
        return f"{url}?{urlencode(words, quote_via=quote)}"

    def holds(self, method: str, path: str, query: str) -> bool:
        """Whether this address was issued for this method, and has not expired."""
        words = {name: values[0] for name, values in parse_qs(query).items()}
        signature = self._signature("GET" if method == "HEAD" else method, path, words.get("Key-Pair-Id", ""))
        return words.get("Signature") == signature and signature in self._issued

    def expire(self, query: str) -> None:
        self._issued.discard(parse_qs(query).get("Signature", [""])[0])

    def expire_all(self) -> None:
        self._issued.clear()

    def _signature(self, method: str, path: str, number: str) -> str:
        return hmac.new(self._key, f"{method} {path} {number}".encode(), hashlib.sha256).hexdigest()
