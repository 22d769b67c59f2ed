-- The schema of the order API, for PostgreSQL 15 to 18.
--
-- This is what an empty database gets. Apply it as the owner of the database, who needs CREATEROLE the
-- first time:
--     psql "$OWNER_DATABASE_URL" -v ON_ERROR_STOP=1 -f schema.sql
-- Applied again it changes nothing. A database of an earlier release is migrated with `make migrate`.
--
-- Every key starts with tenant_id, so that the tables can be distributed by tenant without changes.
-- Text in keys, indexes and checks is compared byte by byte (collate "C"): another collation depends on the
-- operating system's library, and its upgrade would make an index miss rows that exist.

begin;

do $$ begin
    if current_setting('server_encoding') <> 'UTF8' then
        raise exception 'the database is encoded as %, UTF8 is needed', current_setting('server_encoding')
            using hint = 'create database orders encoding ''UTF8'' template template0';
    end if;
end $$;

do $$ begin
    -- A lock: two deployments that apply the file at the same time must not race.
    perform pg_advisory_xact_lock(hashtext('order-api schema'));
end $$;

do $$ declare found integer; begin
    if to_regclass('schema_version') is not null then
        select max(version) into found from schema_version;
    end if;
    if to_regclass('orders') is not null and found is null then
        raise exception 'there is a table orders, but no version of it in schema_version'
            using hint = 'Take an empty database, or restore the row of schema_version.';
    elsif (select relnamespace from pg_class where oid = to_regclass('orders')) <> current_schema()::regnamespace then
        raise exception 'the table orders is in another schema than %', current_schema()
            using hint = 'Set search_path to the schema of the tables.';
    elsif found < 7 then
        raise exception 'this database is at schema version %, this file is version 7', found
            using hint = 'make migrate OWNER_DATABASE_URL=... brings it to version 7.';
    elsif found > 7 then
        raise exception 'this database is at schema version %, this file is version 7', found
            using hint = 'Apply the schema.sql that belongs to the newest deployed release.';
    end if;
end $$;

-- One row: the last migration in migrations/versions that this database has. Alembic updates it.
create table if not exists schema_version (
    version_num  varchar(32) collate "C"  not null,
    version      integer                  generated always as (version_num::integer) stored,
    constraint schema_version_pkey primary key (version_num)
);


-- Roles -------------------------------------------------------------------------------------

-- The API logs in as orders_app, which owns nothing and cannot bypass row-level security.
-- It is created without a password: set one with
--     alter role orders_app password '...';
do $$ declare already text[]; begin
    if not exists (select from pg_roles where rolname = 'orders_app') then
        create role orders_app login;
    end if;
    -- Both are shorter than every cloud's function timeout. Values that an operator has set are kept.
    select coalesce(array_agg(split_part(setting, '=', 1)), '{}') into already
        from pg_db_role_setting, unnest(setconfig) as setting
        where setrole = 'orders_app'::regrole
          and setdatabase in (0, (select oid from pg_database where datname = current_database()));
    if 'statement_timeout' <> all (already) then
        alter role orders_app set statement_timeout = '5s';
    end if;
    if 'lock_timeout' <> all (already) then
        alter role orders_app set lock_timeout = '2s';
    end if;
exception when insufficient_privilege then
    raise exception '% may not make orders_app or set its timeouts', current_user
        using hint = 'As an administrator: create role orders_app login; '
                     'alter role orders_app set statement_timeout = ''5s''; '
                     'alter role orders_app set lock_timeout = ''2s'';';
end $$;

-- Prepared statements are planned once, not again for each tenant's values: each has one suitable plan,
-- an index scan. Without this setting the API is slower, but correct.
do $$ begin
    if not exists (select from pg_db_role_setting, unnest(setconfig) as setting
                   where setrole = 'orders_app'::regrole
                     and setdatabase in (0, (select oid from pg_database where datname = current_database()))
                     and setting like 'plan_cache_mode=%') then
        alter role orders_app set plan_cache_mode = 'force_generic_plan';
    end if;
exception when insufficient_privilege then
    raise notice 'as an administrator: alter role orders_app set plan_cache_mode = force_generic_plan;';
