"""Countries and carriers by prefix are those of the library phonenumbers."""

from collections.abc import Iterator

import phonenumbers
import pytest

from warehouse.number_prefixes import MAX_PREFIX_DIGITS, NumberPrefix, list_number_prefixes, list_pattern_prefixes


@pytest.fixture(scope="module")
def known() -> dict[str, NumberPrefix]:
    return {each.prefix: each for each in list_number_prefixes()}


def find(known: dict[str, NumberPrefix], number: str) -> NumberPrefix:
    digits = number.removeprefix("+")
    return next(known[digits[:size]] for size in range(MAX_PREFIX_DIGITS, 0, -1) if digits[:size] in known)


@pytest.mark.parametrize(
    ("number", "country", "network_prefix"),
    [
        ("+77011234567", "KZ", "7701"),
        ("+79161234567", "RU", None),
        ("+14165551234", "CA", None),
        ("+12125551234", "US", None),
        ("+447911123456", "GG", "4479111"),
        ("+447911223456", "GB", "4479112"),
        ("+4915752982212", "DE", "491575"),
        # Of Réunion and Mayotte, which share +262.
        ("+262639012345", "YT", "26263901"),
    ],
)
def test_a_number_has_its_country_and_network(
    known: dict[str, NumberPrefix], number: str, country: str, network_prefix: str | None
) -> None:
    found = find(known, number)
    assert (found.country, found.network_prefix) == (country, network_prefix)
    assert (found.carrier is None) == (network_prefix is None)


def examples() -> Iterator[phonenumbers.PhoneNumber]:
    for region in sorted(phonenumbers.SUPPORTED_REGIONS):
        for kind in phonenumbers.PhoneNumberType.values():
            example = phonenumbers.example_number_for_type(region, kind)
            if example is not None and phonenumbers.is_valid_number(example):
                yield example


def test_every_example_of_the_library_has_the_country_that_the_library_names(known: dict[str, NumberPrefix]) -> None:
    numbers = {phonenumbers.format_number(each, phonenumbers.PhoneNumberFormat.E164): each for each in examples()}
    assert len(numbers) > 800
    for number, example in numbers.items():
        assert find(known, number).country == phonenumbers.region_code_for_number(example), number


@pytest.mark.parametrize(
    ("pattern", "prefixes"),
    [
        (r"7(?:[05]0\d|28)\d{4}", {"700", "750", "728"}),
        (r"33|7", {"33", "7"}),
        (r"(?:1[2-4]){2}\d", {"1212", "1213", "1214", "1312", "1313", "1314", "1412", "1413", "1414"}),
        (r"5?61\d", {"561", "61"}),
        (r"\d{7}", {""}),
        (r"12{1,2}3\d", {"123", "1223"}),
    ],
)
def test_a_pattern_has_its_beginnings(pattern: str, prefixes: set[str]) -> None:
    assert list_pattern_prefixes([pattern]) == prefixes


def test_a_pattern_with_an_unknown_part_is_refused() -> None:
    with pytest.raises(ValueError, match="an unknown part"):
        list_pattern_prefixes([r"1.*"])
    with pytest.raises(ValueError, match="an unmatched bracket"):
        list_pattern_prefixes([r"1)2"])
