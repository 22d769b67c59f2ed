"""Checks that row-level security binds the session's role. Runs in the session's first string.

A `do` block instead of a function of the schema: the checked role may own such a function and replace it, and
a `do` block works on a database of any schema version.
"""

UNSAFE_ROLE = "OA001"
"""A custom SQLSTATE, from the classes that SQL leaves to implementations (ISO/IEC 9075-2, 24.1)."""
ROLE_CHECK = b"""do $$ declare found text;
    -- No backslashes: standard_conforming_strings may be off. Quotes: quote_all_identifiers may be on.
    bound constant text := '^[(]+"?tenant_id"?[)]*(::"?text"?)? = '
        '"?current_setting"?[(]''app[.]tenant_id''::"?text"?, true[)][)]*$';
begin
    select case when rolname = current_user then '' else 'may become ' || rolname || ', which ' end
           || case when rolsuper then 'is a superuser' when rolbypassrls then 'has BYPASSRLS'
                   else 'has CREATEROLE, before PostgreSQL 16 a way into every other role' end
        into found from pg_roles
        where (rolsuper or rolbypassrls
               or (rolcreaterole and current_setting('server_version_num')::integer < 160000))
          and (pg_has_role(oid, 'MEMBER') or pg_has_role(session_user, oid, 'MEMBER'))
        order by rolname <> current_user, rolname limit 1;
    if found is null and current_setting('row_security') = 'off' then
        found := 'has row_security = off, and PostgreSQL refuses its statements';
    end if;
    if found is null then
        select case when is_owner then 'owns the table ' || relname
                    when not relrowsecurity then 'sees every tenant: row-level security is off on ' || relname
                    when not relforcerowsecurity
                        then 'is not enough: row-level security is not forced on ' || relname
                    when polname is null then 'sees nothing at all: there is no policy for it on ' || relname
                    else 'may do more than its tenant by the policy ' || polname || ' on ' || relname end
            into found from pg_class left join pg_policy
                on polrelid = pg_class.oid and polpermissive
                   and exists (select from unnest(polroles) as of_role
                               where of_role = 0 or pg_has_role(of_role, 'MEMBER')
                                     or pg_has_role(session_user, of_role, 'MEMBER')),
                lateral (select
                    pg_has_role(relowner, 'MEMBER') or pg_has_role(session_user, relowner, 'MEMBER'),
                    pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid))
                    as its (is_owner, reads, writes)
            where pg_class.oid in (to_regclass('orders'), to_regclass('order_items'),
                                   to_regclass('idempotency_keys'), to_regclass('rate_limits'))
              and (is_owner or not (relrowsecurity and relforcerowsecurity)
                   or coalesce(reads, writes, '') !~ bound or coalesce(writes, reads, '') !~ bound)
            order by relname limit 1;
    end if;
    if found is not null then
        raise exception using errcode = 'OA001', message = format('the role %s %s', current_user, found);
    end if;
end $$;
"""
"""Raises UNSAFE_ROLE with the reason. Passes while the tables do not exist: there is no data to protect."""
