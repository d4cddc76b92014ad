"""An RSA key whose signatures take long to check."""

from __future__ import annotations

import math

from cryptography.hazmat.primitives.asymmetric import rsa


def slow_key() -> rsa.RSAPrivateKey:
    """As long as it takes to sign: the public exponent is as long as the modulus."""
    usual = rsa.generate_private_key(65537, 2048).private_numbers()
    around = (usual.p - 1) * (usual.q - 1)
    e = next(e for e in range(2**2040 + 1, 2**2041, 2) if math.gcd(e, around) == 1)
    d = pow(e, -1, around)
    public = rsa.RSAPublicNumbers(e, usual.p * usual.q)
    numbers = rsa.RSAPrivateNumbers(usual.p, usual.q, d, d % (usual.p - 1), d % (usual.q - 1), usual.iqmp, public)
    return numbers.private_key(unsafe_skip_rsa_key_validation=True)
