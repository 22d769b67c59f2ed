"""SQL as it is written once, and sent with values or prepared for any."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from psycopg2.extensions import cursor as Cursor

Values = Mapping[str, Any]
Row = tuple[Any, ...]

_VALUE = re.compile(r"%\((\w+)\)s")


class Statement:
    """SQL with named values, `%(order_id)s`.

    The name of its prepared form is a hash of the text, so that no session runs another release's statement.
    """

    def __init__(self, text: str, prepared: str | None) -> None:
        """`prepared`: the same query in a form whose one plan suits all values; None: never prepared."""
        self.text, self.prepared = text, prepared
        if prepared is None:
            return
        names = list(dict.fromkeys(_VALUE.findall(prepared)))
        numbered = _VALUE.sub(lambda value: f"${names.index(value[1]) + 1}", prepared).replace("%%", "%")
        self.name = f"order_api_{hashlib.sha256(prepared.encode()).hexdigest()[:16]}"
        self.prepare = f"prepare {self.name} as {numbered};\n".encode()
        self.execute = f"execute {self.name} ({', '.join(f'%({name})s' for name in names)})"

    def __repr__(self) -> str:
        return f"Statement({self.text!r}, {self.prepared!r})"

    def rows(self, cursor: Cursor, rows: Sequence[Values]) -> bytes:
        """An INSERT of several rows in one statement; its text has one row."""
        head, one_row = self.text.split(" VALUES ")
        return head.encode() + b" VALUES " + b", ".join(cursor.mogrify(one_row, row) for row in rows)


Step = tuple[Statement, Sequence[Values]]
"""A statement and its values; an INSERT may have several rows of them."""
