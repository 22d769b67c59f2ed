"""How a variable's value reaches Lambda when SAM deploys: for table.py."""

from typing import NamedTuple


class Parameter(NamedTuple):
    """The parameter of the SAM template that carries a variable's value."""

    name: str
    description: str
    """Plain text for AWS's console."""
    pattern: str = ""
    """A regular expression for the whole value; empty: any value."""
    is_required: bool = False
    """Whether it has no default when the build sets none: CloudFormation then requires a value."""
