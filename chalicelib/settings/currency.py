"""DEFAULT_CURRENCY: the currency of an order that names none."""

from chalicelib.money.currencies import DECIMALS
from chalicelib.settings.environment import SettingsError, text


def default_currency() -> str:
    """The ISO 4217 code of an order that names none."""
    code = text("DEFAULT_CURRENCY")
    if code not in DECIMALS:
        raise SettingsError(f"DEFAULT_CURRENCY is {code!r}: use an ISO 4217 code such as USD or JPY")
    return code
