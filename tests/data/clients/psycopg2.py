"""What psycopg2 does with a connection: prints one JSON object."""
import io
import json
import psycopg2

out = {}
c = psycopg2.connect("")
c.autocommit = True
cur = c.cursor()
cur.execute("SELECT id, name, email FROM customers WHERE id <= %s ORDER BY id", (3,))
out["rows"] = cur.fetchall()
try:
    cur.execute("DROP TABLE orders")
except psycopg2.errors.InsufficientPrivilege as e:
    out["denied"] = e.diag.message_primary
try:
    cur.execute("SELECT upper(email) FROM customers WHERE id = %s", (1,))
except psycopg2.Error as e:
    out["shape"] = e.pgcode
buffer = io.StringIO()
cur.copy_expert("COPY (SELECT id, email FROM customers WHERE id <= 3) TO STDOUT", buffer)
out["copy"] = [line.split("\t") for line in buffer.getvalue().splitlines()]
c.autocommit = False
named = c.cursor("server_side")
named.itersize = 2
named.execute("SELECT email FROM customers ORDER BY id LIMIT 5")
out["cursor"] = [r[0] for r in named]
c.rollback()
cur.execute("SELECT 'next'")
out["next"] = cur.fetchone()[0]
print(json.dumps(out))
