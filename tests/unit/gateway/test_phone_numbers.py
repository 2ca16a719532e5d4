"""Each phone number has one normal form, and the name of a sender is not changed."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import phone_numbers
from gateway.phone_numbers import list_spellings, normalise_address


@pytest.mark.parametrize(
    ("spelled", "normal"),
    [
        ("+49 157 5298-2212", "+4915752982212"),
        ("(0157) 5298/2212", "015752982212"),
        (" INFO Line ", "INFO Line"),
        ("Bank 24", "Bank 24"),
        ("+49 (0)157 5298 2212", "+4915752982212"),
        ("+49(0)15752982212", "+4915752982212"),
        ("+49 0157 52982212", "+4915752982212"),
        ("0049 (0)157 52982212", "+4915752982212"),
        ("004915752982212", "+4915752982212"),
        ("4915752982212", "+4915752982212"),
        ("447700900123", "+447700900123"),
        # They name no country: a national number, a short code, and a number of no length that its country has.
        ("07700900123", "07700900123"),
        ("72020", "72020"),
        ("2125551234", "2125551234"),
        ("000", "000"),
        ("+44 (0)20 7946 0958", "+442079460958"),
        # A number of an unassigned range cannot be interpreted.
        ("+1 (0)212 555 0100", "+12125550100"),
        # Countries whose numbers begin with zero.
        ("+39 06 698 82000", "+390669882000"),
        ("+39 (0)6 698 82000", "+390669882000"),
        ("+225 01 02 03 04 05", "+2250102030405"),
        # As copied from a contact, or written in another script.
        ("\u202a+49\u00a0157\u20115298\u20132212\u202c", "+4915752982212"),
        ("\uff0b\uff14\uff19 157 52982212", "+4915752982212"),
        ("\u0660\u0661\u0665\u0667 52982212", "015752982212"),
        ("\u0660\u0661\u0665\u0667", "0157"),
    ],
)
def test_a_phone_number_has_one_normal_form_and_a_name_is_not_changed(spelled: str, normal: str) -> None:
    assert normalise_address(spelled) == normal
    assert normalise_address(normal) == normal


@given(st.text(st.sampled_from("0123456789+()-./ \u00a0\u2011a\u0661"), max_size=24))
def test_a_normal_form_is_not_changed(address: str) -> None:
    normal = normalise_address(address)
    assert normalise_address(normal) == normal


@given(st.from_regex(r"\+(49|44|33|43|1)[1-9][0-9]{6,9}", fullmatch=True), st.data())
def test_separators_do_not_change_the_number(number: str, data: st.DataObject) -> None:
    cut = data.draw(st.integers(3, len(number)))
    mark = data.draw(st.sampled_from([" ", "-", "/", ".", " (", ") ", "\u2013", "\u200e"]))
    rest = number[cut:]
    if rest.startswith("0") or number[1:cut] == "1" * (cut - 1):  # it would look like a trunk zero
        return
    assert normalise_address(f"{number[:cut]}{mark}{rest}") == number


def test_only_short_addresses_are_cached() -> None:
    cached = phone_numbers._normalise_cached.cache_info().currsize
    assert normalise_address("x " * 100_000) == ("x " * 100_000).strip()
    assert normalise_address("1 " * 100_000) == "1" * 100_000
    assert phone_numbers._normalise_cached.cache_info().currsize == cached


def test_the_forms_of_a_number_are_those_in_which_it_may_be_stored() -> None:
    expected = ("4915752982212", "49015752982212")
    for number in ("+4915752982212", "+49 (0)157 52982212", "0049 157 52982212", "+49 157-5298 2212"):
        assert set(list_spellings(number)) == set(expected), number
    assert list_spellings("0157 52982212") == ("015752982212",)
    assert list_spellings("\u0660\u0661\u0665\u0667 52982212") == ("015752982212",)
    assert not any(re.search(r"\d", each) for each in list_spellings("INFO"))
