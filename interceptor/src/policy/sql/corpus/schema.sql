-- The database the corpus runs against. Masked: customers.email (partial), customers.card
-- (redact), events.payload (null), v_phone.phone (hash; a rule on a view's own column).
CREATE SCHEMA app;
CREATE SCHEMA evil;
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN posint AS integer CHECK (VALUE > 0);
CREATE TABLE customers (
    id integer PRIMARY KEY, name text NOT NULL, email text UNIQUE, card text, phone text,
    age integer, m mood, tags text[], data jsonb, created_at timestamptz DEFAULT now(),
    lower_email text GENERATED ALWAYS AS (lower(email)) STORED,
    double_age integer GENERATED ALWAYS AS (age * 2) STORED);
CREATE TABLE orders (
    id integer PRIMARY KEY, customer_id integer REFERENCES customers (id), total numeric, note text,
    email_sent boolean DEFAULT false);
CREATE TABLE mails (id serial PRIMARY KEY, email text, body text);
CREATE TABLE vip (level integer) INHERITS (customers);
CREATE TABLE events (at date NOT NULL, kind text, payload text) PARTITION BY RANGE (at);
CREATE TABLE events_2025 PARTITION OF events FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE app.settings (key text PRIMARY KEY, value text);
CREATE VIEW v_names AS SELECT id, name FROM customers;
CREATE VIEW v_mails AS SELECT c.id, c.email AS mail, c.name FROM customers c;
CREATE VIEW v_all AS SELECT * FROM customers;
CREATE VIEW v_nested AS SELECT v.mail AS m2, o.total FROM v_mails v JOIN orders o ON o.customer_id = v.id;
CREATE VIEW v_initial AS SELECT id, left(email, 1) AS initial FROM customers;
CREATE VIEW v_filtered AS SELECT id, name FROM customers WHERE email LIKE '%@example.com';
CREATE VIEW v_union AS SELECT email FROM customers UNION ALL SELECT email FROM mails;
CREATE VIEW v_phone AS SELECT id, phone FROM customers;
CREATE VIEW v_cte AS WITH x AS (SELECT id, email FROM customers) SELECT x.id, x.email FROM x;
CREATE MATERIALIZED VIEW mv_mails AS SELECT id, email FROM customers;
CREATE FUNCTION get_email(i integer) RETURNS text LANGUAGE sql STABLE AS 'SELECT email FROM customers WHERE id = i';
CREATE FUNCTION all_customers() RETURNS SETOF customers LANGUAGE sql STABLE AS 'SELECT * FROM customers';
CREATE FUNCTION evil.lower(integer) RETURNS text LANGUAGE sql STABLE AS 'SELECT email FROM public.customers WHERE id = $1';
CREATE FUNCTION evil.peek(integer, integer) RETURNS boolean LANGUAGE sql STABLE AS 'SELECT $1 = $2';
CREATE OPERATOR evil.=== (LEFTARG = integer, RIGHTARG = integer, FUNCTION = evil.peek);
CREATE TABLE ruled (id integer, x text);
CREATE RULE r AS ON INSERT TO ruled DO ALSO SELECT * FROM customers;
CREATE PROCEDURE clean() LANGUAGE plpgsql AS 'BEGIN DELETE FROM orders; END';
CREATE FOREIGN DATA WRAPPER fdw;
CREATE SERVER loop FOREIGN DATA WRAPPER fdw;
CREATE FOREIGN TABLE far (id integer, email text) SERVER loop;
INSERT INTO customers (id, name, email, card, phone, age) VALUES (1, 'Alice', 'alice@example.com', '4111111111111111', '+1', 30);
INSERT INTO orders (id, customer_id, total) VALUES (1, 1, 10);
