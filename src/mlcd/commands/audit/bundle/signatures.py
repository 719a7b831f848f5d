"""Signatures of a run: its statement (DSSE), and each export (model-signing), by one key.

A key is one of an elliptic curve, in PEM without a password: openssl ecparam -name prime256v1
-genkey -noout -out key.pem; openssl ec -in key.pem -pubout -out public.pem
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mlcd.commands.audit import lock as locks
from mlcd.commands.audit.bundle.run import Run
from mlcd.commands.audit.bundle.times import SIGNATURES
from mlcd.commands.audit.nodes import Finding
from mlcd.utils.errors import UserError
from mlcd.utils.files import read_json, sha256_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import (
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )

STATEMENT, ENVELOPE = "statement.json", "statement.dsse.json"
_TYPE = "application/vnd.in-toto+json"
#: Those that both libraries know.
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_MAKE = "openssl ecparam -name prime256v1 -genkey -noout"


def check_key(path: Path) -> None:
    """Raise :class:`UserError` if runs cannot be signed here with this private key."""
    try:
        for name in ("in_toto_attestation", "securesystemslib.dsse", "model_signing.signing"):
            importlib.import_module(name)
    except ImportError as error:
        raise _needed(error) from None
    _private(path)


def sign(run: Run, folder: Path, statement: Path) -> list[Path]:
    """Sign `statement` and the exports of the run with its key; return the signatures' paths."""
    from model_signing import signing
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import CryptoSigner

    assert run.key is not None
    place = folder / SIGNATURES
    place.mkdir()
    envelope = Envelope(statement.read_bytes(), _TYPE, {})
    envelope.sign(CryptoSigner(_private(run.key)))
    text = json.dumps(envelope.to_dict(), indent=1, sort_keys=True)
    (place / ENVELOPE).write_text(text + "\n", encoding="utf-8")
    for export in _exports(run.results, run.lock):
        signer = signing.Config().use_elliptic_key_signer(private_key=run.key)
        signer.sign(run.results / "export" / export, place / f"{export}.sig")
    return sorted(place.iterdir())


def check(results: Path, bundle: Path, key: Path) -> Iterator[Finding]:
    """Iterate over the signatures that do not hold; `key`: the signer's public key (PEM).

    Raises :class:`UserError` if the run is not signed, or if it cannot be told.
    """
    try:
        from model_signing import verifying
    except ImportError as error:
        raise _needed(error) from None
    public, place = _public(key), bundle / SIGNATURES
    if not (place / ENVELOPE).is_file():
        raise UserError(f"{place / ENVELOPE}: missing, so this run is not signed; "
                        "its author can run mlcd audit bundle --key")  # fmt: skip
    where = place.relative_to(results)
    if what := _envelope(results, bundle, public):
        yield Finding((where / ENVELOPE).as_posix(), what)
    for export in _exports(results, locks.read(results)):
        name = (where / f"{export}.sig").as_posix()
        if not (results / name).is_file():
            yield Finding(name, "missing")
            continue
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=key)
        try:
            verifier.verify(results / "export" / export, results / name)
        except Exception as error:  # of a signature that may be anything, anything is raised
            yield Finding(name, _one_line(error, f"does not hold for export/{export}"))


def _envelope(results: Path, bundle: Path, public: EllipticCurvePublicKey) -> str:
    """Return what is wrong with the signed statement; '' if it holds for this run."""
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import SSlibKey

    try:
        envelope = Envelope.from_dict(read_json(bundle / SIGNATURES / ENVELOPE))
        envelope.verify([SSlibKey.from_crypto(public)], 1)
        signed = json.loads(envelope.payload)
        byproducts = signed["predicate"]["runDetails"]["byproducts"]
        plain = (bundle / STATEMENT).read_bytes()
        digests = {one["name"]: one["digest"]["sha256"] for one in byproducts}
    except Exception as error:  # as above
        return _one_line(error, "does not hold")
    if envelope.payload != plain:
        return f"is not of {STATEMENT}"
    if digests.get(locks.LOCK.as_posix()) != sha256_file(results / locks.LOCK):
        return "is of another run: it names another lock"
    return ""


def _exports(results: Path, lock: dict[str, object]) -> list[str]:
    """Return the names of the exports that were sealed."""
    files = lock["files"]
    assert isinstance(files, dict)
    return sorted({path.split("/")[1] for path in files
                   if path.startswith("export/") and path.count("/") > 1})  # fmt: skip


def _private(path: Path) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise UserError(f"--key {path}: {error.strerror}") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"--key {path}: no private key in PEM without a password "
                        f"({_first_line(error)}); {_MAKE}") from None  # fmt: skip
    if not isinstance(key, EllipticCurvePrivateKey) or key.curve.name not in _CURVES:
        raise UserError(f"--key {path}: not of the curve P-256, P-384 or P-521; {_MAKE}")
    return key


def _public(path: Path) -> EllipticCurvePublicKey:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise UserError(f"--public-key {path}: {error.strerror}") from None
    except (ValueError, TypeError):
        raise UserError(f"--public-key {path}: no public key in PEM") from None
    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        raise UserError(f"--public-key {path}: not of the curve P-256, P-384 or P-521")
    return key


def _needed(error: ImportError) -> UserError:
    return UserError(f"signatures need packages ({error.name}); pip install 'mlcd[audit]'")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _one_line(error: Exception, what: str) -> str:
    said = " ".join(str(error).split())[:120]
    return f"{what} ({said or type(error).__name__})"
