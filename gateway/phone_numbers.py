"""Normal spelling of phone numbers, so that messages to one person are counted and erased together.

An international number begins with `+`, also if it was written with `00`, or without either: `004915752982212` and the
JSON number 4915752982212 are `+4915752982212`. A number that names no country, such as `0157 …`, stays national.
"""

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from phonenumbers import PhoneNumber

# Separators of digits: spaces, dashes, brackets, and invisible marks of text direction, which are copied along with a
# number from a contact.
_PUNCTUATION: Final = re.compile(
    r"[\s().\-/\u00ad\u2010-\u2015\u2212\uff08\uff09\uff0d\u200b-\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]+"
)
_INVISIBLE: Final = re.compile(r"[\u00ad\u200b-\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]+")
_NUMBER: Final = re.compile(r"\+?[0-9]+")
# A country code, a separator and a zero: `+49 (0)157`, `0049 0157`.
_TRUNK_ZERO: Final = re.compile(r"(?P<prefix>\+|00)\s*(?P<code>[1-9][0-9]{0,2})[^0-9]+0")
_OPTIONAL_ZERO: Final = "(0)"
# No country code begins with zero.
_INTERNATIONAL: Final = re.compile(r"(\+|00)[1-9][0-9]*")
# Digits. Short codes, which belong to one country and do not name it, have three to eight.
_LONGEST_SHORT_CODE: Final = 8

# The reports of one message repeat its number. The cache saves about 2 µs per report.
_CACHED_NUMBERS: Final = 16_384
# Characters. With the number of entries, it bounds the cache at about 8 MiB.
_LONGEST_CACHED_NUMBER: Final = 64


def normalise_address(address: str) -> str:
    """Return a phone number in its normal spelling; a sender's name is returned unchanged.

    `+49 (0)157 5298-2212` becomes `+4915752982212`.
    """
    if address.startswith("+") and address.isascii() and address[1:].isdecimal():
        return address
    return _normalise_cached(address) if len(address) <= _LONGEST_CACHED_NUMBER else _normalise_uncached(address)


def list_spellings(number: str) -> tuple[str, ...]:
    """Return the digits under which a number can be stored, without `+` or `00`: its normal spelling first.

    The others are the number as given, and with a trunk zero, because a program may have dropped the brackets.
    """
    normal = normalise_address(number)
    found = [normal, _to_ascii_digits(number)]
    international = _parse_international(normal)
    if international is not None:
        code, national = _split_country_code(international)
        found += [f"{code}{national}", f"{code}0{national}"]
    return tuple(dict.fromkeys(re.sub(r"[^0-9]", "", each).removeprefix("00") for each in found))


class NationalForm(NamedTuple):
    """National spelling of an international number.

    Args:
        digits: Digits with the trunk prefix, if the country has one: `0157…`.
        own_pattern: Regular expression of the spellings of the international number as an address.
        any_country_pattern: Regular expression of all international numbers, of any country, with this national
            spelling.
    """

    digits: str
    own_pattern: str
    any_country_pattern: str


def national_form(number: str) -> NationalForm | None:
    """Return the national spelling of an international number; None for any other number."""
    international = _parse_international(normalise_address(number))
    if international is None:
        return None
    from phonenumbers import PhoneNumberFormat, format_number, is_possible_number  # noqa: PLC0415 - as below

    if not is_possible_number(international):
        return None
    code, national = _split_country_code(international)
    written = re.sub(r"[^0-9]", "", format_number(international, PhoneNumberFormat.NATIONAL))
    spelled = r"^(?:\+|00){}0?{}$"
    return NationalForm(written, spelled.format(code, national), spelled.format("[1-9][0-9]{0,2}", national))


def _normalise_uncached(address: str) -> str:
    spelled = _to_ascii_digits(address.strip())
    bare = _PUNCTUATION.sub("", spelled)
    if not _NUMBER.fullmatch(bare):
        return address.strip()
    trunk_zero = _TRUNK_ZERO.match(_INVISIBLE.sub("", spelled))
    if trunk_zero:
        bare = _without_trunk_zero(bare, trunk_zero)
    return f"+{_strip_international_prefix(bare)}" if _is_international(bare) else bare


_normalise_cached: Final = lru_cache(_CACHED_NUMBERS)(_normalise_uncached)


def _is_international(number: str) -> bool:
    """Return whether digits name a country, with or without `+` or `00`."""
    if number.startswith(("+", "00")):
        return _INTERNATIONAL.fullmatch(number) is not None
    if number.startswith("0") or len(number) <= _LONGEST_SHORT_CODE:
        return False
    parsed = _parse_number(number)
    if parsed is None:
        return False
    from phonenumbers import ValidationResult, is_possible_number_with_reason  # noqa: PLC0415 - as below

    return bool(is_possible_number_with_reason(parsed) == ValidationResult.IS_POSSIBLE)


def _strip_international_prefix(number: str) -> str:
    return re.sub(r"^(\+|00)", "", number)


def _to_ascii_digits(text: str) -> str:
    """Return a text with ASCII digits and an ASCII plus in place of those of other scripts."""
    if text.isascii():
        return text
    return "".join(str(int(each)) if each.isdecimal() else each for each in text.replace("\uff0b", "+"))


def _without_trunk_zero(bare: str, spelled: re.Match[str]) -> str:
    """Return an international number without the trunk zero, which is only dialled within a country.

    Some countries keep it (Italy: `+39 06`); `phonenumbers` has the rules. If it has no rule for the number, brackets
    around the zero mean that the zero is optional.
    """
    prefix, code = spelled["prefix"], spelled["code"]
    head = prefix + code
    shortened = head + bare[len(head) + 1 :]
    with_zero, without = _parse_number(bare.removeprefix(prefix)), _parse_number(shortened.removeprefix(prefix))
    if with_zero is not None and with_zero == without:
        return shortened
    from phonenumbers import is_valid_number  # noqa: PLC0415 - a quarter of a second, once

    is_kept = with_zero is not None and is_valid_number(with_zero)
    is_optional = _OPTIONAL_ZERO in spelled.string[: spelled.end() + 1]
    if is_optional and not (is_kept and not (without is not None and is_valid_number(without))):
        return shortened
    return bare


def _parse_international(normal: str) -> "PhoneNumber | None":
    """Return a number that names its country with `+` or `00`; None for any other."""
    digits = _strip_international_prefix(normal)
    return None if digits == normal else _parse_number(digits)


def _split_country_code(number: "PhoneNumber") -> tuple[str, str]:
    """Return the country code and the digits after it."""
    from phonenumbers import national_significant_number  # noqa: PLC0415 - as below

    return str(number.country_code), national_significant_number(number)


def _parse_number(digits: str) -> "PhoneNumber | None":
    """Return the number with those digits, the country code first."""
    from phonenumbers import NumberParseException, parse  # noqa: PLC0415 - a quarter of a second, once

    try:
        return parse(f"+{digits}")
    except NumberParseException:
        return None
