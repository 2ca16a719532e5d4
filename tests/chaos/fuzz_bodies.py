"""Random bodies that ingest accepts but no gateway sends, and valid ones. The same seed gives the same bodies."""

import random
from typing import Final, NamedTuple

BOM: Final = b"\xef\xbb\xbf"
LARGEST: Final = 262_144
"""Maximum of ingest by default, in bytes."""
NUMBER: Final = "+4915752982212"
"""Number of the person whose data is erased."""
GOOD_FROM: Final = 2**50
"""First message id of the valid gateway. All other ids are smaller, or much larger."""

NUMBERS: Final = (
    *(b"NaN", b"-Infinity", b"1e999", b"-0", b"1" * 400, b"0.1e-400", b"1.0", b"18446744073709551616", b"0x1"),
    *(b"9223372036854775807", b"2147483647", b"2147483648", b"-1", b"true", b"null"),
)
TEXTS: Final = (
    *(rb'"\ud800"', rb'"\udfff\ud800"', rb'"\u0000"', b'"\xff\xfe"', b'"\xed\xa0\x80"', b'"+49 157 1234567"', b'""'),
    *(b'"=1+1"', b'"<script>"', b'"../../etc/localtime"', b'"0001-01-01T00:00:00+14:00"', b'"\xef\xbb\xbf"'),
    *(b'"9999-12-31T23:59:59-23:00"', b'"2026-01-02 03:04:05"', b'"+49 (0)157 529 82212"', b'"004915752982212"'),
)
FIELDS: Final = (
    *(b"sms_id", b"status_id", b"sendto", b"address", b"type", b"date", b"senttime", b"body", b"img_url", b"sim"),
    *(b"channel_id", b"device_id", b"internal_id", b"device_name", b"date_sent", b"status_message", b"withheld"),
)
STARTS: Final = (
    b'{"sms_id":1,"status_id":7',
    b'{"sms_id":1,"type":"text"',
    b'{"event":1',
    b'{"sms_id":2,"status_id":6',
)
CHARSETS: Final = ("utf-16", "utf-32", "utf-7", "utf-8-sig", "cp1251", "gb18030")


class Body(NamedTuple):
    """One webhook.

    Args:
        content: The bytes.
        content_type: Of the header of that name.
        is_good: Whether it is a report that has to be seen in SQL.
    """

    content: bytes
    content_type: bytes = b"application/json"
    is_good: bool = False