end $$;


-- Tenancy -----------------------------------------------------------------------------------

-- Sets the tenant for the rest of the transaction. The API sends `select set_tenant('...');` in front of
-- its statements in the same string: one round trip, one implicit transaction, and no state left on the
-- connection afterwards. (Citus does not send set_config() to its workers.)
create or replace function set_tenant(tenant text) returns void
language plpgsql as $$
begin
    execute pg_catalog.format('set local app.tenant_id = %L', tenant);
end $$;

-- The same, with a statement_timeout for this transaction, where the host's deadline is near. A shorter
-- statement_timeout of the role stays in effect.
create or replace function set_tenant(tenant text, milliseconds integer) returns void
language plpgsql as $$
declare given interval := pg_catalog.current_setting('statement_timeout')::interval;
begin
    execute pg_catalog.format('set local app.tenant_id = %L', tenant);
    if given = interval '0' or given > pg_catalog.make_interval(secs => milliseconds / 1000.0) then
        execute pg_catalog.format('set local statement_timeout = %s', milliseconds);
    end if;
end $$;


-- Tables ------------------------------------------------------------------------------------

-- One order. order_id is a UUID version 7 that the API generates: the primary key serves both
-- `where tenant_id = ? and order_id = ?` and the list, newest first.
create table if not exists orders (
    tenant_id         text          collate "C"  not null,
    order_id          uuid                       not null,
    created_by        varchar(255)  collate "C"  not null,
    status            text          collate "C"  not null,
    version           integer                    not null,
    customer_name     varchar(255)               not null,
    customer_email    varchar(254)               not null,
    customer_phone    varchar(255),
    shipping_address  varchar(2000),
    billing_address   varchar(2000),
    -- With the currency's number of decimals: 99.99 USD, 100 JPY. numeric without a scale preserves them.
    total_amount      numeric                    not null,
    currency          char(3)       collate "C"  not null,
    created_at        timestamptz                not null,
    updated_at        timestamptz                not null,

    constraint orders_pkey           primary key (tenant_id, order_id),
    -- After the first SET LOCAL the setting is '' for the rest of the session: '' must not be a tenant.
    constraint orders_tenant_named   check (char_length(tenant_id) between 1 and 255),
    constraint orders_status_known   check (status in ('pending')),
    constraint orders_version_counts check (version >= 1),
    constraint orders_amount_range   check (total_amount between 0 and 999999999999.999
                                            and scale(total_amount) <= 4),
    constraint orders_currency_code  check (currency ~ '^[A-Z]{3}$')
);

-- `my_orders`: where tenant_id = ? and created_by = ? order by order_id desc
-- (`create index if not exists` would lock the table before it checks, and wait for all running writes.)
do $$ begin
    if to_regclass('orders_created_by_idx') is null then
        create index orders_created_by_idx on orders (tenant_id, created_by, order_id);
    end if;
end $$;

-- The planner's estimate where it does not know the tenant, as in a prepared statement and in the foreign
-- key's query: a thousand orders per tenant. With statistics of many tenants with one order each, every index
-- that starts with tenant_id would look equally good, and a query could read all orders of a large tenant.
do $$ begin
    if not exists (select from pg_attribute, unnest(attoptions) as option  -- an operator's own value is kept
                   where attrelid = 'orders'::regclass and attname = 'tenant_id' and option like 'n_distinct=%') then
        alter table orders alter column tenant_id set (n_distinct = -0.001);
    end if;
end $$;

-- One line of an order; line_no (1..n) is its position in the request.
create table if not exists order_items (
    tenant_id     text collate "C"  not null,
    order_id      uuid              not null,
    line_no       integer           not null,
    product_name  varchar(255)      not null,
    product_sku   varchar(255)      not null,
    quantity      integer           not null,
    unit_price    numeric           not null,

    constraint order_items_pkey           primary key (tenant_id, order_id, line_no),
    constraint order_items_order_fkey     foreign key (tenant_id, order_id) references orders (tenant_id, order_id),
    constraint order_items_tenant_named   check (char_length(tenant_id) between 1 and 255),
    constraint order_items_line_range     check (line_no between 1 and 500),
    constraint order_items_quantity_range check (quantity between 1 and 1000000),
    constraint order_items_amount_range   check (unit_price between 0 and 999999999999.999
                                                 and scale(unit_price) <= 4)
);

