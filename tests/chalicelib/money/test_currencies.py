"""DECIMALS against a copy of ISO 4217."""

from iso4217 import Currency

from chalicelib.money.currencies import DECIMALS


def test_currencies_are_active_iso_4217_with_minor_units() -> None:
    standard = {
        currency.code.upper(): currency.exponent for currency in Currency if currency.exponent is not None
    }

    assert dict(DECIMALS) == standard
    assert {code: DECIMALS[code] for code in ("JPY", "USD", "KWD", "CLF")} == {
        "JPY": 0,
        "USD": 2,
        "KWD": 3,
        "CLF": 4,
    }
