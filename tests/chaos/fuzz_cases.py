"""Requests of the fuzz of ingest: valid, unusual and malformed ones."""

import gzip
import random
import zlib
from functools import partial
from typing import NamedTuple

from fuzz_bodies import CHARSETS, Bodies

TOKEN = "c0ffee-token-of-the-fuzz"  # noqa: S105 - used in this run only
PATH = f"/webhooks/acme/{TOKEN}".encode()
LIMIT = 65_536
"""Maximum size of a body, in bytes."""
TAKEN = {202, 429, 503}
# On a busy machine so many bytes can take longer than the timeout for bodies.
_TOO_LARGE_DUE = {408, 413}
KNOWN = TAKEN | {200, 400, 401, 403, 404, 405, 408, 413, 415, 431}


class Case(NamedTuple):
    """One request.

    Args:
        kind: Name of its kind.
        pieces: Bytes to send, seconds to wait, or `END`, after which nothing more is sent.
        due: Statuses that are expected.
        ends: Whether the connection ends after it.
        open_end: Whether the bytes may be the start of a longer request, so an answer may be missing.
        method: HTTP method.
    """

    kind: str
    pieces: tuple[bytes | float | None, ...]
    due: set[int]
    ends: bool = False
    open_end: bool = False
    method: bytes = b"POST"


END = None


