"""DB_SSLMODE and DB_SSLROOTCERT: when a connection uses TLS, and which authority it trusts."""

import re
from pathlib import Path

from chalicelib.settings.environment import SettingsError, text

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
BUILT_AUTHORITY = Path(__file__).parent.parent / "database-authority.pem"
"""Where a build puts the file that DB_SSLROOTCERT named on the machine that built it."""
_LOCAL_HOST = re.compile(r"|localhost|[/@].*|127\.\d+\.\d+\.\d+|::1")


def authority_file() -> str:
    """The path of the database's authority: DB_SSLROOTCERT, else the build's file, else "".

    Raises SettingsError for a file without certificates: libpq would only log it, at each connection.
    """
    path = text("DB_SSLROOTCERT")
    if not path:
        return str(BUILT_AUTHORITY) if BUILT_AUTHORITY.exists() else ""
    try:
        fault = "" if b"-----BEGIN CERTIFICATE-----" in Path(path).read_bytes() else "it holds no certificate"
    except OSError as error:
        fault = error.strerror or "it cannot be read"
    if fault:
        raise SettingsError(
            f"DB_SSLROOTCERT is {path!r}: {fault}. Use a PEM file (-----BEGIN CERTIFICATE-----) with the "
            "certificates of the authority that vouches for the database, or leave it unset"
        )
    return path


def with_tls(parameters: dict[str, str]) -> dict[str, str]:
    """Adds sslmode and sslrootcert to libpq's parameters.

    DB_SSLMODE overrides the parameters' sslmode. Without either, a host other than this machine gets
    `verify-full`, or `require` when no authority is known.
    """
    mode = text("DB_SSLMODE")
    if mode and mode not in SSL_MODES:
        raise SettingsError(f"DB_SSLMODE is {mode!r}: use one of {', '.join(SSL_MODES)}")
    mode = mode or parameters.get("sslmode", "")
    if not mode and _is_local(parameters.get("host", "")) and _is_local(parameters.get("hostaddr", "")):
        return parameters
    authority = parameters.get("sslrootcert") or authority_file()
    mode = mode or ("verify-full" if authority else "require")
    return {**parameters, "sslmode": mode, **({"sslrootcert": authority} if authority else {})}


def _is_local(hosts: str) -> bool:
    """Whether all hosts are sockets or loopback addresses."""
    return all(_LOCAL_HOST.fullmatch(host) for host in hosts.split(","))
