"""Certificate of the public address: read at the start, and again at each reload, since certificates are renewed."""

from __future__ import annotations

import ssl

from headway.gateway.settings import Settings


class Certificate:
    """The files that the settings named at the start, as one context for all handshakes.

    Attributes:
        context: None for plain HTTP.
    """

    def __init__(self, settings: Settings) -> None:
        """Raises ValueError, one sentence, if the files cannot be used."""
        self._settings = settings
        self.context = tls_context(settings)

    def renew(self) -> None:
        """Read the files again, for handshakes from now on. Raises ValueError, and the certificate in use stays."""
        if self.context is not None:
            tls_context(self._settings)  # a pair that does not match would leave the context without a key
            _load(self.context, self._settings)


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """The certificate of the public address, None for plain HTTP. Raises ValueError, one sentence."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    _load(context, settings)
    return context


def _load(context: ssl.SSLContext, settings: Settings) -> None:
    certificate, key = settings.tls_certificate, settings.tls_key
    assert certificate is not None, "settings without a certificate have no context"
    try:
        context.load_cert_chain(certificate, key, password="")  # never ask on the terminal
    except OSError as error:
        files = f"tls_certificate {certificate!r} and tls_key {key!r}"
        raise ValueError(f"{files} cannot be used: {error.strerror or error}; name two PEM files that match") from None
