"""Faults that a proxy injects into the answers of PostgreSQL."""

import random
import threading
from collections import Counter
from enum import Enum

from tools.postgres_traffic import READY

INSERTED = b"INSERT 0 "
"""CommandComplete of an INSERT."""
READY_MESSAGES = (READY, b"Z\0\0\0\5E", b"Z\0\0\0\5T")


class AnswerFault(Enum):
    """What happens to one answer of the server."""

    TRUNCATE = "cut off in the middle"
    RESET = "the connection is reset instead"
    SWALLOW = "this answer and all later ones of its connection are dropped; the connection stays open"
    CUT_AFTER_COMMIT = "an order is committed, and the connection is closed instead of the answer"


class FaultPlan:
    """Assigns faults to the next answers."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self.rng = rng or random.Random()
        self.injected: Counter[AnswerFault] = Counter()
        """How many answers each kind of fault hit."""
        self._armed: Counter[AnswerFault] = Counter()
        self._lock = threading.Lock()

    def arm(self, fault: AnswerFault, answers: int) -> None:
        """Inject the fault into this many of the next answers that it applies to."""
        with self._lock:
            self._armed[fault] += answers

    def disarm(self) -> None:
        with self._lock:
            self._armed.clear()

    def armed(self) -> int:
        """How many faults are still to be injected."""
        with self._lock:
            return self._armed.total()

    def next(self, answer: bytes) -> AnswerFault | None:
        """The armed fault that this answer gets; counts it as injected."""
        with self._lock:
            for fault, answers in self._armed.items():
                if answers > 0 and _applies(fault, answer):
                    self._armed[fault] -= 1
                    self.injected[fault] += 1
                    return fault
        return None

    def is_incomplete(self, answer: bytes) -> bool:
        """Whether more of an INSERT's answer must be read before it is known to be committed."""
        return self.armed() > 0 and INSERTED in answer and not answer.endswith(READY_MESSAGES)


def _applies(fault: AnswerFault, answer: bytes) -> bool:
    return fault is not AnswerFault.CUT_AFTER_COMMIT or (INSERTED in answer and answer.endswith(READY))
