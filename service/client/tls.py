"""Which certificates are trusted, and what is wrong with one that is not."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from vidlex.service.client.errors import ConfigurationInvalid

CA_FILE_VARIABLE = "VIDLEX_CA_FILE"

Verify = bool | str | os.PathLike[str] | ssl.SSLContext
"""True: VIDLEX_CA_FILE, else SSL_CERT_FILE and SSL_CERT_DIR, else the authorities of the system and of certifi. A path:
only the authorities of that file or folder. False: no certificate is checked."""

# Of X509_V_ERR_*.
_NOT_YET_VALID, _EXPIRED, _WRONG_NAMES = 9, 10, (62, 64)
_ADD_CA = (
    f"if it is of your own authority, name that authority's certificate (PEM) in {CA_FILE_VARIABLE} or SSL_CERT_FILE, "
    "or with verify="
)


def trust_of(verify: Verify, *, is_used: bool) -> ssl.SSLContext:
    """Raises ConfigurationInvalid for a file that cannot be read. Without ``is_used`` no file is read."""
    if isinstance(verify, ssl.SSLContext):
        return verify
    if verify is False or not is_used:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if verify is False:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context
    return _trust_of_environment() if verify is True else _only(Path(verify), "verify")


def _trust_of_environment() -> ssl.SSLContext:
    for variable in (CA_FILE_VARIABLE, "SSL_CERT_FILE", "SSL_CERT_DIR"):  # OpenSSL would ignore one that is missing
        named = os.environ.get(variable, "").strip()
        if named:
            return _only(Path(named), variable)
    import certifi

    context = ssl.create_default_context()
    context.load_verify_locations(cafile=certifi.where())
    return context


def _only(path: Path, what: str) -> ssl.SSLContext:
    try:
        if path.is_dir():
            return ssl.create_default_context(capath=str(path))
        return ssl.create_default_context(cafile=str(path))
    except ssl.SSLError:
        raise ConfigurationInvalid(f"{what}: {path} contains no certificates (PEM)") from None
    except OSError as error:
        raise ConfigurationInvalid(f"{what}: {path}: {error.strerror or error}") from None


def describe_fault(error: ssl.SSLError, url: str) -> str:
    """What is wrong, and how it is repaired."""
    if not isinstance(error, ssl.SSLCertVerificationError):
        reason = (error.reason or str(error)).replace("_", " ").lower()
        hint = ""
        if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"):
            hint = "; the service may speak plain HTTP: try http://"
        return f"no encrypted connection to {url}: {reason}{hint}"
    text = error.verify_message
    if error.verify_code == _EXPIRED:
        remedy = "renew it"
    elif error.verify_code == _NOT_YET_VALID:
        remedy = "compare the clocks of both machines"
    elif error.verify_code in _WRONG_NAMES:
        remedy = "use an address that it names"
    else:
        remedy = _ADD_CA
    return f"the certificate of {url} is not accepted: {text}; {remedy}"
