"""Sizes in bytes: every accepted spelling, one line for the others, and how they are written."""

from __future__ import annotations

import pytest

from mlcd.utils.errors import UserError
from mlcd.utils.units import binary_size, decimal_size, parse_size, whole_mebibytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1GiB", 2**30), ("1gib", 2**30), ("8Gi", 2**33), ("500MB", 500_000_000), ("8G", 8 * 10**9),
        ("1.5 gb", 1_500_000_000), ("2K", 2000), ("1000000", 10**6), (" 3 TiB ", 3 * 2**40),
        ("12B", 12),
    ],
)  # fmt: skip
def test_accepted_spellings(text, expected):
    assert parse_size(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "0", "0GB", "-1", "1,5GB", "5 MB more", "8Gbit", "MB", "1e9", "many", "1..5G", "5iB"],
)
def test_anything_else_gets_one_line(text):
    with pytest.raises(UserError) as caught:
        parse_size(text, "--limit")
    message = str(caught.value)
    assert message.startswith("--limit: ") and repr(text) in message and "\n" not in message


def test_sizes_as_people_read_them():
    assert [decimal_size(n) for n in (0, 999, 3000, 12_345_678, 1.6e12)] == [
        "0 B", "999 B", "3.0 kB", "12.3 MB", "1.6 TB",
    ]  # fmt: skip
    assert [binary_size(n) for n in (512, 2**20, 1.5 * 2**30)] == ["512 B", "1.0 MiB", "1.5 GiB"]


def test_a_least_size_is_rounded_up_and_can_be_given_back():
    for size in (1, 2**20, 2**20 + 1, 123_456_789):
        assert size <= parse_size(whole_mebibytes(size)) < size + 2**20
