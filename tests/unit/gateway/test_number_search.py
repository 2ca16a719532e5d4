"""A phone number is found however its digits are written, and no other number is."""

import gzip
import json
import unicodedata
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.number_search import NumberSearch
from gateway.phone_numbers import national_form

NUMBER = "+4915752982212"
SEARCH = NumberSearch((NUMBER,))
ZEROS = [ord(zero) for zero in "0\uff10\u0660\u06f0\u0966\U0001d7ce"]
"""Zeros of ASCII, full-width, Arabic, Persian, Devanagari and mathematical digits."""
SEPARATORS = ["", " ", "-", ") - ", "\u00a0", " / ", "\u2011", "\ufe0f\u20e3", ") ("]
SPELLINGS = {
    "json escapes": r'{"sms_id":1,"to":"\u002b\u0034\u00391575\u00a0298-2212"}',
    "json in json": json.dumps({"x": json.dumps({"y": "\uff14\uff1915752982212"})}),
    "surrogate pairs": r"\ud835\udfd2\ud835\udfd715752982212",
    "a form": "from=%2B49%20157%205298%202212&text=hello",
    "escaped digits of a URL": "https://x.example/%34%39%31%35752982212",
    "html": "<to>&#43;&#52;&#57; 1575&nbsp;2982212</to>",
    "a trunk zero": "+49 (0)157 5298 2212",
    "dialled from elsewhere": "0114915752982212",
    "keycaps": "".join(f"{digit}\ufe0f\u20e3" for digit in "4915752982212"),
}


@pytest.mark.parametrize("text", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_a_number_is_found_in_each_notation(text: str) -> None:
    assert SEARCH.is_in(text)
    assert SEARCH.is_in_body(text.encode())


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "utf-8-sig"])
def test_a_number_is_found_in_a_body_of_any_charset_that_nothing_can_parse(codec: str) -> None:
    for text in ("no json: +49 (157) - 5298 2212", '{"sendto": "+4915752982212"'):
        assert SEARCH.is_in_body(text.encode(codec))
        assert not SEARCH.is_in_body(text.replace("2212", "2213").encode(codec))


def test_full_width_digits_are_found_in_a_declared_charset_and_in_a_compressed_body_that_was_cut() -> None:
    wide = "".join(chr(0xFF10 + int(digit)) for digit in NUMBER[1:])
    for codec in ("gb18030", "shift_jis", "big5", "utf-16-le"):
        assert SEARCH.is_in_body(wide.encode(codec), b"text/plain; charset=" + codec.encode())
    compressed = gzip.compress(f"{wide} and more".encode())
    assert SEARCH.is_in_body(compressed)
    assert SEARCH.is_in_body(compressed[:-6])


@given(
    st.lists(st.tuples(st.sampled_from(ZEROS), st.sampled_from(SEPARATORS)), min_size=13, max_size=13),
    st.sampled_from(["", "+", "00", "011", "tel: ", "\u202a+"]),
    st.sampled_from([str, lambda text: json.dumps(text)[1:-1], quote]),
    st.sampled_from(["{}", '"{}"', "call {}!", "{{{}", "=?{}&"]),
    st.integers(1, 9),
)
def test_whatever_its_digits_and_separators_are_it_is_found_and_its_neighbour_is_not(
    parts: list[tuple[int, str]], prefix: str, escape: object, around: str, other: int
) -> None:
    def written(number: str) -> str:
        digits = (chr(zero + int(digit)) + between for digit, (zero, between) in zip(number, parts, strict=True))
        return around.format(escape(prefix + "".join(digits)))  # type: ignore[operator]

    number = NUMBER[1:]
    assert SEARCH.is_in(written(number))
    neighbour = number[:-1] + str((int(number[-1]) + other) % 10)
    assert not SEARCH.is_in(written(neighbour))


def test_every_digit_of_unicode_is_one() -> None:
    nines = [chr(code) for code in range(0x110000) if unicodedata.decimal(chr(code), None) == 9]
    assert len(nines) > 50
    assert all(SEARCH.is_in(f"+4{nine}15752982212") for nine in nines)


def test_the_national_form_has_the_trunk_prefix_of_its_country() -> None:
    forms = {number: national_form(number) for number in (NUMBER, "+12125551234", "+4741234567", "015752982212", "+49")}
    assert {number: form and form.digits for number, form in forms.items()} == {
        NUMBER: "015752982212",
        "+12125551234": "2125551234",
        "+4741234567": "41234567",
        "015752982212": None,
        "+49": None,
    }


def test_short_numbers_are_no_ids() -> None:
    assert NumberSearch(("12345", "+4915752982212")).ids == (4915752982212, 49015752982212)
