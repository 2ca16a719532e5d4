"""Prefixes of international numbers with their country and carrier, from the metadata of the library `phonenumbers`.

Several countries can share a calling code: +1 is of the United States, Canada and 23 others. The library has a regular
expression for the numbers of each country. The prefixes here are the digits with which these expressions begin.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

# Digits of a number that are compared. Longer prefixes than these are cut.
MAX_PREFIX_DIGITS: Final = 9
_PIECE: Final = re.compile(r"\\d|\[[^\]]*\]|\(\?:|[0-9|()]|\{\d+(?:,\d*)?\}|\?")
_DIGITS: Final = "0123456789"
# Kinds of numbers whose expressions decide that a number is of a country.
_KINDS: Final = (
    *("fixed_line", "mobile", "toll_free", "premium_rate", "shared_cost", "personal_number", "voip", "pager", "uan"),
    "voicemail",
)


class NumberPrefix(NamedTuple):
    """The beginning of international numbers.

    Attributes:
        prefix: Digits, without `+`.
        country: ISO region.
        carrier: Carrier that the longest known prefix of a carrier was given to; None if none is known.
        network_prefix: That prefix of a carrier.
    """

    prefix: str
    country: str
    carrier: str | None
    network_prefix: str | None


def list_number_prefixes() -> list[NumberPrefix]:
    """Return all prefixes, sorted. A number has the country and carrier of its longest one."""
    # Imported here because the library takes a quarter of a second.
    from phonenumbers import COUNTRY_CODE_TO_REGION_CODE  # noqa: PLC0415
    from phonenumbers.carrierdata import CARRIER_DATA  # noqa: PLC0415

    countries = {str(code): regions[0] for code, regions in COUNTRY_CODE_TO_REGION_CODE.items()}
    for code, regions in COUNTRY_CODE_TO_REGION_CODE.items():
        if len(regions) > 1:
            countries |= _assign_prefixes(str(code), regions)
    carriers = {prefix: names.get("en") or next(iter(names.values())) for prefix, names in CARRIER_DATA.items()}
    found = []
    for prefix in sorted({*countries, *carriers}):
        country = _find_longest(countries, prefix)
        network_prefix = _find_longest(carriers, prefix)
        if country is not None:
            carrier = None if network_prefix is None else carriers[network_prefix]
            found.append(NumberPrefix(prefix, countries[country], carrier, network_prefix))
    return found


def _find_longest(known: dict[str, str], digits: str) -> str | None:
    """Return the longest known prefix of digits."""
    sizes = range(len(digits), 0, -1)
    return next((digits[:size] for size in sizes if digits[:size] in known), None)


def _assign_prefixes(code: str, regions: Sequence[str]) -> dict[str, str]:
    """Return the countries of a calling code by prefix, except those of its main country."""
    from phonenumbers import PhoneMetadata  # noqa: PLC0415

    by_region = {}
    for region in regions:
        metadata: Any = PhoneMetadata.metadata_for_region(region)
        described = (getattr(metadata, kind) for kind in _KINDS)
        patterns = [each.national_number_pattern for each in described if each and each.national_number_pattern]
        # The library then looks at nothing else.
        by_region[region] = list_pattern_prefixes([metadata.leading_digits] if metadata.leading_digits else patterns)
    main, *others = regions
    assigned: dict[str, str] = {}
    for region in others:
        for prefix in by_region[region]:
            # Of several countries, the library takes the first.
            if not any(prefix[:size] in by_region[main] for size in range(1, len(prefix) + 1)):
                assigned.setdefault(f"{code}{prefix}"[:MAX_PREFIX_DIGITS], region)
    return assigned


def list_pattern_prefixes(patterns: Sequence[str]) -> set[str]:
    r"""Return the beginnings of the digits that regular expressions match.

    They end before the first place where any digit can stand. `7(?:[05]0\d|28)\d{4}` begins with 700, 750 and
    728.

    Raises:
        ValueError: A pattern has a part that is not known here.
    """
    return {prefix for pattern in patterns for prefix in _expand(_parse(pattern))}


# A part of a pattern: a set of digits, or alternatives, each a sequence of parts; and how often it stands there.
_Alternatives = list[list["_Part"]]


class _Part(NamedTuple):
    digits: str
    alternatives: _Alternatives
    least: int = 1
    most: int = 1


def _parse(pattern: str) -> _Alternatives:
    pieces = _PIECE.findall(pattern)
    if "".join(pieces) != pattern:
        msg = f"an unknown part in the pattern {pattern!r}"
        raise ValueError(msg)
    alternatives, end = _parse_alternatives(pieces, 0)
    if end != len(pieces):
        msg = f"an unmatched bracket in the pattern {pattern!r}"
        raise ValueError(msg)
    return alternatives


def _parse_alternatives(pieces: Sequence[str], place: int) -> tuple[_Alternatives, int]:
    alternatives: _Alternatives = [[]]
    while place < len(pieces) and pieces[place] != ")":
        piece = pieces[place]
        place += 1
        if piece == "|":
            alternatives.append([])
        elif piece in {"(?:", "("}:
            inner, place = _parse_alternatives(pieces, place)
            alternatives[-1].append(_Part("", inner))
            place += 1
        elif piece == "?":
            alternatives[-1][-1] = alternatives[-1][-1]._replace(least=0)
        elif piece.startswith("{"):
            least, _, most = piece[1:-1].partition(",")
            alternatives[-1][-1] = alternatives[-1][-1]._replace(least=int(least), most=int(most or least))
        else:
            alternatives[-1].append(_Part(_read_class(piece), []))
    return alternatives, place


def _read_class(piece: str) -> str:
    r"""Return the digits of a digit, a class such as `[2-46]`, or `\d`."""
    if piece == r"\d":
        return _DIGITS
    spans = re.findall(r"([0-9])-([0-9])|([0-9])", piece)
    return "".join(single or _DIGITS[int(low) : int(high) + 1] for low, high, single in spans)


def _expand(alternatives: _Alternatives) -> Iterator[str]:
    """Yield the prefixes of any of the alternatives."""
    for parts in alternatives:
        for prefix, _ in _expand_sequence(parts):
            yield prefix[:MAX_PREFIX_DIGITS]


def _expand_sequence(parts: Sequence[_Part]) -> Iterator[tuple[str, bool]]:
    """Yield the prefixes of a sequence, each with whether the sequence was passed to its end."""
    if not parts:
        yield "", True
        return
    first, rest = parts[0], parts[1:]
    if first.least == 0:
        yield from _expand_sequence(rest)
    for head, is_whole in _expand_part(first):
        if not is_whole or len(head) >= MAX_PREFIX_DIGITS:
            yield head, False
            continue
        # Of a part that stands there several times, one is done.
        again = first._replace(least=max(first.least - 1, 0), most=first.most - 1)
        further = [again, *rest] if again.most > 0 else rest
        for tail, passed in _expand_sequence(further):
            yield head + tail, passed


def _expand_part(part: _Part) -> Iterator[tuple[str, bool]]:
    if part.digits == _DIGITS:
        yield "", False
        return
    if part.digits:
        for digit in part.digits:
            yield digit, True
        return
    for alternative in part.alternatives:
        yield from _expand_sequence(alternative)
