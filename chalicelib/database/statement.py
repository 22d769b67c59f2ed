"""SQL as it is written once, and sent with values or prepared for any."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from itertools import starmap
from typing import Any, Generic, TypeVar, cast, overload

from psycopg2.extensions import cursor as Cursor

Values = Mapping[str, Any]
Row = tuple[Any, ...]
RowType = TypeVar("RowType", bound=tuple[Any, ...])

_VALUE = re.compile(r"%\((\w+)\)s")


class Statement(Generic[RowType]):
    """SQL with named values, `%(order_id)s`, and the type of its rows.

    The name of its prepared form is a hash of the text, so that no session runs another release's statement.
    """

    @overload
    def __init__(self: "Statement[Row]", text: str, prepared: str | None) -> None: ...

    @overload
    def __init__(self, text: str, prepared: str | None, row: type[RowType]) -> None: ...

    def __init__(self, text: str, prepared: str | None, row: type[RowType] | None = None) -> None:
        """`prepared`: the same query in a form whose one plan suits all values; None: never prepared.

        `row`: a NamedTuple with the columns; None: rows are plain tuples.
        """
        self.text, self.prepared, self.row = text, prepared, row
        if prepared is None:
            return
        names = list(dict.fromkeys(_VALUE.findall(prepared)))
        numbered = _VALUE.sub(lambda value: f"${names.index(value[1]) + 1}", prepared).replace("%%", "%")
        self.name = f"order_api_{hashlib.sha256(prepared.encode()).hexdigest()[:16]}"
        self.prepare = f"prepare {self.name} as {numbered};\n".encode()
        self.execute = f"execute {self.name} ({', '.join(f'%({name})s' for name in names)})"

    def __repr__(self) -> str:
        """Its source; a row type by its name."""
        row = f", {self.row.__name__}" if self.row else ""
        return f"Statement({self.text!r}, {self.prepared!r}{row})"

    def bind(self, cursor: Cursor, rows: Sequence[Values]) -> bytes:
        """The SQL with the one row of values."""
        (values,) = rows
        return cursor.mogrify(self.text, values)

    def typed(self, rows: list[Row]) -> list[RowType]:
        """The rows of a result, with names."""
        return list(starmap(self.row, rows)) if self.row else cast("list[RowType]", rows)


class Insert(Statement[Row]):
    """An INSERT of one or several rows: `head`, the rows with a comma between them, `tail`.

    `row_values` is the template of a row, `(%(tenant_id)s, %(line_no)s)`. `tail` is for ON CONFLICT and
    RETURNING. Head and tail occur once, so that `tenant_id` is the only value they may use.
    """

    def __init__(self, head: str, row_values: str, tail: str = "") -> None:
        """Raises ValueError on a value in head or tail that differs from row to row."""
        if {*_VALUE.findall(head), *_VALUE.findall(tail)} - {"tenant_id"}:
            raise ValueError("only the rows of an INSERT have values of their own")
        text = f"{head}{row_values}{tail}"
        super().__init__(text, text)
        self.head, self.row_values, self.tail = head, row_values, tail

    def __repr__(self) -> str:
        return f"Insert({self.head!r}, {self.row_values!r}, {self.tail!r})"

    def bind(self, cursor: Cursor, rows: Sequence[Values]) -> bytes:
        """The SQL with all rows of values."""
        head = cursor.mogrify(self.head, rows[0])
        tail = cursor.mogrify(self.tail, rows[0]) if self.tail else b""  # psycopg2 refuses an empty string
        return head + b", ".join([cursor.mogrify(self.row_values, row) for row in rows]) + tail


Step = tuple[Statement[Any], Sequence[Values]]
"""A statement and its values; an Insert may have several rows of them."""
