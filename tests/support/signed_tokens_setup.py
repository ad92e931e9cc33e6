"""Keys of an issuer, made for the tests, and JSON Web Tokens that it signs."""

from __future__ import annotations

import time
from typing import Any

import pytest

jwt = pytest.importorskip("jwt", reason="tokens need the extra: pip install headway[jwt]")
pytest.importorskip("cryptography", reason="tokens need the extra: pip install headway[jwt]")

from cryptography.hazmat.primitives.asymmetric import ec, rsa  # noqa: E402
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: E402

SHORT_RSA_KEY = rsa.generate_private_key(65_537, 1_024)
RSA_KEY = rsa.generate_private_key(65_537, 2_048)
EC_KEY, OTHER_EC_KEY = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
RSA_PEM = RSA_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
ISSUER, AUDIENCE = "https://login.example.com/", "headway"


def public(key: Any, **fields: object) -> dict[str, object]:
    algorithm = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), **fields}


SET = {"keys": [public(RSA_KEY, kid="r", use="sig", alg="RS256"), public(EC_KEY, kid="e")]}


def token(
    key: Any = EC_KEY, algorithm: str = "ES256", kid: object = "e", head: object = None, **claims: object
) -> bytes:
    now = int(time.time())
    content = {"iss": ISSUER, "aud": AUDIENCE, "exp": now + 86_400, "sub": "team-a", **claims}
    content = {name: value for name, value in content.items() if value is not None}
    headers = {"kid": kid} if kid is not None else {}
    return str(jwt.encode(content, key, algorithm, {**headers, **(head or {})})).encode()  # type: ignore[dict-item]
