"""Certificate of the public address, and whose certificates it takes of clients (mTLS).

Read at the start, and again at each reload, since certificates are renewed.
"""

from __future__ import annotations

import ssl

from headway.gateway.settings import Settings

_OLDEST = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_ASKS = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


class Certificate:
    """The files that the settings named at the start, as one context for handshakes.

    Attributes:
        context: None for plain HTTP; another one after each `renew`.
    """

    def __init__(self, settings: Settings) -> None:
        """Raises ValueError, one sentence, if the files cannot be used."""
        self._settings = settings
        self.context = tls_context(settings)

    def renew(self) -> None:
        """Read the files again, for handshakes from now on. Raises ValueError, and those in use stay."""
        self.context = tls_context(self._settings)


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """The certificate of the public address, None for plain HTTP. Raises ValueError, one sentence."""
    certificate, key, chosen = settings.tls_certificate, settings.tls_key, settings.tls
    if certificate is None or key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)  # which trusts no authority yet
    context.minimum_version = _OLDEST[chosen.minimum]
    context.options |= ssl.OP_NO_RENEGOTIATION
    try:
        context.load_cert_chain(certificate, key, password="")  # never ask on the terminal
    except OSError as error:
        files = f"tls_certificate {certificate!r} and tls_key {key!r}"
        fix = "name two PEM files that match, the key without a passphrase"
        raise ValueError(f"{files} cannot be used: {error.strerror or error}; {fix}") from None
    if chosen.ciphers is not None:
        try:
            context.set_ciphers(chosen.ciphers)
        except ssl.SSLError:
            message = f"tls.ciphers names no cipher suite that this machine's OpenSSL has: {chosen.ciphers!r}"
            raise ValueError(f"{message}; `openssl ciphers` lists them") from None
    if chosen.client_authorities is not None:
        try:
            context.load_verify_locations(chosen.client_authorities)
        except OSError as error:
            where = f"tls.client_authorities {chosen.client_authorities!r}"
            raise ValueError(f"{where} cannot be used: {error.strerror or error}; name a PEM file") from None
        context.verify_mode = _ASKS[chosen.client_certificates]
    return context
