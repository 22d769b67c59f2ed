"""RATE_LIMIT: how many requests a tenant may make, counted in the database for all processes together.

The generic cell rate algorithm: a tenant may be ahead of an even pace by the limit's whole period, so that
100/s lets a hundred requests through at once and then one every 10 milliseconds. Each request that is let
through costs one atomic statement, a round trip of its own. After a refusal the process remembers when the
tenant's next turn is, and refuses its requests until then without a query: a flood from one tenant uses up
neither connections nor threads of the others.
"""

import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from chalicelib.database.connections import Connections
from chalicelib.database.errors import ReadOnly
from chalicelib.database.statement import Statement
from chalicelib.database.tenant_scope import TenantScope
from chalicelib.errors import RateLimited
from chalicelib.settings.rate_limit import Rate

MAX_REMEMBERED = 10_000
"""Refused tenants kept in memory. When full, those whose wait is over are dropped; if none is, all are."""
READ_ONLY_PAUSE = 10
"""Seconds without counting after a server has refused to write."""
CLOCK_TOLERANCE = 10
"""Seconds. A next turn further away than an interval plus this was set by another clock: see TAKE_TURN."""


class Turn(NamedTuple):
    """The row of TAKE_TURN."""

    ahead: float
    """Seconds that the tenant is ahead of its even pace."""
    taken: bool
    """Whether it got a turn."""


_TAKE_TURN = """\
WITH turn AS (
    INSERT INTO rate_limits AS mine (tenant_id, taken_until)
    VALUES (%(tenant_id)s, extract(epoch FROM statement_timestamp())::float8 + %(interval)s)
    ON CONFLICT (tenant_id) DO UPDATE
        SET taken_until = CASE
            WHEN mine.taken_until > excluded.taken_until + %(period)s + 10
                THEN excluded.taken_until - %(interval)s + %(period)s
            ELSE greatest(mine.taken_until + %(interval)s, excluded.taken_until) END
        WHERE greatest(mine.taken_until + %(interval)s, excluded.taken_until)
              <= excluded.taken_until - %(interval)s + %(period)s
           OR mine.taken_until > excluded.taken_until + %(period)s + 10
    RETURNING taken_until
), now AS (SELECT extract(epoch FROM statement_timestamp())::float8 AS epoch)
SELECT (taken_until - epoch)::numeric AS ahead, true AS taken FROM turn, now
UNION ALL
SELECT coalesce((SELECT taken_until - epoch FROM rate_limits WHERE tenant_id = %(tenant_id)s),
                %(period)s)::numeric, false
FROM now WHERE NOT EXISTS (SELECT FROM turn)"""
TAKE_TURN = Statement(_TAKE_TURN, _TAKE_TURN, Turn)
"""Takes a turn if there is one.

A statement waits at most ten seconds for its row. A tenant that is further ahead than the period and ten
seconds was counted with another limit or another clock: its request is let through and the row corrected.
Citus accepts only such clock functions and arithmetic here. The answer is numeric, because extra_float_digits
decides how many digits of a float8 are printed. Written as text, because it would be unreadable as an
SQLAlchemy expression.
"""


class RateLimiter:
    """Counts requests per tenant. One a process: it remembers the tenants that were refused."""

    def __init__(self, connections: Callable[[], Connections], rate: Rate | None) -> None:
        self.rate = rate
        self._connections = connections
        self._next_turns: dict[str, float] = {}
        """When a refused tenant's next turn is due, without the requests of other processes; by time.time(),
        because the monotonic clock stops while a process is frozen."""
        self._lock = threading.Lock()
        self._uncounted_until = 0.0

    def check(self, tenant_id: str, deadline: float | None = None) -> Mapping[str, str]:
        """Take a turn; the answer's rate limit headers, empty where nothing is counted.

        Nothing is without RATE_LIMIT, and for READ_ONLY_PAUSE seconds after a server has refused to write.
        Raises RateLimited, with the same headers, when the tenant has no turn left.
        """
        rate = self.rate
        if rate is None or 0 < self._uncounted_until - time.time() <= READ_ONLY_PAUSE:
            return {}
        if wait := self._wait(tenant_id, rate):
            raise _refused(rate, wait)
        try:
            turn = self._take_turn(tenant_id, rate, deadline)
        except ReadOnly:  # nothing can be counted; reads still work
            self._uncounted_until = time.time() + READ_ONLY_PAUSE
            return {}
        if not turn.taken:
            wait = turn.ahead + rate.interval - rate.seconds
            self._remember(tenant_id, wait)
            # Not positive: a concurrent request took the turn that was free.
            raise _refused(rate, wait if wait > 0 else rate.interval)
        left = int((rate.seconds - turn.ahead) / rate.interval + 1e-6)
        return _headers(rate, left, turn.ahead)

    def _take_turn(self, tenant_id: str, rate: Rate, deadline: float | None) -> Turn:
        scope = TenantScope(self._connections, tenant_id, deadline)
        try:
            turn = _query_turn(scope, rate)
            if not turn.taken and turn.ahead + rate.interval - rate.seconds < 1 < rate.interval:
                # It may have waited for a concurrent turn that its snapshot does not show; a new one does.
                turn = _query_turn(scope, rate)
        except BaseException:
            with self._lock:  # undo _wait's count: no turn was taken
                if tenant_id in self._next_turns:
                    self._next_turns[tenant_id] -= rate.interval
            raise
        return turn

    def _wait(self, tenant_id: str, rate: Rate) -> float:
        """Seconds until the tenant's next turn; 0: now, and then the following one is an interval later."""
        now = time.time()
        with self._lock:
            next_turn = self._next_turns.get(tenant_id)
            if next_turn is None:
                return 0
            if now < next_turn <= now + rate.interval + CLOCK_TOLERANCE:
                return next_turn - now
            if now - rate.seconds < next_turn <= now:
                self._next_turns[tenant_id] = next_turn + rate.interval
            else:
                del self._next_turns[tenant_id]  # all its turns may be back, or the clock was set back
            return 0

    def _remember(self, tenant_id: str, wait: float) -> None:
        now = time.time()
        with self._lock:
            if len(self._next_turns) >= MAX_REMEMBERED:
                self._forget(now)
            self._next_turns[tenant_id] = max(now + wait, self._next_turns.get(tenant_id, 0))

    def _forget(self, now: float) -> None:
        waiting = {tenant: next_turn for tenant, next_turn in self._next_turns.items() if next_turn > now}
        self._next_turns = waiting if len(waiting) < MAX_REMEMBERED else {}


def _query_turn(scope: TenantScope, rate: Rate) -> Turn:
    (turn,) = scope.read(TAKE_TURN, interval=rate.interval, period=rate.seconds)
    return turn._replace(ahead=float(turn.ahead))  # psycopg2 reads numeric as Decimal


def _refused(rate: Rate, wait: float) -> RateLimited:
    return RateLimited({**_headers(rate, 0, wait), "Retry-After": str(max(1, math.ceil(wait)))})


def _headers(rate: Rate, left: int, seconds: float) -> dict[str, str]:
    """RateLimit header fields for HTTP (draft-ietf-httpapi-ratelimit-headers-10): the turns left, and the
    seconds until there are more."""
    return {
        "RateLimit-Policy": f'"tenant";q={rate.requests};w={rate.seconds}',
        "RateLimit": f'"tenant";r={left};t={max(1, math.ceil(seconds))}',
    }
