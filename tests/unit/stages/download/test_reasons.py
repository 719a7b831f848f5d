"""Reasons of failed downloads."""

from __future__ import annotations

import pytest

from mlcd.stages.download.reasons import OPTED_OUT, PERMANENT, REASONS, TRANSIENT, classify, table


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("HTTP Error 404: Not Found", "not_found"),
        ("HTTP Error 410: Gone", "not_found"),
        ("HTTP Error 403: timed out 500", "refused"),
        ("HTTP Error 429: Too Many Requests", "throttled"),
        ("HTTP Error 503: redirect", "server_error"),
        ("HTTP Error 302: The HTTP server returned a redirect error that would", "redirects"),
        ("<urlopen error timed out>", "timeout"),
        ("The read operation timed out", "timeout"),
        ("<urlopen error mlcd:deadline>", "deadline"),
        ("mlcd:timeout after 60 s in all", "timeout"),
        ("HTTP Error 404: mlcd:", "not_found"),
        ("mlcd:nonsense", "other"),
        ("<urlopen error [Errno 111] Connection refused>", "connection"),
        ("[Errno 104] Connection reset by peer", "connection"),
        ("IncompleteRead(100 bytes read, 4900 more expected)", "connection"),
        ("Remote end closed connection without response", "connection"),
        ("<urlopen error [Errno -2] Name or service not known>", "dns"),
        ("<urlopen error [Errno -3] Temporary failure in name resolution>", "dns"),
        ("<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed>", "tls"),
        ("Use of image disallowed by X-Robots-Tag directive", "opted_out"),
        ("URL can't contain control characters. '/a b'", "bad_url"),
        ("", "other"),
    ],
)
def test_classify(message: str, reason: str) -> None:
    assert classify(message) == reason


def test_reasons_are_either_transient_or_permanent() -> None:
    assert not TRANSIENT & PERMANENT
    assert set(REASONS) == TRANSIENT | PERMANENT | {""}
    assert len(REASONS) < 256
    assert table({"timeout": 2, "not_found": 9, "dns": 2}) == "not_found 9, dns 2, timeout 2"


def test_what_owners_forbid_is_published_under_the_word_that_downloads_record() -> None:
    from mlcd.commands.publish import source

    assert OPTED_OUT in PERMANENT
    assert classify("Use of image disallowed by X-Robots-Tag directive") == OPTED_OUT
    counts = {"success": 3, OPTED_OUT: 2}
    assert source.opt_outs(counts, honored=True, local=False) == {"refused": 2, "honored": 3}
    assert source.opt_outs(counts, honored=False, local=False) == {"refused": 2, "not_honored": 3}
    assert source.opt_outs({"success": 3}, honored=False, local=True) == {"on_disk": 3}
