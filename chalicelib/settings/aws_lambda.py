"""The variables that Lambda sets."""

import sys

from chalicelib.settings.environment import is_present, text


def on_lambda() -> bool:
    """Whether API Gateway has verified the claims in the event.

    `chalice local` puts unverified claims in the same place, so the variable alone is not enough. The
    module `chalice.local` is in no deployment package.
    """
    return is_present("AWS_LAMBDA_FUNCTION_NAME") and "chalice.local" not in sys.modules


def function_name() -> str:
    """Lambda's name of this function."""
    return text("AWS_LAMBDA_FUNCTION_NAME")


def is_snapshotted() -> bool:
    """Whether Lambda will take a snapshot of this process and start instances from it."""
    return text("AWS_LAMBDA_INITIALIZATION_TYPE") == "snap-start"
