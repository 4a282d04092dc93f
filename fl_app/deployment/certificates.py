"""A certificate authority of one's own, and the certificate of a SuperLink that it signs.

The keys are ECDSA on P-256. The extensions are those that strict verification asks for (RFC 5280, and Python 3.13's
default context): key usages, and the identifiers of subject and authority.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from persephonee.fl_app.errors import AppError

_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DNS_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
# a device whose clock is a little behind must not think that the certificate is of tomorrow
_BEFORE_NOW = timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class ServerCertificates:
    """What a SuperLink needs for TLS, each in PEM."""

    ca_key: bytes
    ca_certificate: bytes
    server_key: bytes
    server_certificate: bytes


def make_certificates(hosts: Sequence[str], days: int) -> ServerCertificates:
    """Make an authority and a server certificate for all `hosts`.

    Args:
        hosts: DNS names and IP addresses under which clients reach the server.
        days: how long both are valid, 1 to 7300.

    Raises:
        AppError: a host is neither a name nor an address, or the days are out of range.
    """
    if not 1 <= days <= 7300:
        raise AppError(f"--days {days} is out of range: give 1 to 7300.")
    names = x509.SubjectAlternativeName([_general_name(host) for host in dict.fromkeys(hosts)])
    ca_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "persephonee federation")])
    ca = (
        _begun(authority, authority, ca_key.public_key(), ca_key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage("key_cert_sign", "crl_sign"), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    # a common name has at most 64 letters; nobody looks at it where there are alternative names
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
    server = (
        _begun(subject, authority, server_key.public_key(), ca_key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage("digital_signature"), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(names, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return ServerCertificates(
        ca_key=_private_pem(ca_key),
        ca_certificate=ca.public_bytes(pem),
        server_key=_private_pem(server_key),
        server_certificate=server.public_bytes(pem),
    )


def names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """Return the DNS names and IP addresses that a certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    found = [*names.get_values_for_type(x509.DNSName), *names.get_values_for_type(x509.IPAddress)]
    return tuple(str(name) for name in found)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if len(host) > 253 or not _DNS_NAME.fullmatch(host) or host.replace(".", "").isdigit():
        raise AppError(f"--host {host!r} is neither a DNS name nor an IP address; give one such as fl.example.org.")
    return x509.DNSName(host)


def _begun(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    days: int,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BEFORE_NOW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _key_usage(*allowed: str) -> x509.KeyUsage:
    uses = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{use: use in allowed for use in uses})


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def is_root(certificate: x509.Certificate) -> bool:
    """Return whether a certificate is of an authority and signed by itself, so that no bit of it has changed."""
    try:
        certificate.verify_directly_issued_by(certificate)
        return bool(certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound):
        return False
