// What node-postgres does with a connection: prints one JSON object.
const fs = require('fs');
const { Client } = require('pg');

(async () => {
  const ssl = { ca: fs.readFileSync(process.env.PGSSLROOTCERT, 'utf8') };
  delete process.env.PGSSLMODE;
  const c = new Client({ ssl });
  await c.connect();
  const out = {};
  const rows = async (q) => (await c.query({ ...q, rowMode: 'array' })).rows;
  out.rows = await rows({ text: 'SELECT id::int, name, email FROM customers WHERE id <= $1 ORDER BY id', values: [3] });
  for (let i = 0; i < 3; i++) {
    out.prepared = (await rows({ name: 'p', text: 'SELECT total FROM orders WHERE id = $1', values: [1] }))[0][0];
  }
  await c.query('DROP TABLE orders').catch((e) => { out.denied = e.message; });
  await c.query({ text: 'SELECT upper(email) FROM customers WHERE id = $1', values: [1] })
    .catch((e) => { out.shape = e.code; });
  out.pipeline = (await Promise.all([0, 1, 2, 3, 4].map((n) =>
    rows({ text: 'SELECT $1::int + 1', values: [n] })))).map((r) => r[0][0]);
  out.next = (await rows({ text: "SELECT 'next'" }))[0][0];
  await c.end();
  console.log(JSON.stringify(out));
})().catch((e) => { console.error(e); process.exit(1); });
