"""The schema of release 1.0.0, where migrations start."""

revision = "0002"
down_revision = None


def upgrade() -> None:
    """Nothing: schema.sql of release 1.0.0 made it."""
