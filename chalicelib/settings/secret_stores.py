"""The secret stores that DB_PASSWORD may point into: what a reference looks like, and how it is fetched.

A store's SDK is imported when its secret is first needed, and no other store's.
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
"""Asks the store and returns the secret's text."""
_CONNECT, _READ = 2, 3
"""Seconds, for each attempt of an SDK: so a fetch that nobody waits for any more ends too."""


class Unusable(Exception):
    """The store answered, but with no password in it. The text does not repeat what it holds."""


@dataclass(frozen=True)
class Store:
    form: str
    """What a reference looks like, for people."""
    exact: str
    """A regular expression; its groups are the arguments of `open`."""
    open: Callable[..., Fetch]
    packages: str
    logger: str
    """The SDK's own; below INFO some write whole answers there."""


@dataclass(frozen=True)
class Reference:
    """Where a secret is: for a log as it stands, since it tells nothing of what is there."""

    text: str
    store: Store
    parts: tuple[str | None, ...]

    def __str__(self) -> str:
        return self.text

    def fetcher(self) -> Fetch:
        """Imports the SDK. Raises SettingsError when it is not installed."""
        logger = logging.getLogger(self.store.logger)
        logger.setLevel(max(logger.getEffectiveLevel(), logging.INFO))
        try:
            return self.store.open(*self.parts)
        except ModuleNotFoundError as missing:
            raise SettingsError(
                f"DB_PASSWORD refers to {self}, but {missing.name} is missing: install {self.store.packages}"
            ) from None


def reference(store: str, text: str) -> Reference:
    """A reference into that store. Raises SettingsError, without repeating the text, if it only looks so."""
    match = re.fullmatch(STORES[store].exact, text, re.ASCII)
    if not match:
        raise SettingsError(
            f"DB_PASSWORD looks like a reference to a secret, but is malformed: write {STORES[store].form}"
        )
    return Reference(text, STORES[store], match.groups())


def _aws(arn: str, region: str) -> Fetch:
    # botocore without boto3: every host has it, Lambda's runtime included, and it loads faster.
    from botocore.config import Config
    from botocore.session import get_session

    limits = Config(connect_timeout=_CONNECT, read_timeout=_READ, retries={"total_max_attempts": 2})

    @cache
    def client() -> Any:
        return get_session().create_client("secretsmanager", region_name=region, config=limits)

    def fetch() -> str:
        answer = client().get_secret_value(SecretId=arn)
        if "SecretString" not in answer:
            raise Unusable("it holds no text")
        return str(answer["SecretString"])

    return fetch


def _azure(vault: str, name: str, version: str | None) -> Fetch:
    from azure.identity import DefaultAzureCredential
    from azure.keyvault.secrets import SecretClient

    limits: dict[str, Any] = {"connection_timeout": _CONNECT, "read_timeout": _READ, "retry_total": 1}
    client = SecretClient(vault, DefaultAzureCredential(**limits), **limits)
    return lambda: client.get_secret(name, version).value or ""


def _google(secret: str, version: str | None) -> Fetch:
    from google.cloud.secretmanager import SecretManagerServiceClient

    # Not over gRPC, whose threads and sockets do not survive a server that forks.
    client = cache(lambda: SecretManagerServiceClient(transport="rest"))
    name = f"{secret}/versions/{version or 'latest'}"

    def fetch() -> str:
        answer = client().access_secret_version(name=name, retry=None, timeout=_READ)
        return str(answer.payload.data, "utf-8")

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
            timeout=(_CONNECT, _READ),
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
