"""Admits a request: its caller is verified and within the rate limit."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar

from chalicelib.caller import Caller
from chalicelib.composition import connections, rate_limiter
from chalicelib.database.tenant_scope import TenantScope
from chalicelib.errors import Unauthorized
from chalicelib.http import current_request
from chalicelib.observability import record
from chalicelib.settings import identity_provider
from chalicelib.settings.aws_lambda import on_lambda

Repository = TypeVar("Repository")
claim_names = cache(identity_provider.claim_names)
"""Read once, at the first request."""


def admitted(repository: Callable[[Caller, TenantScope], Repository]) -> Repository:
    """The repository of the verified caller's tenant, whose statements end before the host's deadline.

    Raises Unauthorized without a valid token, MissingTenant if it names no tenant, RateLimited.
    """
    invocation = current_request.invocation()
    caller = invocation.caller = _verified_caller()
    if invocation.counts:
        invocation.rate_headers = rate_limiter().check(caller.tenant_id, invocation.deadline)
    return repository(caller, TenantScope(connections, caller.tenant_id, invocation.deadline))


def _verified_caller() -> Caller:
    caller = Caller.from_claims(_verified_claims(), claim_names())
    if current := record.current.get():
        current.identify(caller.tenant_id, caller.user_id)
    return caller


def _verified_claims() -> Mapping[str, Any]:
    """Those that a shim's gateway or, on Lambda, API Gateway has verified; else those of the token itself."""
    claims: Mapping[str, Any] | None = current_request.invocation().claims
    if claims is not None:
        return claims
    if on_lambda():
        claims = (current_request.request().context.get("authorizer") or {}).get("claims")
        if not claims or not identity_provider.is_accepted_client(claims.get("aud")):
            raise Unauthorized
        return claims  # type: ignore[no-any-return] # part of an event
    from chalicelib.identity import tokens

    return tokens.claims(current_request.header("authorization"))
