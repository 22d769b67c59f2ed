"""Checks the schema's version, and whether roles have privileges that schema.sql does not grant.

SCHEMA_CHECK runs once in a process, in its first string, after the role check. What it finds is logged and no
request fails for it: an older schema may still serve most requests, and a grant may be an operator's own.
/health/ready is 503 on an older schema.
"""

import re
from collections.abc import Iterable, Iterator

SCHEMA_VERSION = 7
"""What this release needs: the newest of migrations/versions, and what schema.sql makes."""
SELECT_VERSION = b"select max(version) from schema_version"
_WARNING = re.compile(r"[^:\n]+:\s+order-api: (.*)")
"""The severity, which is translated, and a message of SCHEMA_CHECK."""

SCHEMA_CHECK = rb"""do $$ declare current integer; foreign_grants text; begin
    if has_table_privilege(to_regclass('schema_version'), 'SELECT') then
        select max(version) into current from schema_version;
        if current < NEEDED then
            raise warning 'order-api: the schema is at version %, this release needs NEEDED (make migrate)',
                current;
        end if;
    end if;
    select string_agg(format('%s on %s to %s', privileges, object, grantee), '; ') into foreign_grants from (
        select string_agg(distinct privilege_type, ', '), object,
               case grantee when 0 then 'public' else grantee::regrole::text end
            from (select relname, relowner, (aclexplode(relacl)).* from pg_class
                      where oid in (to_regclass('orders'), to_regclass('order_items'),
                                    to_regclass('idempotency_keys'), to_regclass('rate_limits'),
                                    to_regclass('schema_version'))
                  union all
                  select relname, relowner, (aclexplode(attacl)).* from pg_attribute join pg_class
                      on pg_class.oid = attrelid
                      where attrelid in (to_regclass('orders'), to_regclass('order_items'),
                                         to_regclass('idempotency_keys'), to_regclass('rate_limits'),
                                         to_regclass('schema_version'))
                  union all
                  select proname, proowner, (aclexplode(coalesce(proacl, acldefault('f', proowner)))).*
                      from pg_proc where oid in (to_regprocedure('set_tenant(text)'),
                                                 to_regprocedure('set_tenant(text, integer)'))
                 ) as its (object, owner, grantor, grantee, privilege_type)
            where grantee <> owner
              and (not pg_has_role(grantee, 'MEMBER')
                   or privilege_type in ('DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER', 'MAINTAIN'))
            group by object, grantee order by object, grantee
        ) as its (privileges, object, grantee);
    if foreign_grants is not null then
        raise warning 'order-api: roles have privileges that schema.sql does not grant: %', foreign_grants;
    end if;
end $$;
""".replace(b"NEEDED", str(SCHEMA_VERSION).encode())


def warnings(notices: Iterable[str]) -> Iterator[str]:
    """What SCHEMA_CHECK found, from psycopg2's connection.notices.

    Other notices are dropped: with log_statement and client_min_messages they quote the request.
    """
    for notice in notices:
        if found := _WARNING.match(notice):
            yield found[1]
