"""A Cognito user pool from moto, with its keys served over HTTP on loopback."""

import os
import time
from collections.abc import Mapping
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from jose import jwk, jwt

if TYPE_CHECKING:
    from moto.server import ThreadedMotoServer

REGION = "eu-west-1"
LIFETIME = 3600
"""Seconds, as moto's."""
PASSWORD = "Correct-horse-7"  # for users that exist in this process only


class UserPool:
    """A pool with `custom:tenant_id`, one app client, and users created on demand."""

    def __init__(self, endpoint: str, name: str) -> None:
        import boto3

        self._endpoint = endpoint
        self._cognito: Any = boto3.client(
            "cognito-idp",
            region_name=REGION,
            endpoint_url=endpoint,
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )
        pool = self._cognito.create_user_pool(
            PoolName=name,
            Schema=[{"Name": "tenant_id", "AttributeDataType": "String", "Mutable": False}],
        )["UserPool"]
        self.id: str = pool["Id"]
        self.arn: str = pool["Arn"]
        self.client_id = self.new_client("shop")
        self._tokens: dict[tuple[str | None, str, str], dict[str, str]] = {}
        self._claims: dict[str, dict[str, dict[str, Any]]] = {}
        """By client and kind: the claims of a user who has signed in."""

    @property
    def jwks_url(self) -> str:
        return f"{self._endpoint}/{self.id}/.well-known/jwks.json"

    @cached_property
    def other_client_id(self) -> str:
        return self.new_client("another-shop")

    @property
    def issuer(self) -> str:
        return f"https://cognito-idp.{REGION}.amazonaws.com/{self.id}"

    def new_client(self, name: str) -> str:
        client = self._cognito.create_user_pool_client(
            UserPoolId=self.id,
            ClientName=name,
            ExplicitAuthFlows=["ALLOW_ADMIN_USER_PASSWORD_AUTH"],
            ReadAttributes=["email", "custom:tenant_id"],
        )["UserPoolClient"]
        return str(client["ClientId"])

    def token(self, tenant: str | None, user: str = "alice", kind: str = "IdToken") -> str:
        """A token of the pool for `user` of `tenant`; None: a user without a tenant."""
        return self.tokens(tenant, user, self.client_id)[kind]

    def tokens(self, tenant: str | None, user: str, client_id: str) -> dict[str, str]:
        cached = self._tokens.get((tenant, user, client_id))
        return cached or self._tokens.setdefault(
            (tenant, user, client_id), self._issue(tenant, user, client_id)
        )

    def _issue(self, tenant: str | None, user: str, client_id: str) -> dict[str, str]:
        """Signs a signed-in user's claims for this user: moto takes 30 ms of CPU time for a sign-in."""
        if client_id not in self._claims:
            signed_in = self.sign_in("template", "template", client_id)
            self._claims[client_id] = {
                kind: jwt.get_unverified_claims(signed_in[kind]) for kind in ("IdToken", "AccessToken")
            }
        name, now = _username(tenant, user, client_id), int(time.time())
        changes = {
            **dict.fromkeys(("sub", "jti", "origin_jti"), str(uuid4())),
            **dict.fromkeys(("username", "cognito:username"), name),
            **dict.fromkeys(("iat", "auth_time"), now),
            "exp": now + LIFETIME,
            "email": _email(tenant, user),
            "custom:tenant_id": tenant,
        }
        return {
            kind: signed(
                {
                    claim: changes.get(claim, value)
                    for claim, value in claims.items()
                    if changes.get(claim, value) is not None
                }
            )
            for kind, claims in self._claims[client_id].items()
        }

    def sign_in(self, tenant: str | None, user: str, client_id: str) -> dict[str, str]:
        """The tokens of a new user, from moto."""
        name = _username(tenant, user, client_id)
        attributes = [{"Name": "email", "Value": _email(tenant, user)}]
        if tenant is not None:
            attributes.append({"Name": "custom:tenant_id", "Value": tenant})
        self._cognito.admin_create_user(UserPoolId=self.id, Username=name, UserAttributes=attributes)
        self._cognito.admin_set_user_password(
            UserPoolId=self.id, Username=name, Password=PASSWORD, Permanent=True
        )
        signed_in = self._cognito.admin_initiate_auth(
            UserPoolId=self.id,
            ClientId=client_id,
            AuthFlow="ADMIN_USER_PASSWORD_AUTH",
            AuthParameters={"USERNAME": name, "PASSWORD": PASSWORD},
        )
        return dict(signed_in["AuthenticationResult"])


def _username(tenant: str | None, user: str, client_id: str) -> str:
    return f"{user}-at-{tenant}-{client_id}"


def _email(tenant: str | None, user: str) -> str:
    return f"{user}@{tenant or 'nowhere'}.example"


def start() -> tuple["ThreadedMotoServer", str]:
    """moto's server on a free port, and its endpoint."""
    from moto.server import ThreadedMotoServer  # takes a second, and not every run needs it

    os.environ.setdefault("AWS_DEFAULT_REGION", REGION)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    return server, f"http://{host}:{port}"


def signed(claims: Mapping[str, Any]) -> str:
    """A token with any claims, signed with the one key that all of moto's pools share."""
    key, kid = _moto_key()
    return str(jwt.encode(dict(claims), key, algorithm="RS256", headers={"kid": kid}))


@cache
def _moto_key() -> tuple[Any, str]:
    from moto.utilities.utils import load_resource

    members = load_resource("cognitoidp/resources/jwks-private.json")
    return jwk.construct(members, "RS256"), members["kid"]
