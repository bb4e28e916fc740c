"""Numbers as text and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantkit.errors import UsageError
from quantkit.units import GIB, format_bytes, format_gib, format_seconds, parse_bytes

DECIMAL = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (8_660_000_000, "8.66 GB"),
        (36_640_000_000, "36.64 GB"),
        (137_950_000_000, "137.95 GB"),
        (1_500_000_000_000, "1.50 TB"),
        (-2_000_000, "-2.00 MB"),
    ],
)
def test_bytes_are_written_in_decimal_units(count, expected):
    assert format_bytes(count) == expected


def test_memory_is_written_in_binary_units():
    assert format_gib(8.06 * GIB) == "8.06 GiB"
    assert format_gib(GIB // 2) == "0.50 GiB"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0.0 s"),
        (4.21, "4.2 s"),
        (10, "10 s"),
        (42.4, "42 s"),
        (59.6, "1 min 00 s"),
        (450, "7 min 30 s"),
        (3599.7, "1 h 00 min"),
        (11_100, "3 h 05 min"),
    ],
)
def test_seconds_are_written_as_a_person_says_them(seconds, expected):
    assert format_seconds(seconds) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5GB", 5 * 10**9),
        ("5gb", 5 * 10**9),
        ("4.5 GiB", 4.5 * 2**30),
        ("800M", 800 * 10**6),
        ("800mib", 800 * 2**20),
        ("12", 12),
        ("12B", 12),
        (" 2 TB ", 2 * 10**12),
        ("1k", 1000),
        ("1Ki", 1024),
    ],
)
def test_sizes_that_people_write_are_read(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "five", "-5GB", "5 GB left", "5PB", "5,5GB", "1e9", "5 G B"])
def test_what_is_not_a_size_is_refused_by_name(text):
    with pytest.raises(UsageError) as caught:
        parse_bytes(text)
    assert str(caught.value) == f"not a size: {text!r}"
    assert caught.value.hint == "write a number and a unit, such as 5GB or 4.5GiB"


@pytest.mark.parametrize("text", ["5iB", "5i"])
def test_half_a_unit_is_refused(text):
    with pytest.raises(UsageError):
        parse_bytes(text)


@given(st.integers(0, 10**15))
def test_a_plain_number_is_read_as_it_is_written(count):
    assert parse_bytes(str(count)) == parse_bytes(f"{count}B") == count


@given(st.integers(0, 10**5), st.sampled_from(sorted(DECIMAL)), st.sampled_from(["", "B", "b"]))
def test_decimal_units_multiply_by_powers_of_a_thousand(number, unit, byte):
    assert parse_bytes(f"{number}{unit}{byte}") == number * DECIMAL[unit]


@given(st.integers(0, 10**5), st.sampled_from(sorted(BINARY)), st.sampled_from(["", "B", "b"]))
def test_binary_units_multiply_by_powers_of_1024(number, unit, byte):
    assert parse_bytes(f"{number} {unit}{byte}") == number * BINARY[unit]


@given(st.integers(0, 9 * 10**14))
def test_a_formatted_size_reads_back_to_three_digits(count):
    assert abs(parse_bytes(format_bytes(count)) - count) <= max(1, 0.005 * count)


@given(st.integers(0, 2**50))
def test_a_formatted_memory_size_reads_back_to_a_hundredth(count):
    assert abs(parse_bytes(format_gib(count)) - count) <= 0.00501 * GIB + 1