-- One Idempotency-Key that placed an order. It is inserted in the order's transaction, before the order,
-- so that a second request with the same key waits here before it does any work. Therefore it has no
-- foreign key to orders.
create table if not exists idempotency_keys (
    tenant_id        text          collate "C"  not null,
    created_by       varchar(255)  collate "C"  not null,
    idempotency_key  varchar(255)  collate "C"  not null,
    -- SHA-256 of the request (chalicelib/orders/fingerprint.py): the key is refused with a different one.
    fingerprint      char(64)                   not null,
    order_id         uuid                       not null,
    created_at       timestamptz                not null,

    constraint idempotency_keys_pkey         primary key (tenant_id, created_by, idempotency_key),
    constraint idempotency_keys_tenant_named check (char_length(tenant_id) between 1 and 255)
);

-- One tenant's rate limit state, with RATE_LIMIT set: the time until which its turns are taken, in seconds
-- since 1970. Each turn moves it forward by one interval; a turn that would move it further ahead of the clock
-- than the limit's period is refused (the generic cell rate algorithm, ITU-T I.371). Unlogged: no write waits
-- for the disk, and a crash resets all limits.
create unlogged table if not exists rate_limits (
    tenant_id    text    collate "C"  not null,
    taken_until  float8               not null,

    constraint rate_limits_pkey         primary key (tenant_id),
    constraint rate_limits_tenant_named check (char_length(tenant_id) between 1 and 255)
) with (fillfactor = 20);  -- frequent updates stay within the page (HOT)


-- Row-level security limits every statement to its tenant, even one without a tenant filter. While no
-- tenant is set, no row can be read or written. FORCE applies it to the owner too.
do $$ declare tenant_table text; begin
    foreach tenant_table in array array['orders', 'order_items', 'idempotency_keys', 'rate_limits'] loop
        if not (select relrowsecurity and relforcerowsecurity
                from pg_class where oid = tenant_table::regclass) then
            execute format('alter table %I enable row level security', tenant_table);
            execute format('alter table %I force row level security', tenant_table);
        end if;
        if not exists (select from pg_policy
                       where polrelid = tenant_table::regclass and polname = 'tenant_isolation') then
            execute format('create policy tenant_isolation on %I '
                           'using (tenant_id = current_setting(''app.tenant_id'', true)) '
                           'with check (tenant_id = current_setting(''app.tenant_id'', true))',
                           tenant_table);
        end if;
    end loop;
end $$;


-- Grants: only what the API needs, and nothing for any other role. It can neither change nor delete an order.
-- (Default privileges, such as Supabase's for `anon`, grant everything on each new table and function, and
-- TRUNCATE ignores row-level security.) Grants that you add later are kept.
do $$ declare object text; grantee text; begin
    if exists (select from schema_version) then
        return;
    end if;
    for object, grantee in
        select distinct its.object,
               case its.grantee when 0 then 'public' else its.grantee::regrole::text end
        from (
            select format('table %s', oid::regclass), (aclexplode(relacl)).grantee, relowner
                from pg_class
                where relnamespace = current_schema()::regnamespace
                  and relname in ('schema_version', 'orders', 'order_items', 'idempotency_keys', 'rate_limits')
            union all
            select format('function %s', oid::regprocedure),
                   (aclexplode(coalesce(proacl, acldefault('f', proowner)))).grantee, proowner
                from pg_proc
                where pronamespace = current_schema()::regnamespace and proname = 'set_tenant'
        ) as its (object, grantee, owner)
        where its.grantee <> its.owner
    loop
        execute format('revoke all on %s from %s cascade', object, grantee);
    end loop;
end $$;
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
            using hint = format('As an administrator: create role orders_app login; '
                                'grant connect on database %I to orders_app; '
                                'grant usage on schema %I to orders_app;', current_database(), current_schema());
    end if;
end $$;

insert into schema_version (version_num) select '0007' where not exists (select from schema_version);

commit;
