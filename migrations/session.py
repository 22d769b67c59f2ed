"""The SQL before the migrations of a run, on their connection and in the output for a DBA."""

LOCK_TIMEOUT = "200ms"
"""A migration waits so long for each table, and requests behind it. Then they run, and it is retried."""

SESSION = f"""\
set lock_timeout = '{LOCK_TIMEOUT}';
set statement_timeout = 0;
set idle_in_transaction_session_timeout = 0;
set idle_session_timeout = 0;
set client_connection_check_interval = '2s';  -- a build does not go on after a killed run
set row_security = on;
select set_config(name, '0', false) from pg_settings where name = 'transaction_timeout';  -- PostgreSQL 17
set client_min_messages = warning;
do $$ declare owner name; home regnamespace; begin
    select rolname, relnamespace into owner, home from pg_class join pg_roles on pg_roles.oid = relowner
        where pg_class.oid = 'orders'::regclass;
    if home is distinct from current_schema()::regnamespace then
        raise exception 'the tables are in the schema %, not in %', home, current_schema()
            using hint = format('set search_path = %s', home);
    end if;
    if owner <> current_user then
        raise exception 'migrations run as %, who owns the tables, not as %', owner, current_user
            using hint = format('log in as %1$I, or: set role %1$I', owner);
    end if;
end $$;
"""

ADOPT = """\
-- The versions that release 1.0.0 recorded become the one row that Alembic updates.
do $$ declare found integer; begin
    if exists (select from pg_attribute
               where attrelid = 'schema_version'::regclass and attname = 'version_num') then
        return;
    end if;
    select max(version) into found from schema_version;
    if found is distinct from 2 then
        raise exception 'this database is at schema version %, migrations start at version 2', found
            using hint = 'First apply the schema.sql of release 1.0.0.';
    end if;
    drop table schema_version;
    create table schema_version (
        version_num  varchar(32) collate "C"  not null,
        version      integer                  generated always as (version_num::integer) stored,
        constraint schema_version_pkey primary key (version_num)
    );
    insert into schema_version (version_num) values ('0002');
    grant select on schema_version to orders_app;
end $$;
"""

EXPECT = """\
do $$ declare found integer := (select max(version) from schema_version); begin
    if found is distinct from {version} then
        raise exception 'this database is at schema version %, this file begins after version {version}',
            found
            using hint = format('make -s migrate SQL=1 FROM=%s', found);
    end if;
end $$;
"""
