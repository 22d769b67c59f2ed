"""The names of tools/client.py, for tests that import them from here."""

from tools.client import SEED_BYTES, Answer, Client, Transport, free_port, item, over_http, seed

__all__ = ["SEED_BYTES", "Answer", "Client", "Transport", "free_port", "item", "over_http", "seed"]
