"""Lambda SnapStart. Every cold start imports this module; the hooks are imported only where it is on."""

from collections.abc import Callable, Mapping
from typing import Any

from chalicelib.settings.aws_lambda import is_snapshotted


def register(handler: Callable[[Any, Any], Mapping[str, Any]]) -> None:
    """Have Lambda's runtime call the hooks, if it will take a snapshot of this process."""
    if is_snapshotted():
        from chalicelib.snapstart import hooks

        hooks.register(handler)
