"""Why a row failed, as one word, and whether trying again may help."""

from __future__ import annotations

import re

#: Reasons that another try may cure: the server, the way to it, or our own deadline.
TRANSIENT = frozenset(
    {"server_error", "throttled", "timeout", "connection", "dns", "deadline", "other"}
)

#: Refused for the header of its owner, which forbids the use; what is published counts these.
OPTED_OUT = "opted_out"
#: Reasons that another try does not cure.
PERMANENT = frozenset(
    {
        "bad_url", "credentials", "damaged", "empty", "hash_mismatch", "not_an_image", "not_found",
        OPTED_OUT, "private_address", "redirects", "refused", "tls", "too_large", "too_small",
        "too_thin",
    }
)  # fmt: skip

#: Every word; the empty one stands for success. Arrays of outcomes hold indices into this tuple.
REASONS = ("", *sorted(TRANSIENT | PERMANENT))

#: Marks the messages that our own code hands to img2dataset: the word follows.
OWN = "mlcd:"

_OWN = re.compile(rf"(?:<urlopen error )?{OWN}(\w+)")

# The messages are `str` of whatever Python's http client or OpenSSL raised; first match.
_PATTERNS = [
    (re.compile(pattern, re.IGNORECASE), word)
    for pattern, word in [
        (r"^HTTP Error 3\d\d\b", "redirects"),
        (r"^HTTP Error (404|410)\b", "not_found"),
        (r"^HTTP Error (408|425)\b", "timeout"),
        (r"^HTTP Error 429\b", "throttled"),
        (r"^HTTP Error 4\d\d\b", "refused"),
        (r"^HTTP Error 5\d\d\b", "server_error"),
        (r"X-Robots-Tag", OPTED_OUT),
        (r"unknown url type|InvalidURL|URL can't contain|no host given|nonnumeric port", "bad_url"),
        (r"codec can't encode|label (empty or )?too long", "bad_url"),
        (r"timed out|timeout", "timeout"),
        (r"CERTIFICATE|\bSSL\b|\bTLS\b", "tls"),
        (r"name resolution|Name or service not known|No address associated|getaddrinfo", "dns"),
        (r"IncompleteRead|Remote end closed|Connection|Broken pipe|unreachable", "connection"),
        (r"No route to host|\[Errno (32|101|103|104|110|111|112|113)\]", "connection"),
    ]
]


def classify(message: str) -> str:
    """Return the reason for an error message of img2dataset: a word of :data:`REASONS`."""
    if own := _OWN.match(message):
        return own[1] if own[1] in REASONS else "other"
    for pattern, word in _PATTERNS:
        if pattern.search(message):
            return word
    return "other"


def table(counts: dict[str, int]) -> str:
    """Return counts by reason as one line, the most frequent first."""
    order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{reason} {count}" for reason, count in order)
