"""The secret stores that DB_PASSWORD may refer to: the form of a reference, and how to fetch the secret.

Only the SDK of the store in use is imported, when its secret is first needed.
"""

import logging
import re
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from chalicelib.settings.environment import SettingsError

Fetch = Callable[[], str]
"""Requests the secret from the store and returns its text."""
_CONNECT_TIMEOUT, _READ_TIMEOUT = 2, 3
"""Seconds, for each attempt of an SDK, so that an abandoned fetch ends too."""


class Unusable(Exception):  # the name is part of a log line: docs/secrets.md
    """The secret contains no password. The message does not quote it."""


@dataclass(frozen=True)
class Store:
    form: str
    """The form of a reference, for messages."""
    pattern: str
    """Matches a reference; its groups are the arguments of `open`."""
    open: Callable[..., Fetch]
    packages: str
    logger: str
    """The SDK's logger; some SDKs log whole responses below INFO."""


@dataclass(frozen=True)
class Reference:
    """Where a secret is stored. May be logged: it reveals nothing of the secret."""

    text: str
    store: Store
    parts: tuple[str | None, ...]

    def __str__(self) -> str:
        return self.text

    def fetcher(self) -> Fetch:
        """Import the SDK. Raises SettingsError when it is not installed."""
        logger = logging.getLogger(self.store.logger)
        logger.setLevel(max(logger.getEffectiveLevel(), logging.INFO))
        try:
            return self.store.open(*self.parts)
        except ModuleNotFoundError as missing:
            raise SettingsError(
                f"DB_PASSWORD refers to {self}, but {missing.name} is missing: install {self.store.packages}"
            ) from None


def reference(store: str, text: str) -> Reference:
    """Parse a reference. Raises SettingsError for a malformed one, without quoting it."""
    match = re.fullmatch(STORES[store].pattern, text, re.ASCII)
    if not match:
        raise SettingsError(
            f"DB_PASSWORD looks like a reference to a secret, but is malformed: write {STORES[store].form}"
        )
    return Reference(text, STORES[store], match.groups())


def _aws(arn: str, region: str) -> Fetch:
    # botocore instead of boto3: it loads faster, and Lambda's runtime includes it too.
    from botocore.config import Config
    from botocore.session import get_session

    limits = Config(
        connect_timeout=_CONNECT_TIMEOUT, read_timeout=_READ_TIMEOUT, retries={"total_max_attempts": 2}
    )

    @cache
    def client() -> Any:
        return get_session().create_client("secretsmanager", region_name=region, config=limits)

    def fetch() -> str:
        response = client().get_secret_value(SecretId=arn)
        if "SecretString" not in response:
            raise Unusable("it holds no text")
        return str(response["SecretString"])

    return fetch


def _azure(vault: str, name: str, version: str | None) -> Fetch:
    from azure.identity import DefaultAzureCredential
    from azure.keyvault.secrets import SecretClient

    limits: dict[str, Any] = {
        "connection_timeout": _CONNECT_TIMEOUT,
        "read_timeout": _READ_TIMEOUT,
        "retry_total": 1,
    }
    client = SecretClient(vault, DefaultAzureCredential(**limits), **limits)
    return lambda: client.get_secret(name, version).value or ""


def _google(secret: str, version: str | None) -> Fetch:
    from google.cloud.secretmanager import SecretManagerServiceClient

    # REST instead of gRPC, whose threads and sockets do not survive a fork.
    client = cache(lambda: SecretManagerServiceClient(transport="rest"))
    name = f"{secret}/versions/{version or 'latest'}"

    def fetch() -> str:
        response = client().access_secret_version(name=name, retry=None, timeout=_READ_TIMEOUT)
        return str(response.payload.data, "utf-8")

    return fetch


def _oci(ocid: str) -> Fetch:
    from oci.auth.signers import get_resource_principals_signer
    from oci.circuit_breaker import NoCircuitBreakerStrategy
    from oci.retry import NoneRetryStrategy
    from oci.secrets import SecretsClient

    @cache
    def client() -> Any:
        return SecretsClient(
            {},
            signer=get_resource_principals_signer(),
            timeout=(_CONNECT_TIMEOUT, _READ_TIMEOUT),
            retry_strategy=NoneRetryStrategy(),
            circuit_breaker_strategy=NoCircuitBreakerStrategy(),
        )

    def fetch() -> str:
        bundle = client().get_secret_bundle(ocid).data
        return b64decode(bundle.secret_bundle_content.content, validate=True).decode()

    return fetch


STORES = {
    "aws": Store(
        "arn:aws:secretsmanager:<region>:<account>:secret:<name>-<six characters>",
        r"(arn:aws[a-z-]*:secretsmanager:([a-z0-9-]+):\d{12}:secret:[\w/+=.@!-]+-[A-Za-z0-9]{6})",
        _aws,
        packages="boto3",
        logger="botocore",
    ),
    "azure": Store(
        "https://<vault>.vault.azure.net/secrets/<name>, then nothing or /<version>",
        r"(https://[A-Za-z0-9-]+\.vault\.azure\.net)/secrets/([A-Za-z0-9-]+)(?:/([0-9a-f]{32}))?",
        _azure,
        packages="azure-identity and azure-keyvault-secrets",
        logger="azure",
    ),
    "google": Store(
        "projects/<project>/secrets/<name>, then nothing or /versions/<number> or /versions/latest",
        r"(projects/[a-z0-9.:-]+/secrets/[\w-]+)(?:/versions/(\d+|latest))?",
        _google,
        packages="google-cloud-secret-manager",
        logger="google",
    ),
    "oci": Store(
        "ocid1.vaultsecret.<realm>.<region>.<unique id>",
        r"(ocid1\.vaultsecret\.oc\d+\.[a-z0-9-]*(?:\.[a-z0-9-]*)?\.[a-z0-9]+)",
        _oci,
        packages="oci",
        logger="oci",
    ),
}
