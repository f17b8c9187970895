"""Hosts by their own words. Bars: G11, E21."""

import pytest

from mlimg.runtime.hosts import is_loopback, serves_metadata


@pytest.mark.parametrize(
    "netloc",
    ["localhost", "LocalHost:5000", "127.0.0.1:5000", "127.9.9.9", "127.1", "[::1]:5000", "[::ffff:127.0.0.1]:80"],
)
def test_this_machine_is_known_under_every_spelling(netloc: str) -> None:
    assert is_loopback(netloc)


@pytest.mark.parametrize(
    "netloc",
    ["127.evil.example", "localhost.evil.example", "10.0.0.1", "128.0.0.1", "[::2]", "[::1", "", "a.example"],
)
def test_others_are_not_this_machine(netloc: str) -> None:
    assert not is_loopback(netloc)


@pytest.mark.parametrize(
    "netloc",
    ["169.254.169.254:80", "2852039166", "0xa9fea9fe", "[::ffff:169.254.169.254]", "[fe80::1]", "[fd00:ec2::254]:80",
     "metadata.google.internal"],
)  # fmt: skip
def test_metadata_services_are_known_under_every_spelling(netloc: str) -> None:
    assert serves_metadata(netloc)


@pytest.mark.parametrize("netloc", ["169.253.169.254", "example.com", "metadata.example.com", "[fd00:ec2::253]", ""])
def test_others_serve_no_metadata(netloc: str) -> None:
    assert not serves_metadata(netloc)
