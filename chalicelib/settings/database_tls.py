"""DB_SSLMODE and DB_SSLROOTCERT: when a connection uses TLS, and which authority it trusts."""

import os
import re
from pathlib import Path
from typing import Any

from chalicelib.settings.environment import SettingsError

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
BUILT_AUTHORITY = Path(__file__).parent.parent / "database-authority.pem"
"""Where a build puts the file that DB_SSLROOTCERT named on the machine that built it."""
_LOCAL_HOST = re.compile(r"|localhost|[/@].*|127\.\d+\.\d+\.\d+|::1")


def authority_file() -> str:
    """The file with the certificates of the database's authority: DB_SSLROOTCERT, else the build's; or none.

    It is looked into, because libpq would complain of it to the log alone, at each connection.
    """
    path = os.environ.get("DB_SSLROOTCERT")
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


def with_tls(parameters: dict[str, Any]) -> dict[str, Any]:
    """With the authority that is known, and DB_SSLMODE, else what the parameters say.

    Else, for any host that is not this machine, `verify-full`, and `require` where no authority is known.
    """
    mode = os.environ.get("DB_SSLMODE")
    if mode and mode not in SSL_MODES:
        raise SettingsError(f"DB_SSLMODE is {mode!r}: use one of {', '.join(SSL_MODES)}")
    mode = mode or parameters.get("sslmode")
    if not mode and _is_local(parameters.get("host", "")) and _is_local(parameters.get("hostaddr", "")):
        return parameters
    known = parameters.get("sslrootcert") or authority_file()
    mode = mode or ("verify-full" if known else "require")
    return {**parameters, "sslmode": mode, **({"sslrootcert": known} if known else {})}


def _is_local(hosts: str) -> bool:
    """Sockets and loopback addresses only; of several hosts all must be."""
    return all(_LOCAL_HOST.fullmatch(host) for host in hosts.split(","))