class Bodies:
    """Random bodies."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._good = 0
        self._channel = 0
        small = [self.odd_fields, self.mutated, self.encoded, self.noise, self.many_channels, self.many_reports]
        large = [self.byte_order_marks, self.deep, self.long_text, self.escapes]
        self._kinds = [self.good, *small, *large]
        self._weights = [20, 20, 15, 15, 8, 6, 6, 4, 4, 0.7, 0.3]

    def next(self) -> Body:
        """Return the next body."""
        return self._rng.choices(self._kinds, self._weights)[0]()

    def good(self) -> Body:
        """A delivery report of a new message, as a gateway sends it."""
        self._good += 1
        number = f"+4915{self._rng.randrange(10**9):09}"
        text = b'{"sms_id":%d,"status_id":7,"status_message":"","sendto":"%s","channel_id":1,"device_id":8001}'
        return Body(text % (GOOD_FROM + self._good, number.encode()), is_good=True)

    def value(self) -> bytes:
        """Any JSON value, or nearly valid JSON."""
        rng = self._rng
        kind = rng.randrange(10)
        if kind == 0:
            return b"[" * (depth := rng.choice([3, 200, 300, 1100, 20_000])) + b"]" * rng.choice([depth, depth - 1])
        if kind == 1:
            return b'{"date":%s,"timezone":%s}' % (rng.choice([b'"2026-01-02"', *TEXTS]), rng.choice(TEXTS))
        if kind == 2:
            return b"1" * rng.choice([20, 5000, 60_000])
        if kind == 3:
            return b'{"a":' * (depth := rng.choice([3, 200, 300, 1100])) + b"1" + b"}" * depth
        if kind == 4:
            return b'"+%s"' % (b"%d" % rng.getrandbits(60) * rng.choice([1, 10, 3000]))
        return rng.choice(NUMBERS if kind < 7 else TEXTS)

    def fields(self) -> bytes:
        """Valid and nearly valid JSON: NaN, duplicate keys, surrogates, deep nesting, huge numbers."""
        names = self._rng.choices(FIELDS, k=self._rng.randrange(1, 8))
        return self._rng.choice(STARTS) + b"".join(b',"%s":%s' % (name, self.value()) for name in names) + b"}"

    def odd_fields(self) -> Body:
        marks = BOM * self._rng.choice([0, 0, 0, 0, 1, 2])
        return Body((marks + self.fields())[:LARGEST])

    def mutation(self) -> bytes:
        """A report with a few bytes changed, and often cut."""
        body = bytearray(
            b'{"sms_id": 17, "status_id": 7, "sendto": "+49 157 5298 2212", "senttime": "2026-01-02 03:04:05"}'
        )
        for _ in range(self._rng.randrange(1, 6)):
            body[self._rng.randrange(len(body))] = self._rng.randrange(256)
        return bytes(body[: self._rng.randrange(len(body) + 1)])

    def mutated(self) -> Body:
        return Body(self.mutation())

    def encoded(self) -> Body:
        """A text in the declared charset or in another one."""
        text = '{"sms_id": 17, "status_id": 7, "status_message": "доставлено", "sendto": "+49 157 5298 2212"}'
        marks = self._rng.choice(["", "", "\ufeff", "\ufeff\ufeff"])
        named = self._rng.choice([*CHARSETS, "utf-16-le", "nonsense"]).encode()
        content = (marks + text).encode(self._rng.choice(CHARSETS), "replace")
        return Body(content, b"application/json; charset=%s" % named)

    def noise(self) -> Body:
        return Body(
            self._rng.randbytes(self._rng.randrange(2000)), self._rng.choice([b"", b"text/plain; charset=utf-16"])
        )

    def many_channels(self) -> Body:
        """New channels of one device in each body, and devices with the largest ids."""
        self._channel += 1
        device = self._rng.choice([1, 1, 1, 2**63 - 1])
        text = b'{"sms_id":%d,"status_id":%d,"channel_id":%d,"device_id":%d,"sendto":"%s"}'
        status = self._rng.choice([7, 8, 9, 10, 100])
        return Body(text % (self._rng.getrandbits(40), status, self._channel, device, NUMBER.encode()))

    def many_reports(self) -> Body:
        """New statuses of a few messages in each body."""
        return Body(b'{"sms_id":%d,"status_id":%d}' % (self._rng.randrange(3), self._rng.getrandbits(31)))

    def byte_order_marks(self) -> Body:
        """A depth near the interpreter's recursion limit, or the maximum that fits."""
        marks = self._rng.choice([2, self._rng.randrange(900, 1100)] * 10 + [LARGEST // len(BOM) - 20])
        return Body(BOM * marks + self._rng.choice([b'{"sms_id":1,"status_id":7}', NUMBER.encode(), b""]))

    def deep(self) -> Body:
        """Nesting near the limits of the parsers, in a known or in an unknown field."""
        depth = self._rng.choice([250, 255, 300, 1000, 1020, 1025, 5000])
        value = b"[" * depth + b"]" * depth
        name = self._rng.choice(FIELDS)
        return Body(b'{"sms_id":3,"status_id":7,"channel_id":1,"%s":%s}' % (name, value))

    def long_text(self) -> Body:
        """One field of the maximum length of a body."""
        text = self._rng.choice([b"(0)", b"+49", b"\xff", b"\xd9\xa1", b"a", b"/.", b" "])
        name = self._rng.choice(FIELDS)
        head = b'{"sms_id":%d,"status_id":7,"%s":"' % (self._rng.getrandbits(40), name)
        return Body(head + text * ((LARGEST - len(head) - 2) // len(text)) + b'"}')

    def escapes(self) -> Body:
        """A text whose repair is the most expensive."""
        text = self._rng.choice([rb"\ud800", b"\\\\", rb"\u00e4", rb"\ud83d\ude00"])
        head = b'{"sms_id":4,"status_id":7,"status_message":"'
        return Body(head + text * ((LARGEST - len(head) - 2) // len(text)) + b'"}')
