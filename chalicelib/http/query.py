"""The query string of the current request."""

from collections.abc import Mapping, Sequence

from chalicelib.errors import MalformedRequest
from chalicelib.http import current_request

Query = Mapping[str, Sequence[str]]


def query() -> Query:
    """Each parameter's values, in the order of the query string."""
    event = current_request.request().to_original_event()
    return event["multiValueQueryStringParameters"] or {}


def refuse_query() -> None:
    """Raises MalformedRequest if the request has any parameter."""
    single_values(query(), allowed=())


def single_values(query: Query, allowed: Sequence[str]) -> dict[str, str]:
    """Each parameter's one value. Raises MalformedRequest naming an unknown or repeated parameter."""
    for name, values in query.items():
        if name not in allowed:
            known = f"use only {', '.join(allowed)}" if allowed else "none is known here"
            raise wrong_parameter(name[:100], f"is not a parameter of this request: {known}")
        if len(values) != 1:
            raise wrong_parameter(name, "appears more than once: send it once")
    return {name: values[0] for name, values in query.items()}


def wrong_parameter(name: str, message: str) -> MalformedRequest:
    return MalformedRequest("A query parameter is wrong.", [(name, message)])
