"""Whether a device reaches its SuperLink: address, TLS, certificates, and clocks that agree."""

import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

from cryptography import x509

from persephonee.fl_app.deployment.addresses import split_address
from persephonee.fl_app.deployment.certificates import is_root, names_of
from persephonee.fl_app.deployment.findings import Finding, ok, warning, wrong

TIMEOUT_S = 10.0
# Flower refuses what a SuperNode signed more than 5 s in the SuperLink's future, or 305 s in its past; one second less
# since the SuperLink's answer tells its time in whole seconds.
MAX_AHEAD_S, MAX_BEHIND_S = 4.0, 300.0
SOON = timedelta(days=30)
_NTP = "let the device follow a time server: sudo timedatectl set-ntp true"
_EXPIRED, _NOT_YET, _WRONG_NAME, _WRONG_ADDRESS = 10, 9, 62, 64


@dataclass(frozen=True)
class _Seen:
    """What a server shows to anybody."""

    certificate: x509.Certificate
    ahead_s: float | None
    """How far this device's clock is ahead of the server's; None where the server tells no time."""


def check_link(superlink: str, root_certificate: Path, now: Callable[[], float] = time.time) -> list[Finding]:
    """Look at the way to a SuperLink.

    Args:
        superlink: host:port.
        root_certificate: the authority that the device trusts.
        now: seconds since 1970 by the device's clock.

    Raises:
        AppError: the address is none.
        OSError: the root certificate cannot be read.
    """
    host, port = split_address(superlink)
    try:
        authority = x509.load_pem_x509_certificate(root_certificate.read_bytes())
        if not is_root(authority):
            raise ValueError("of no authority")
    except ValueError:
        remedy = "copy ca.crt from the server's folder again"
        return [wrong("root certificate", f"{root_certificate} is no certificate", remedy)]
    root = [_check_root(authority, datetime.fromtimestamp(now(), UTC))]
    try:
        with socket.create_connection((host, port), TIMEOUT_S):
            pass
    except OSError as error:
        return [*root, _not_reached(superlink, error)]
    reached = ok("reachability", f"{superlink} answers")
    try:
        seen = _look(host, port, now)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        remedy = "start the SuperLink with its certificates, as the unit of `persephonee server init` does"
        return [*root, reached, wrong("TLS", f"{superlink} does not speak it ({reason})", remedy)]
    return [*root, reached, _check_certificate(host, port, root_certificate, seen), _check_clock(seen)]


def _check_root(certificate: x509.Certificate, now: datetime) -> Finding:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begin:
        return wrong("clock", f"{now:%Y-%m-%d}, before the root certificate was made ({begin:%Y-%m-%d})", _NTP)
    if now > end:
        remedy = (
            "`persephonee server init` anew, its ca.crt into each device's folder; or set the clock, if it is wrong"
        )
        return wrong("root certificate", f"ended on {end:%Y-%m-%d}", remedy)
    if now > end - SOON:
        remedy = "before that: `persephonee server init` into a new folder, its ca.crt into each device's folder"
        return warning("root certificate", f"ends on {end:%Y-%m-%d}", remedy)
    return ok("root certificate", f"valid until {end:%Y-%m-%d}")


def _not_reached(superlink: str, error: OSError) -> Finding:
    if isinstance(error, socket.gaierror):
        return wrong("reachability", f"no address is known for {superlink}", "look at the name, the DNS and the VPN")
    if isinstance(error, ConnectionRefusedError):
        return wrong("reachability", f"nothing listens on {superlink}", "start the SuperLink, or look at the port")
    text = f"{superlink}: {error.strerror or 'no answer'}"
    return wrong("reachability", text, "look at network, VPN and firewall between the device and the server")


def _look(host: str, port: int, now: Callable[[], float]) -> _Seen:
    """Ask the server for certificate and time without trusting it: nothing is sent but a question for its health."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with _connected(host, port, context) as connection:
        certificate = x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"")
        name = f"[{host}]" if ":" in host else host
        connection.sendall(f"GET /health HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
        answer = connection.recv(4096).decode("latin-1")
        ours = now()
    dates = [line.partition(":")[2] for line in answer.splitlines() if line.lower().startswith("date:")]
    # half a second: where in the second that the server tells it really is
    ahead = ours - (parsedate_to_datetime(dates[0].strip()).timestamp() + 0.5) if dates else None
    return _Seen(certificate, ahead)


def _check_certificate(host: str, port: int, root: Path, seen: _Seen) -> Finding:
    names = ", ".join(names_of(seen.certificate)) or "nothing"
    end = seen.certificate.not_valid_after_utc
    try:
        with _connected(host, port, ssl.create_default_context(cafile=str(root))):
            pass
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in (_WRONG_NAME, _WRONG_ADDRESS):
            remedy = f"enrol with one of these, or run `persephonee server init` with --host {host}"
            return wrong("certificate", f"is for {names}, not for {host}", remedy)
        if error.verify_code == _EXPIRED:
            return wrong(
                "certificate",
                f"ended on {end:%Y-%m-%d}",
                "renew the certificates with `persephonee server init`; or set the clock",
            )
        if error.verify_code == _NOT_YET:
            return wrong("certificate", "is not valid yet by this device's clock", _NTP)
        remedy = "copy ca.crt from this server's folder and enrol again; else somebody answers in its place"
        return wrong("certificate", f"is not from the authority of {root.name} ({error.verify_message})", remedy)
    except OSError as error:
        return wrong("certificate", f"the connection broke ({error})", "look at the SuperLink's log")
    text = f"for {names}, valid until {end:%Y-%m-%d}"
    if datetime.now(UTC) > end - SOON:
        return warning(
            "certificate",
            text,
            "before that: `persephonee server init` into a new folder, its ca.crt into each device's",
        )
    return ok("certificate", text)


def _check_clock(seen: _Seen) -> Finding:
    if seen.ahead_s is None:
        return warning("clock", "the server tells no time", "see that both clocks follow a time server")
    side = "ahead of" if seen.ahead_s > 0 else "behind"
    text = f"{abs(seen.ahead_s):.0f} s {side} the server's"
    if not -MAX_BEHIND_S < seen.ahead_s < MAX_AHEAD_S:
        return wrong("clock", f"{text}, which refuses what such a clock signs", f"{_NTP}; likewise the server")
    return ok("clock", text)


def _connected(host: str, port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    plain = socket.create_connection((host, port), TIMEOUT_S)
    try:
        return context.wrap_socket(plain, server_hostname=host)
    except BaseException:
        plain.close()
        raise
