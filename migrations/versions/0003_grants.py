"""Grants, complete: what orders_app needs, and nothing for any other role but the owner.

Also refuses, before anything is built, what version 5 could not change.
"""

from migrations.steps import execute, revoke_all

revision = "0003"
down_revision = "0002"


# What depends on the columns that version 5 changes would stop it, or be rebuilt while the tables are locked.
_REFUSE_DEPENDENTS = """
    do $$ declare others text; begin
        select string_agg(distinct pg_describe_object(classid, objid, objsubid), ', ') into others
            from pg_depend join pg_attribute on attrelid = refobjid and attnum = refobjsubid
            left join pg_constraint on classid = 'pg_constraint'::regclass and pg_constraint.oid = objid
            left join pg_policy on classid = 'pg_policy'::regclass and pg_policy.oid = objid
            left join pg_class on classid = 'pg_class'::regclass and pg_class.oid = objid
            where refclassid = 'pg_class'::regclass
              and refobjid in ('orders'::regclass, 'order_items'::regclass, 'idempotency_keys'::regclass)
              and attname in ('tenant_id', 'created_by', 'status', 'currency', 'idempotency_key')
              and coalesce(conname, polname, relname, 'other') !~
                  '^((orders|order_items|idempotency_keys)_|tenant_isolation$)';
        if others is not null then
            raise exception 'version 5 changes columns that these use: %', others
                using hint = 'Drop them (indexes concurrently), and create them again after make migrate.';
        end if;
        if to_regclass('pg_dist_partition') is not null then
            raise exception 'a distributed table cannot change its columns'
                using hint = 'Copy the orders into a new database: docs/moving.md.';
        end if;
    end $$;
    """


def upgrade() -> None:
    """In one transaction, so that the API's grants are never missing."""
    execute(_REFUSE_DEPENDENTS)
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
