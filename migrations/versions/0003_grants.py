"""Grants, complete: what orders_app needs, and nothing for any other role but the owner."""

from migrations.steps import execute, revoke_all

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """In one transaction, so that the API's grants are never missing."""
    revoke_all("schema_version", "orders", "order_items", "idempotency_keys", "rate_limits", "set_tenant")
    execute(
        """
        grant select, insert on orders, order_items, idempotency_keys to orders_app;
        grant select, insert, update on rate_limits to orders_app;
        grant select on schema_version to orders_app;
        grant execute on function set_tenant(text), set_tenant(text, integer) to orders_app;
        do $$ begin
            begin
                execute format('grant usage on schema %I to orders_app', current_schema());
                execute format('grant connect on database %I to orders_app', current_database());
            exception when insufficient_privilege then
                null;  -- PUBLIC may have both
            end;
            if not (has_schema_privilege('orders_app', current_schema(), 'USAGE')
                    and has_database_privilege('orders_app', current_database(), 'CONNECT')) then
                raise exception '% may not let orders_app connect', current_user
                    using hint = format(
                        'As their owners: grant connect on database %I to orders_app; '
                        'grant usage on schema %I to orders_app;', current_database(), current_schema());
            end if;
        end $$;
        """
    )
