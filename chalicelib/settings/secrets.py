"""A password that rests in a secret store. Imported only where DB_PASSWORD is a reference to one."""

import json
import logging
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from time import monotonic

from chalicelib.errors import Unavailable
from chalicelib.settings.secret_stores import Fetch, Reference, Unusable

FIRST_WAIT = 5.0
"""Seconds that a request waits for the store while nothing is known: signing in may be part of it."""
LATER_WAIT = 2.0
PAUSE = 10.0
"""Seconds between two fetches that the lifetime does not ask for: after a failure, after a refusal."""
FIRST_PAUSE = 1.0
"""The same while nothing is known, as Retry-After says."""

Variables = Mapping[str, str]
"""What a secret says, as the variables that it stands in for."""

_log = logging.getLogger("order-api")
_MEMBERS = {
    "host": ("DB_HOST", r"[\w./:,-]+"),
    "port": ("DB_PORT", r"\d+(,\d+)*"),
    "dbname": ("DB_NAME", r"[^@\0]+"),
    "username": ("DB_USER", r"[^\0]+"),
    "password": ("DB_PASSWORD", r"[^\0]+"),
}
_SPEAK_OF_THEMSELVES = ("azure.", "botocore.exceptions", "google.api_core.", "google.auth.", "oci.exceptions")


class Secret:
    """What a reference names: fetched once for all threads of the process, then known for `lifetime` seconds.

    While an older value is known, a store that cannot answer is only logged.
    """

    def __init__(self, reference: Reference, lifetime: float) -> None:
        self._reference, self._lifetime = reference, lifetime
        self._lock = threading.Lock()
        self._fetch: Fetch | None = None
        self._known: Variables | None = None
        self._due = 0.0
        self._refused = -PAUSE

    def variables(self) -> Variables:
        """What the secret says. Raises Unavailable when nothing is known and the store cannot answer."""
        if monotonic() >= self._due and self._lock.acquire(blocking=self._known is None):
            try:
                if monotonic() >= self._due:
                    self._ask()
            finally:
                self._lock.release()
        if self._known is None:
            raise Unavailable
        return self._known

    def instead_of(self, refused: Variables) -> Variables | None:
        """What the secret says now, to a database that refused this; None when it says nothing newer.

        Why a database refuses cannot be told, so that the store is asked once in PAUSE seconds at most.
        """
        with self._lock:
            if self._known == refused and monotonic() >= self._refused + PAUSE:
                self._refused = monotonic()
                self._ask()
            return None if self._known == refused else self._known

    def _ask(self) -> None:
        self._fetch = self._fetch or self._reference.fetcher()
        try:
            self._known = variables(_within(LATER_WAIT if self._known else FIRST_WAIT, self._fetch))
            self._due = monotonic() + self._lifetime
        except Exception as error:
            self._due = monotonic() + (PAUSE if self._known else FIRST_PAUSE)
            outlook = "; the older value goes on serving" if self._known else ""
            _log.error("cannot fetch the secret %s: %s%s", self._reference, _why(error), outlook)


def variables(text: str) -> Variables:
    """A password as it is, or RDS's JSON: password required; host, port, dbname and username optional.

    Raises Unusable, which does not repeat the text.
    """
    members = _json(text) if text.lstrip().startswith("{") else None
    if members is None:
        members = {"password": text.rstrip("\r\n")}  # `echo ... | gcloud secrets create` leaves one there
    if not members.get("password"):
        raise Unusable("it is empty, or JSON without the member password")
    found = {}
    for member, (variable, form) in _MEMBERS.items():
        if (value := members.get(member)) not in (None, ""):
            # What is malformed may be a password in the wrong place, and a host is written into messages.
            if not isinstance(value, str | int) or not re.fullmatch(form, str(value), re.ASCII):
                raise Unusable(f"its member {member} is malformed")
            found[variable] = str(value)
    return found


def _json(text: str) -> dict[str, object] | None:
    """The members of a JSON object; None for a password that begins with a brace."""
    try:
        return dict(json.loads(text))
    except ValueError:
        if '"password"' in text:
            raise Unusable("it is malformed JSON") from None
        return None


def _within(seconds: float, fetch: Callable[[], str]) -> str:
    """What it returns, or TimeoutError: the SDKs limit an attempt on a socket, and not the whole."""
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


def _why(error: Exception) -> str:
    """The error's name; and its words, where they cannot quote an answer that held the secret."""
    name = type(error).__name__
    speaks_of_itself = isinstance(error, OSError | Unusable) or (
        type(error).__module__.startswith(_SPEAK_OF_THEMSELVES) and getattr(error, "status_code", None) != 200
    )
    return f"{name}: {' '.join(str(error).split())[:1000]}" if speaks_of_itself else name
