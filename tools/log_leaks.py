"""Finds personal data and tokens in logs: values of the seed order, e-mail addresses, JSON Web Tokens."""

import json
import re
from pathlib import Path

SEED = json.loads((Path(__file__).parents[1] / "test_order.json").read_text())
PERSONAL = (
    SEED["customer_name"],
    SEED["customer_phone"],
    SEED["shipping_address"],
    SEED["items"][0]["product_name"],
    SEED["items"][0]["product_sku"],
)
EMAIL = r"[\w.+-]+@(?:[\w-]+\.)*example(?:\.com)?\b"
"""Of the seed order, of tokens (`alice@<tenant>.example`) and of SnapStart's warm-up."""
TOKEN = r"eyJ[\w-]{8,}\.(?:eyJ)?[\w-]*"
"""A JSON Web Token begins with the base64 of `{"`."""
_LEAK = re.compile("|".join([*map(re.escape, PERSONAL), EMAIL, TOKEN]))
_CONTEXT = 60


def find_leaks(where: str, text: str) -> list[str]:
    """Each leak in the text of that log, with the characters around it."""
    leaks = []
    for leak in _LEAK.finditer(text):
        around = text[max(0, leak.start() - _CONTEXT) : leak.end() + _CONTEXT]
        leaks.append(f"{where} holds {leak[0][:40]!r}: ...{around!r}...")
    return leaks
