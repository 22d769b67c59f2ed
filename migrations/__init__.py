"""Brings a database of an earlier release to this release's schema, while the API serves."""
