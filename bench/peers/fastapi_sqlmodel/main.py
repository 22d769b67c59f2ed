"""The order API as FastAPI's and SQLModel's documentation would write it; on Lambda behind Mangum."""

import hashlib
import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from mangum import Mangum
from models import IdempotencyKey, Order, OrderCreate, OrderItem, Page, PageQuery, Placed, Single
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import selectinload
from sqlmodel import Session, create_engine, select
from uuid_utils.compat import uuid7

engine = create_engine(
    os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg2://", 1),
    connect_args={"options": "-c timezone=utc"},
)
app = FastAPI(title="Orders")
handler = Mangum(app, lifespan="off")


@dataclass(frozen=True)
class Caller:
    tenant_id: str
    user_id: str


def get_session() -> Iterator[Session]:
    with Session(engine) as session:
        yield session


# async, as in FastAPI's chapter on tokens: nothing here waits, but for the keys at the first request.
async def get_caller(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
) -> Caller:
    """Claims that API Gateway verified when on Lambda, else those of the bearer token."""
    if "aws.event" in request.scope:
        claims = request.scope["aws.event"]["requestContext"]["authorizer"]["claims"]
    else:
        claims = claims_of(credentials)
    if not claims.get("custom:tenant_id"):
        raise HTTPException(403, "Missing tenant_id in claims")
    return Caller(claims["custom:tenant_id"], claims["sub"])


def claims_of(credentials: HTTPAuthorizationCredentials | None) -> dict[str, Any]:
    from jwt import PyJWTError
    from tokens import verified_claims

    unauthorized = HTTPException(401, "Send a valid token", {"WWW-Authenticate": "Bearer"})
    if credentials is None:
        raise unauthorized
    try:
        return verified_claims(credentials.credentials)
    except PyJWTError:
        raise unauthorized from None


SessionDep = Annotated[Session, Depends(get_session)]
CallerDep = Annotated[Caller, Depends(get_caller)]
IdempotencyKeyHeader = Annotated[str | None, Header(min_length=1, max_length=255)]


@app.post("/orders", status_code=201, response_model=Placed)
def place_order(
    new: OrderCreate,
    response: Response,
    session: SessionDep,
    caller: CallerDep,
    idempotency_key: IdempotencyKeyHeader = None,
) -> Any:
    fingerprint = hashlib.sha256(new.model_dump_json().encode()).hexdigest()
    if idempotency_key:
        used = session.get(IdempotencyKey, (caller.tenant_id, caller.user_id, idempotency_key))
        if used:
            if used.fingerprint != fingerprint:
                raise HTTPException(422, "This Idempotency-Key belongs to another order")
            response.headers["Idempotent-Replayed"] = "true"
            return {"order": session.get(Order, (caller.tenant_id, used.order_id))}
    order_id, now = uuid7(), datetime.now(UTC)
    order = Order(
        **new.model_dump(exclude={"items"}),
        tenant_id=caller.tenant_id,
        order_id=order_id,
        created_by=caller.user_id,
        created_at=now,
        updated_at=now,
        items=[OrderItem(**item.model_dump(), line_no=number) for number, item in enumerate(new.items, 1)],
    )
    session.add(order)
    if idempotency_key:
        session.add(
            IdempotencyKey(
                tenant_id=caller.tenant_id,
                created_by=caller.user_id,
                idempotency_key=idempotency_key,
                fingerprint=fingerprint,
                order_id=order_id,
                created_at=now,
            )
        )
    try:
        session.commit()
    except IntegrityError:
        raise HTTPException(409, "A request with this Idempotency-Key is still running") from None
    session.refresh(order)
    return {"order": order}


@app.get("/orders/{order_id}", response_model=Single)
def get_order(order_id: UUID, session: SessionDep, caller: CallerDep) -> Any:
    order = session.get(Order, (caller.tenant_id, order_id))
    if not order:
        raise HTTPException(404, "There is no such order")
    return {"order": order}


@app.get("/orders", response_model=Page)
def list_orders(asked: Annotated[PageQuery, Query()], session: SessionDep, caller: CallerDep) -> Any:
    query = select(Order).where(Order.tenant_id == caller.tenant_id)
    if asked.my_orders:
        query = query.where(Order.created_by == caller.user_id)
    if asked.cursor:
        query = query.where(Order.order_id < place_in(asked.cursor))
    else:
        query = query.offset(asked.offset)
    # One more than asked: it tells whether there is a next page.
    query = query.order_by(Order.order_id.desc()).limit(asked.limit + 1).options(selectinload(Order.items))
    found = session.exec(query).all()
    return {
        "orders": found[: asked.limit],
        "limit": asked.limit,
        "offset": None if asked.cursor else asked.offset,
        "next_cursor": cursor_after(found[asked.limit - 1]) if len(found) > asked.limit else None,
    }


def cursor_after(order: Order) -> str:
    return urlsafe_b64encode(order.order_id.bytes).decode()


def place_in(cursor: str) -> UUID:
    try:
        return UUID(bytes=urlsafe_b64decode(cursor))
    except ValueError:
        raise HTTPException(400, "cursor must be the next_cursor of a page") from None
