"""Assigns cores: contenders and their database backends share one core, the bench uses the others."""

import os


def of_contenders() -> int | None:
    """The core on which client and server are measured together; None where processes cannot be pinned."""
    return max(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else None


def leave(core: int | None) -> None:
    """Keep this process off that core, if there is another."""
    if core is not None:
        os.sched_setaffinity(0, os.sched_getaffinity(0) - {core} or {core})
