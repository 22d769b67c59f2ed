"""What migrations are made of. Each function runs its SQL, or prints it for `make migrate SQL=1`.

A change of a large table takes several migrations, so that no lock is held while rows are read: a column with
a default for new rows, and `show_rows_to_owner`; `backfill`; constraints NOT VALID; VALIDATE, which checks
only rows that the owner sees; `hide_rows_from_owner` (docs/migrations.md).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from textwrap import dedent

from alembic import context, op

from migrations.progress import Progress
from migrations.session import LOCK_TIMEOUT

BATCH = 2000
"""Rows that `backfill` locks at a time, for some hundredths of a second."""


def execute(sql: str) -> None:
    """Run one or several statements."""
    op.execute(dedent(sql).strip().removesuffix(";"))


@contextmanager
def outside_transaction() -> Iterator[None]:
    """Each statement commits by itself, and waits for its lock as long as it takes.

    For what never blocks the API: CONCURRENTLY, VALIDATE, ANALYZE and `backfill`.
    """
    with op.get_context().autocommit_block():
        execute("set lock_timeout = 0")
        yield
        execute(f"set lock_timeout = '{LOCK_TIMEOUT}'")


def lock(*tables: str) -> None:
    """Lock tables against all use, for what needs it and takes milliseconds, in one transaction.

    List them in the order in which a create writes them, so that neither deadlocks. The weaker lock, which
    blocks no request, is waited for first: PostgreSQL cancels an autovacuum that another session has waited
    for deadlock_timeout, a second by default.
    """
    names = ", ".join(tables)
    execute(
        f"""
        set local lock_timeout = '5s';
        lock table {names} in share update exclusive mode;
        set local lock_timeout = '{LOCK_TIMEOUT}';
        lock table {names} in access exclusive mode;
        """
    )


def build_index(name: str, kind: str, definition: str) -> None:
    """Build an index while the table is written to. One left over from a failed run is replaced."""
    execute(f"drop index concurrently if exists {name}")
    with nullcontext() if context.is_offline_mode() else _progress().index_build(name):
        execute(f"create {kind} index concurrently {name} on {definition}")


def revoke_all(*names: str) -> None:
    """Revoke every privilege on these tables and functions from every role but their owner.

    For all that a migration creates: default privileges may have granted it to other roles, and TRUNCATE
    ignores row-level security. Grant what orders_app needs in the same transaction.
    """
    listed = ", ".join(f"'{name}'" for name in names)
    execute(
        f"""
        do $$ declare object text; grantee text; is_foreign boolean; begin
            for object, grantee, is_foreign in
                select distinct its.object,
                       case its.grantee when 0 then 'public' else its.grantee::regrole::text end,
                       its.grantee <> 'orders_app'::regrole
                from (
                    select format('table %s', oid::regclass), (aclexplode(relacl)).grantee, relowner
                        from pg_class
                        where relnamespace = current_schema()::regnamespace and relname in ({listed})
                    union all
                    select format('table %s', attrelid::regclass), (aclexplode(attacl)).grantee, relowner
                        from pg_attribute join pg_class on pg_class.oid = attrelid
                        where relnamespace = current_schema()::regnamespace and relname in ({listed})
                    union all
                    select format('function %s', oid::regprocedure),
                           (aclexplode(coalesce(proacl, acldefault('f', proowner)))).grantee, proowner
                        from pg_proc
                        where pronamespace = current_schema()::regnamespace and proname in ({listed})
                ) as its (object, grantee, owner)
                where its.grantee <> its.owner
            loop
                execute format('revoke all on %s from %s cascade', object, grantee);
                if is_foreign then
                    raise warning 'revoked: all on % from %', object, grantee;
                end if;
            end loop;
        end $$;
        """
    )


def show_rows_to_owner(table: str) -> None:
    """Let the owner see and change all tenants' rows, until `hide_rows_from_owner`.

    By a policy for the owner alone: row-level security stays forced, else the API would refuse to serve.
    """
    execute(f"create policy migration on {table} to current_user using (true) with check (true)")


def hide_rows_from_owner(table: str) -> None:
    execute(f"drop policy migration on {table}")


def backfill(table: str, key: Sequence[str], assignments: str, condition: str) -> None:
    """Set columns in all rows that meet the condition, in batches that commit one by one.

    `key`: the primary key's columns. Repeatable: a row that an interrupted run has set no longer meets the
    condition. The owner must see the rows (`show_rows_to_owner`).
    """
    columns, marks = ", ".join(key), ", ".join(["%L"] * len(key))
    last = ", ".join(f"(array_agg({name} order by {columns}))[count(*)]" for name in key)
    batch = f"""
        with batch as materialized (
            select {columns} from {table} where {{after}} order by {columns} limit {BATCH}
        ), done as (
            update {table} set {assignments} from batch
            where {" and ".join(f"{table}.{name} = batch.{name}" for name in key)} and ({condition})
        )
        select count(*), format('({columns}) > ({marks})', {last}) from batch"""
    with outside_transaction():
        if context.is_offline_mode():
            execute(
                f"""
                do $do$ declare rows bigint; after text := 'true'; begin
                    loop
                        execute replace($batch${batch}$batch$, '{{after}}', after) into rows, after;
                        exit when rows = 0;
                        commit;
                    end loop;
                end $do$;
                """
            )
        else:
            _in_batches(table, batch)


def _in_batches(table: str, batch: str) -> None:
    connection, after = op.get_bind(), "true"
    total = connection.exec_driver_sql(f"select count(*) from {table}").scalar_one()
    with _progress().bar(f"Backfill of {table}", total) as advance:
        while True:
            sql = batch.replace("{after}", after).replace("%", "%%")
            rows, after = connection.exec_driver_sql(sql).one()
            if not rows:
                return
            advance(rows)


def _progress() -> Progress:
    progress: Progress = context.config.attributes["progress"]
    return progress
