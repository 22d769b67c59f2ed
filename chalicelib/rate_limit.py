"""RATE_LIMIT: how many requests a tenant may make, counted in the database for all processes together.

The generic cell rate algorithm: a tenant may be ahead of its even pace by the limit's whole period, so that
100/s lets a hundred requests through at once and then one every 10 milliseconds. A turn is one atomic
statement, a round trip of its own. Of a tenant that was refused a process knows how many turns there can be
from then on, and asks the database for no more: a flood is refused here, and costs other tenants neither
a connection nor a thread that waits for one.
"""

import math
import threading
import time
from collections.abc import Mapping
from functools import cache

from chalicelib.caller import Caller
from chalicelib.database.errors import ReadOnly
from chalicelib.database.tenant_scope import TenantScope
from chalicelib.errors import RateLimited
from chalicelib.orders.statements import TAKE_TURN
from chalicelib.settings.rate_limit import Rate, rate_limit

MOST_REMEMBERED = 10_000
"""Tenants; beyond, those who may ask again are forgotten, and then all."""
_next_turns: dict[str, float] = {}
"""When a tenant that was refused can have its next turn, other processes aside; by time.time(), since in a
frozen process the monotonic clock stands still."""
_lock = threading.Lock()
_uncounted_until = 0.0
UNCOUNTED = 10
"""Seconds in which nothing is counted after a server has refused to write."""
SLACK = 10
"""Seconds. A next turn further away than these and an interval was set by another clock: see TAKE_TURN."""
rate = cache(rate_limit)
"""Read once, at the first request."""


def take_turn(caller: Caller, ends_at: float | None = None) -> Mapping[str, str]:
    """The headers of an answer to this caller; none without RATE_LIMIT.

    Raises RateLimited, with the same headers, where the tenant has no turn left.
    """
    limit = rate()
    if limit is None or 0 < _uncounted_until - time.time() <= UNCOUNTED:
        return {}
    if wait := _wait(caller.tenant_id, limit):
        raise _refused(limit, wait)
    try:
        ahead, taken = _asked(caller, limit, ends_at)
    except ReadOnly:
        return _uncounted()
    if not taken:
        wait = ahead + limit.interval - limit.seconds
        _remember(caller.tenant_id, wait)
        raise _refused(limit, wait if wait > 0 else limit.interval)  # another took the turn that was there
    left = int((limit.seconds - ahead) / limit.interval + 1e-6)
    return _headers(limit, left, ahead)


def _asked(caller: Caller, limit: Rate, ends_at: float | None) -> tuple[float, bool]:
    """What the database says: seconds ahead of the even pace, and whether there was a turn."""
    scope = TenantScope(caller.tenant_id, ends_at)
    spaced = {"interval": limit.interval, "period": limit.seconds}
    try:
        ((ahead, taken),) = scope.read(TAKE_TURN, **spaced)
        if not taken and ahead + limit.interval - limit.seconds < 1 < limit.interval:
            # It may have waited while another took the turn, and not see that: a new snapshot does.
            ((ahead, taken),) = scope.read(TAKE_TURN, **spaced)
    except BaseException:
        with _lock:  # it gave none
            if caller.tenant_id in _next_turns:
                _next_turns[caller.tenant_id] -= limit.interval
        raise
    return ahead, taken


def _uncounted() -> Mapping[str, str]:
    """Where nothing can be written nothing is counted: reads go on."""
    global _uncounted_until  # noqa: PLW0603 (one server a process)
    _uncounted_until = time.time() + UNCOUNTED
    return {}


def _wait(tenant_id: str, limit: Rate) -> float:
    """Seconds until it makes sense to ask for a turn; 0 when it does now, and then it is counted as asked."""
    now = time.time()
    with _lock:
        turn = _next_turns.get(tenant_id)
        if turn is None:
            return 0
        if now < turn <= now + limit.interval + SLACK:
            return turn - now
        if now - limit.seconds < turn <= now:
            _next_turns[tenant_id] = turn + limit.interval
        else:
            del _next_turns[tenant_id]  # it may have all of its turns by now, or the clock was set back
        return 0


def _refused(limit: Rate, wait: float) -> RateLimited:
    return RateLimited({**_headers(limit, 0, wait), "Retry-After": str(max(1, math.ceil(wait)))})


def _headers(limit: Rate, left: int, seconds: float) -> dict[str, str]:
    """RateLimit header fields for HTTP (draft-ietf-httpapi-ratelimit-headers-10): what is left, and the
    seconds until there is more."""
    return {
        "RateLimit-Policy": f'"tenant";q={limit.requests};w={limit.seconds}',
        "RateLimit": f'"tenant";r={left};t={max(1, math.ceil(seconds))}',
    }


def _remember(tenant_id: str, wait: float) -> None:
    now = time.time()
    with _lock:
        if len(_next_turns) >= MOST_REMEMBERED:
            still = {tenant: turn for tenant, turn in _next_turns.items() if turn > now}
            _next_turns.clear()
            _next_turns.update(still if len(still) < MOST_REMEMBERED else {})
        _next_turns[tenant_id] = max(now + wait, _next_turns.get(tenant_id, 0))
