"""The variables that Lambda sets."""

import sys

from chalicelib.settings.environment import is_present, text


def on_lambda() -> bool:
    """Whether API Gateway has verified the claims in the event.

    `chalice local` puts claims that nobody verified in the same place, so that there the variable
    alone would open the door; its module is in no deployment package.
    """
    return is_present("AWS_LAMBDA_FUNCTION_NAME") and "chalice.local" not in sys.modules


def function_name() -> str:
    """Lambda's name of this function."""
    return text("AWS_LAMBDA_FUNCTION_NAME")


def is_snapshotted() -> bool:
    """Whether Lambda will take a snapshot of this process and start instances from it."""
    return text("AWS_LAMBDA_INITIALIZATION_TYPE") == "snap-start"