class Cases:
    """Random requests. The same seed gives the same requests."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._bodies = Bodies(rng)
        quick = [self.status, self.odd_fields, self.mutated, self.encoded, self.chunked, self.refused, self.path]
        frail = [self.garbage, self.bad_head, self.bad_length, self.bad_chunks, self.huge_head, self.upgrade]
        slow = [self.slow_head, self.slow_body, self.half_closed, self.aborted, self.deaf, self.too_large]
        self._kinds = quick + frail + slow
        self._weights = [30, 20, 10, 6, 10, 5, 4] + [1.5] * len(frail) + [0.1] * len(slow)

    def next(self) -> Case:
        """Return the next request."""
        return self._rng.choices(self._kinds, self._weights)[0]()

    def _post(
        self, kind: str, body: bytes, due: set[int] = TAKEN, path: bytes = PATH, extra: bytes = b"", ends: bool = False
    ) -> Case:
        head = b"POST %s HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n" % (path, extra, len(body))
        return Case(kind, (head + body,), due, ends)

    def _bytes(self, most: int) -> bytes:
        return self._rng.randbytes(self._rng.randrange(most))

    def status(self) -> Case:
        """A status report as a gateway sends it."""
        path = rb"/webhooks/limited/%s" % TOKEN.encode() if self._rng.random() < 0.1 else PATH
        return self._post(
            "status", b'{"sms_id":%d,"status_id":7,"sendto":"+4915712345"}' % self._rng.getrandbits(40), path=path
        )

    def odd_fields(self) -> Case:
        """Valid and nearly valid JSON: NaN, duplicate keys, surrogates, deep nesting, huge numbers."""
        return self._post("odd fields", self._bodies.fields()[:LIMIT])

    def mutated(self) -> Case:
        return self._post("mutated", self._bodies.mutation())

    def encoded(self) -> Case:
        text = '{"sms_id": 17, "status_id": 7, "status_message": "доставлено"}'
        body = self._rng.choice([text.encode(self._rng.choice(CHARSETS)), self._bytes(300), bytes(LIMIT + 1)])
        # Without the time in gzip's header, which would differ between runs.
        for compress in self._rng.choices([partial(gzip.compress, mtime=0), zlib.compress], k=self._rng.randrange(3)):
            body = compress(body)
        if self._rng.random() < 0.2:
            body = body[: self._rng.randrange(len(body) + 1)]
        codings = [b"gzip", b"deflate", b"gzip, gzip", b"deflate, gzip", b"br", b"identity", b"", b"gzip," * 500]
        extra = b"Content-Encoding: %s\r\n" % self._rng.choice(codings) if self._rng.random() < 0.7 else b""
        named = self._rng.choice([*CHARSETS, "nonsense", "idna", "a" * 5000]).encode()
        types = [b"application/json; charset=%s" % named, b"multipart/form-data", bytes(range(128, 255))]
        content_type = b"Content-Type: %s\r\n" % self._rng.choice(types)
        return self._post("encoded", body[:LIMIT], TAKEN | {413, 415}, extra=extra + content_type)

    def chunked(self) -> Case:
        head = b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n" % PATH
        if self._rng.random() < 0.1:
            head += b"Expect: 100-continue\r\n"
        chunks = [self._bytes(300) or b"x" for _ in range(self._rng.randrange(6))]
        extension = self._rng.choice([b"", b"", b";a=b"])
        text = b"".join(b"%x%s\r\n%s\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
        whole = head + b"\r\n" + text + b"0\r\n\r\n"
        cut = self._rng.randrange(len(whole))
        return Case("chunked", (whole[:cut], whole[cut:]), TAKEN)

    def refused(self) -> Case:
        token = self._rng.choice(
            [b"", b"x", b"%00", b"%ff%fe", b"%F0%9F%98%80", b"\xc3\xa9", PATH[-24:-1], b"a" * 3000]
        )
        basic = self._rng.choice([b"", b"Authorization: Basic %%%\r\n", b"Authorization: Basic /w==\r\n"])
        forwarded = b"X-Forwarded-For: %s\r\n" % self._rng.choice([b"1.2.3.4", b"[::", b"," * 500, b"\xff"])
        return self._post("refused", b"{}", {400, 401}, b"/webhooks/acme/" + token, basic + forwarded)

    def path(self) -> Case:
        names = [
            b"/",
            b"//",
            b"/webhooks",
            b"/healthz",
            b"/readyz",
            b"/openapi.json",
            b"*",
            b"http://x/healthz",
            b"HTTPS://[::1]:8443/readyz/?a=b",
            b"http:///healthz",
            b"/metrics/",
            b"/" + b"a" * 7000,
        ]
        methods = [b"GET", b"HEAD", b"PUT", b"OPTIONS", b"TRACE", b"DELETE", b"PATCH", b"POST"]
        method = self._rng.choice(methods)
        head = b"%s %s HTTP/1.1\r\nHost: x\r\n\r\n" % (method, self._rng.choice(names))
        return Case("path", (head,), {200, 400, 404, 405}, method=method)

    def garbage(self) -> Case:
        return Case("garbage", (self._bytes(2000) + b"\r\n\r\n",), KNOWN, ends=True, open_end=True)

    def bad_head(self) -> Case:
        head = bytearray(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nA: b\r\n\r\n{}" % PATH)
        for _ in range(self._rng.randrange(1, 4)):
            at = self._rng.randrange(len(head))
            head[at : at + self._rng.randrange(2)] = self._rng.choice(
                [b"\r", b"\n", b"\0", b" ", b":", b"\xff", b"\r\n\r\n"]
            )
        return Case("bad head", (bytes(head),), KNOWN, ends=True, open_end=True)

    def bad_length(self) -> Case:
        lengths = [
            b"-1",
            b"+2",
            b"0x2",
            b"2, 2",
            b"2\r\nContent-Length: 3",
            b"",
            b" ",
            b"1" * 30,
            b"\xd9\xa2",
            b"1_0",
            b"1",
        ]
        both = b"2\r\nTransfer-Encoding: %s" % self._rng.choice([b"chunked", b"gzip", b"chunked, chunked", b"x"])
        length = self._rng.choice([*lengths, both])
        text = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %s\r\n\r\n{}\r\n\r\n" % (PATH, length)
        return Case("bad length", (text,), KNOWN, ends=True, open_end=True)

    def bad_chunks(self) -> Case:
        head = b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % PATH
        chunks = [
            b"zz\r\n",
            b"-1\r\n",
            b"ffffffffffffffffff\r\n",
            b"5\r\nabc\r\n",
            b"1\r\nab\r\n",
            b"1" * 5000,
            b"1;" + b"x" * 20_000,
        ]
        return Case("bad chunks", (head + self._rng.choice(chunks),), KNOWN, ends=True, open_end=True)

    def huge_head(self) -> Case:
        one = b"X: " + b"y" * self._rng.choice([8_000, 9_000, 100_000]) + b"\r\n"
        text = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n%s\r\n" % (
            PATH,
            one * self._rng.choice([1, 10, 100]),
        )
        return Case("huge head", (text,), {202, 400, 431, 503}, ends=True)

    def upgrade(self) -> Case:
        extra = self._rng.choice(
            [b"websocket\r\nSec-WebSocket-Key: x", b"h2c\r\nHTTP2-Settings: AAMAAABk", b"TLS/1.0", b""]
        )
        text = b"POST %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: %s\r\nContent-Length: 0\r\n\r\n" % (
            PATH,
            extra,
        )
        others = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /\r\n",
            b"\x16\x03\x01\x02\0\x01",
        ]
        return Case(
            "upgrade", (self._rng.choice([text, text + self._bytes(3000), *others]),), KNOWN, ends=True, open_end=True
        )

    def slow_head(self) -> Case:
        text = b"POST %s HTTP/1.1\r\nHost: x\r\nX-Slow: " % PATH
        pieces = [piece for byte in text + b"y" * 9 for piece in (bytes([byte]), 0.03)]
        return Case("slow head", tuple(pieces), {400}, ends=True)

    def slow_body(self) -> Case:
        head = b"POST %s HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n"
        how = self._rng.choice([b"Content-Length: 99", b"Transfer-Encoding: chunked"])
        pieces = [piece for _ in range(30) for piece in (b"1\r\na\r\n" if how[0] == ord("T") else b"a", 0.03)]
        return Case("slow body", (head % (PATH, how), *pieces), {408}, ends=True)

    def half_closed(self) -> Case:
        text = self.status().pieces[0]
        cut = self._rng.choice([len(text), len(text) - 1, self._rng.randrange(1, len(text))])
        return Case("half closed", (text[:cut], END), {202, 400, 408, 429, 503}, ends=True)

    def aborted(self) -> Case:
        text = self.status().pieces[0]
        return Case("aborted", (text[: self._rng.randrange(len(text) + 1)],), set(), ends=True)

    def deaf(self) -> Case:
        """Many requests in one write, whose answers are not read."""
        return Case("deaf", (b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 300, 0.3), set(), ends=True)

    def too_large(self) -> Case:
        """A number of ten million digits, or a body of one byte more than the limit."""
        if self._rng.random() < 0.5:
            return self._post("too large", bytes(LIMIT + 1), _TOO_LARGE_DUE, ends=True)
        number = b'{"sms_id":' + b"1" * 10_000_000 + b"}"
        if self._rng.random() < 0.5:
            return self._post("too large", number, _TOO_LARGE_DUE, ends=True)
        head = b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % (PATH, len(number))
        return Case("too large", (head + number + b"\r\n0\r\n\r\n",), _TOO_LARGE_DUE, ends=True)
