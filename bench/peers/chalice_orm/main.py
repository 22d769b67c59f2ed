"""The order API as Chalice's and SQLModel's documentation would write it: plain Chalice over the ORM."""

import hashlib
import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from chalice import (
    BadRequestError,
    Chalice,
    ConflictError,
    ForbiddenError,
    NotFoundError,
    Response,
    UnprocessableEntityError,
)
from models import IdempotencyKey, Order, OrderCreate, OrderItem, Page, PageQuery, Placed, Single
from pydantic import ValidationError
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import selectinload
from sqlmodel import Session, SQLModel, create_engine, select
from uuid_utils.compat import uuid7

Json = dict[str, Any]

engine = create_engine(
    os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg2://", 1),
    connect_args={"options": "-c timezone=utc"},
)
handler = app = Chalice(app_name="orders")


@app.route("/orders", methods=["POST"])
def place_order() -> Response:
    tenant_id, user_id = caller()
    new = validated(OrderCreate, app.current_request.json_body)
    key = app.current_request.headers.get("Idempotency-Key")
    fingerprint = hashlib.sha256(new.model_dump_json().encode()).hexdigest()
    with Session(engine) as session:
        if key and (used := session.get(IdempotencyKey, (tenant_id, user_id, key))):
            if used.fingerprint != fingerprint:
                raise UnprocessableEntityError("This Idempotency-Key belongs to another order")
            stored = session.get(Order, (tenant_id, used.order_id))
            return Response(answer(Placed, order=stored), {"Idempotent-Replayed": "true"}, 201)
        order_id, now = uuid7(), datetime.now(UTC)
        order = Order(
            **new.model_dump(exclude={"items"}),
            tenant_id=tenant_id,
            order_id=order_id,
            created_by=user_id,
            created_at=now,
            updated_at=now,
            items=[
                OrderItem(**item.model_dump(), line_no=number) for number, item in enumerate(new.items, 1)
            ],
        )
        session.add(order)
        if key:
            session.add(
                IdempotencyKey(
                    tenant_id=tenant_id,
                    created_by=user_id,
                    idempotency_key=key,
                    fingerprint=fingerprint,
                    order_id=order_id,
                    created_at=now,
                )
            )
        try:
            session.commit()
        except IntegrityError:
            raise ConflictError("A request with this Idempotency-Key is still running") from None
        session.refresh(order)
        return Response(answer(Placed, order=order), status_code=201)


@app.route("/orders/{order_id}", methods=["GET"])
def get_order(order_id: str) -> Json:
    tenant_id, _ = caller()
    with Session(engine) as session:
        order = session.get(Order, (tenant_id, as_uuid(order_id)))
        if not order:
            raise NotFoundError("There is no such order")
        return answer(Single, order=order)


@app.route("/orders", methods=["GET"])
def list_orders() -> Json:
    tenant_id, user_id = caller()
    asked = validated(PageQuery, app.current_request.query_params or {})
    query = select(Order).where(Order.tenant_id == tenant_id)
    if asked.my_orders:
        query = query.where(Order.created_by == user_id)
    if asked.cursor:
        query = query.where(Order.order_id < place_in(asked.cursor))
    else:
        query = query.offset(asked.offset)
    # One more than asked: it tells whether there is a next page.
    query = query.order_by(Order.order_id.desc()).limit(asked.limit + 1).options(selectinload(Order.items))
    with Session(engine) as session:
        found = session.exec(query).all()
        return answer(
            Page,
            orders=found[: asked.limit],
            limit=asked.limit,
            offset=None if asked.cursor else asked.offset,
            next_cursor=cursor_after(found[asked.limit - 1]) if len(found) > asked.limit else None,
        )


def caller() -> tuple[str, str]:
    """The tenant and the user of the claims that API Gateway verified."""
    claims = app.current_request.context["authorizer"]["claims"]
    if not claims.get("custom:tenant_id"):
        raise ForbiddenError("Missing tenant_id in claims")
    return claims["custom:tenant_id"], claims["sub"]


def validated(model: type[SQLModel], values: Any) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UnprocessableEntityError(str(error)) from None


def answer(model: type[SQLModel], **members: Any) -> Json:
    return model.model_validate(members, from_attributes=True).model_dump(mode="json")


def as_uuid(order_id: str) -> UUID:
    try:
        return UUID(order_id)
    except ValueError:
        raise NotFoundError("There is no such order") from None


def cursor_after(order: Order) -> str:
    return urlsafe_b64encode(order.order_id.bytes).decode()


def place_in(cursor: str) -> UUID:
    try:
        return UUID(bytes=urlsafe_b64decode(cursor))
    except ValueError:
        raise BadRequestError("cursor must be the next_cursor of a page") from None
