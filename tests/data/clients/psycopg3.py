"""What psycopg 3 does with a connection: prints one JSON object."""
import json
import psycopg

out = {}
with psycopg.connect("", autocommit=True) as c:
    out["rows"] = c.execute("SELECT id, name, email FROM customers WHERE id <= %s ORDER BY id", (3,)).fetchall()
    out["binary"] = c.cursor(binary=True).execute("SELECT id, email, iban FROM customers WHERE id = %s", (4,)).fetchall()
    for _ in range(8):  # prepares on the server from the fifth time on
        out["prepared"] = c.execute("SELECT total FROM orders WHERE id = %s", (1,)).fetchone()[0].__str__()
    try:
        c.execute("DROP TABLE orders")
    except psycopg.errors.InsufficientPrivilege as e:
        out["denied"] = e.diag.message_primary
    try:
        c.execute("SELECT upper(email) FROM customers WHERE id = %s", (1,))
    except psycopg.Error as e:
        out["shape"] = e.sqlstate
    with c.transaction():
        with c.cursor(name="server_side") as cur:
            cur.itersize = 2
            cur.execute("SELECT email FROM customers ORDER BY id LIMIT 5")
            out["cursor"] = [r[0] for r in cur]
    with c.pipeline():
        cursors = [c.execute("SELECT %s::int + 1", (n,)) for n in range(5)]
        out["pipeline"] = [cur.fetchone()[0] for cur in cursors]
    with c.cursor().copy("COPY (SELECT id, email FROM customers WHERE id <= 3) TO STDOUT") as copy:
        out["copy"] = [[str(v) for v in row] for row in copy.rows()]
    out["next"] = c.execute("SELECT 'next'").fetchone()[0]
print(json.dumps(out))
