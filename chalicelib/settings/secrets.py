"""A password in a secret store. Imported only when DB_PASSWORD is a reference to one."""

import json
import logging
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from time import monotonic

from chalicelib.errors import Unavailable
from chalicelib.settings.secret_stores import Fetch, Reference, Unusable

FIRST_FETCH_TIMEOUT = 5.0
"""Seconds that a request waits for the store without an earlier value; signing in may take part of them."""
REFRESH_TIMEOUT = 2.0
"""Seconds that a request waits for a newer value."""
RETRY_INTERVAL = 10.0
"""Seconds before the next fetch after a failed one, or after the database refused the password."""
FIRST_RETRY_INTERVAL = 1.0
"""The same without an earlier value; equals Retry-After of the 503."""

Variables = Mapping[str, str]
"""The secret's values by the names of the variables that they replace."""

_log = logging.getLogger("order-api")
_MEMBERS = {
    "host": ("DB_HOST", r"[\w./:,-]+"),
    "port": ("DB_PORT", r"\d+(,\d+)*"),
    "dbname": ("DB_NAME", r"[^@\0]+"),
    "username": ("DB_USER", r"[^\0]+"),
    "password": ("DB_PASSWORD", r"[^\0]+"),
}
_SDK_ERRORS = ("azure.", "botocore.exceptions", "google.api_core.", "google.auth.", "oci.exceptions")


class Secret:
    """A secret, fetched once for all threads of the process and cached for `lifetime` seconds.

    When a fetch fails, the cached value stays in use and the failure is logged.
    """

    def __init__(self, reference: Reference, lifetime: float) -> None:
        self._reference, self._lifetime = reference, lifetime
        self._lock = threading.Lock()
        self._fetch: Fetch | None = None
        self._cached: Variables | None = None
        self._expires = 0.0
        self._last_refusal = -RETRY_INTERVAL

    def variables(self) -> Variables:
        """The secret's values. Raises Unavailable when none is cached and the store cannot be reached."""
        if monotonic() >= self._expires and self._lock.acquire(blocking=self._cached is None):
            try:
                if monotonic() >= self._expires:
                    self._refresh()
            finally:
                self._lock.release()
        if self._cached is None:
            raise Unavailable
        return self._cached

    def instead_of(self, refused: Variables) -> Variables | None:
        """A newer value than the one the database refused; None when there is none.

        The refusal may have another reason, so the store is queried at most once in RETRY_INTERVAL seconds.
        """
        with self._lock:
            if self._cached == refused and monotonic() >= self._last_refusal + RETRY_INTERVAL:
                self._last_refusal = monotonic()
                self._refresh()
            return None if self._cached == refused else self._cached

    def _refresh(self) -> None:
        self._fetch = self._fetch or self._reference.fetcher()
        try:
            self._cached = parse(
                _with_timeout(REFRESH_TIMEOUT if self._cached else FIRST_FETCH_TIMEOUT, self._fetch)
            )
            self._expires = monotonic() + self._lifetime
        except Exception as error:
            self._expires = monotonic() + (RETRY_INTERVAL if self._cached else FIRST_RETRY_INTERVAL)
            consequence = "; the older value goes on serving" if self._cached else ""
            _log.error("cannot fetch the secret %s: %s%s", self._reference, _describe(error), consequence)


def parse(text: str) -> Variables:
    """The text is a password, or RDS's JSON: password required; host, port, dbname and username optional.

    Raises Unusable, which does not quote the text.
    """
    members = _json(text) if text.lstrip().startswith("{") else None
    if members is None:
        members = {"password": text.rstrip("\r\n")}  # `echo ... | gcloud secrets create` stores a newline
    if not members.get("password"):
        raise Unusable("it is empty, or JSON without the member password")
    values = {}
    for member, (variable, pattern) in _MEMBERS.items():
        if (value := members.get(member)) not in (None, ""):
            # Not quoted, because it may be a misplaced password.
            if not isinstance(value, str | int) or not re.fullmatch(pattern, str(value), re.ASCII):
                raise Unusable(f"its member {member} is malformed")
            values[variable] = str(value)
    return values


def _json(text: str) -> dict[str, object] | None:
    """The members of a JSON object; None for a password that only begins with a brace."""
    try:
        return dict(json.loads(text))
    except ValueError:
        if '"password"' in text:
            raise Unusable("it is malformed JSON") from None
        return None


def _with_timeout(seconds: float, fetch: Callable[[], str]) -> str:
    """Call fetch in a thread. Raises TimeoutError: the SDKs' own timeouts limit only one attempt."""
    fetched: Future[str] = Future()

    def run() -> None:
        try:
            fetched.set_result(fetch())
        except BaseException as error:
            fetched.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return fetched.result(seconds)
    except TimeoutError:
        raise TimeoutError(f"no answer in {seconds:g} seconds") from None


def _describe(error: Exception) -> str:
    """The error's type, and its message unless that could quote a response with the secret."""
    name = type(error).__name__
    is_safe = isinstance(error, OSError | Unusable) or (
        type(error).__module__.startswith(_SDK_ERRORS) and getattr(error, "status_code", None) != 200
    )
    return f"{name}: {' '.join(str(error).split())[:1000]}" if is_safe else name
