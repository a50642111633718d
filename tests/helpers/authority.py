"""A certificate authority of a test, and the certificates of services that it issues."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from inferx.config import ServiceTls
from inferx.rpc import tls


class Authority:
    """A certificate authority of the test."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder / name
        self.folder.mkdir()
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        made = self._build(self.name, self.key, ca=True)
        (self.folder / "ca.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))

    def _build(self, subject: x509.Name, key: Any, *, ca: bool) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(tls.SERVER_NAME)]), False)
            .sign(self.key, hashes.SHA256())
        )

    def issue(self, common_name: str) -> ServiceTls:
        """Files of a certificate with that name."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
        stem = self.folder / common_name.replace(":", "-")
        made = self._build(subject, key, ca=False)
        stem.with_suffix(".pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        stem.with_suffix(".key").write_bytes(private)
        ca = str(self.folder / "ca.pem")
        return ServiceTls(ca, str(stem.with_suffix(".pem")), str(stem.with_suffix(".key")))
