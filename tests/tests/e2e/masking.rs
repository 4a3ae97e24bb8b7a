//! Masked values never arrive, whatever way a statement asks for them.

use anyhow::Result;
use interceptor_tests::bed::Bed;
use interceptor_tests::data;

use crate::assert_masked;

/// Statements that read masked columns in a shape the first ring knows.
const PASS: &[&str] = &[
    "SELECT id, name, email, card_number, iban, national_id FROM customers ORDER BY id LIMIT 9",
    "SELECT * FROM customers WHERE id < 10",
    "SELECT * FROM public.customers c WHERE c.id BETWEEN 1 AND 9",
    "SELECT c.email, o.total FROM customers c JOIN orders o ON o.customer_id = c.id WHERE c.id < 10",
    "SELECT * FROM contacts WHERE id < 10",
    "TABLE contacts LIMIT 9",
    "SELECT email AS id FROM customers WHERE id < 10",
    "BEGIN; DECLARE c CURSOR FOR SELECT email, card_number FROM customers WHERE id < 10; \
     FETCH ALL FROM c; COMMIT",
    "PREPARE p AS SELECT email, iban FROM customers WHERE id < 10; EXECUTE p",
    "COPY (SELECT id, email, iban FROM customers WHERE id < 10) TO STDOUT",
    "COPY customers (id, email, card_number) TO STDOUT",
    "COPY customers TO STDOUT WITH (FORMAT csv, HEADER)",
];

/// Statements that would compute with a masked value, or show it another way.
const REFUSE: &[&str] = &[
    "SELECT upper(email) FROM customers WHERE id = 1",
    "SELECT email || '' FROM customers WHERE id = 1",
    "SELECT email::text FROM customers WHERE id = 1",
    "SELECT id FROM customers WHERE email LIKE 'a%'",
    "SELECT id FROM customers ORDER BY email LIMIT 1",
    "SELECT id, email FROM customers ORDER BY 2 LIMIT 1",
    "SELECT c FROM customers c WHERE id = 1",
    "SELECT c.* = c.* FROM customers c WHERE id = 1",
    "SELECT row_to_json(c) FROM customers c WHERE id = 1",
    "SELECT to_jsonb(c) FROM customers c WHERE id = 1",
    "SELECT email(c) FROM customers c WHERE id = 1",
    "SELECT id FROM customers c WHERE email(c) LIKE 'a%'",
    "SELECT * FROM customers NATURAL JOIN archive.customers a",
    "SELECT c.id FROM customers c JOIN contacts d USING (email)",
    "SELECT email FROM customers WHERE id = 1 UNION ALL SELECT 'x'",
    "SELECT min(email) FROM customers",
    "SELECT count(DISTINCT email) FROM customers",
    "SELECT (SELECT email FROM customers WHERE id = 1)",
    "WITH c AS (SELECT email AS e FROM customers) SELECT e || 'x' FROM c",
    "SELECT CASE WHEN email LIKE 'a%' THEN 1 ELSE 1/0 END FROM customers",
    "SELECT query_to_xml('SELECT email FROM customers', true, true, '')",
    "SELECT * FROM pg_stats WHERE tablename = 'customers'",
    "SELECT most_common_vals FROM pg_statistic s JOIN pg_stats USING (stawidth)",
    "EXPLAIN ANALYZE SELECT id FROM customers WHERE email = 'x'",
    "SELECT set_config('application_name', email, false) FROM customers WHERE id = 1",
    "SELECT pg_notify('x', email) FROM customers WHERE id = 1",
    "DO $$ BEGIN RAISE NOTICE '%', (SELECT email FROM customers WHERE id = 1); END $$",
    "CREATE TEMP TABLE t AS SELECT email FROM customers",
    "SELECT email INTO TEMP t FROM customers",
    "SELECT email::int FROM customers WHERE id = 1",
    "SELECT pg_read_file('postgresql.conf')",
];

#[test]
fn known_shapes_pass_with_masked_values() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    let login = bed.login("app_ro")?;
    for sql in PASS {
        let out = bed.psql(&login, &format!("{sql};"))?;
        assert!(out.success() && !out.stderr.contains("ERROR"), "{sql}\n{out}");
        assert!(!out.stdout.trim().is_empty(), "{sql}\n{out}");
        assert_masked(&out.all(), 1..=data::CUSTOMERS);
    }
    Ok(())
}

#[test]
fn everything_else_is_refused_and_says_which_part() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    let login = bed.login("app_ro")?;
    let mut psql = bed.live_psql(&login)?;
    for sql in REFUSE {
        let answer = psql.ask(&format!("{sql};"), crate::SOON)?;
        assert!(answer.contains("interceptor: "), "{sql} was not refused:\n{answer}");
        assert_masked(&answer, 1..=data::CUSTOMERS);
        assert_eq!(psql.ask("SELECT 'next';", crate::SOON)?.trim(), "next", "after {sql}");
    }
    Ok(())
}

#[test]
fn free_text_and_json_are_searched_when_a_rule_asks() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    let login = bed.login("app_ro")?;
    let out = bed.psql(&login, "SELECT notes FROM customers; SELECT items FROM orders;")?;
    let text = out.clone().ok()?;
    assert_masked(&text, 1..=data::CUSTOMERS);
    // What only looks like a number of that kind is left alone, and so is the JSON's shape.
    assert!(text.contains("Order reference 2026-") && text.contains("\"sku\": \"SKU-"), "{out}");
    Ok(())
}

#[test]
fn errors_do_not_print_masked_values() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    bed.db().admin(
        "ALTER TABLE customers ADD CONSTRAINT late UNIQUE (email) DEFERRABLE INITIALLY DEFERRED",
    )?;
    let real = data::customer(2);
    let mut psql = bed.live_psql(&bed.login("app_rw")?)?;
    for sql in [
        format!("INSERT INTO customers (name, email) VALUES ('x', '{}');", real.email),
        format!(
            "BEGIN; INSERT INTO customers (name, email) VALUES ('x', '{}'); COMMIT;",
            real.email
        ),
        "INSERT INTO customers (id, name, email) VALUES (2, NULL, 'new@example.com');".into(),
    ] {
        let answer = psql.ask(&sql, crate::SOON)?;
        assert!(answer.contains("ERROR"), "{answer}");
        assert!(!answer.contains(&real.email) && !answer.contains(&real.card_number), "{answer}");
    }
    Ok(())
}

#[test]
fn large_rows_pass_and_too_large_ones_fail_alone() -> Result<()> {
    skip_unless_possible!();
    let policy = "[[rule]]\nname = \"all\"\neffect = \"allow\"\nstatement = \"any\"\n\
                  masks = [{ columns = [\"customers.email\"], method = \"redact\" }]\n\
                  [[rule]]\nname = \"in\"\non = \"connect\"\neffect = \"allow\"\n";
    let spec = interceptor_tests::bed::Spec::default()
        .policies(&[("large.toml", policy)])
        .service(|s| s.settings = "row_buffer = 1048576".into());
    let bed = Bed::with(spec)?;
    bed.db().admin(
        "INSERT INTO customers (id, name, email, notes) VALUES \
         (100001, 'fits', 'a1@example.com', repeat('x', 900000)), \
         (100002, 'too large', 'a2@example.com', repeat('x', 3000000))",
    )?;
    let mut psql = bed.live_psql(&bed.login("app_ro")?)?;
    let fits = psql.ask(
        "SELECT name, length(notes) FROM customers WHERE id = 100002; \
         SELECT notes, email FROM customers WHERE id = 100001;",
        crate::SOON,
    )?;
    assert!(fits.contains(&"x".repeat(900_000)) && !fits.contains("a1@example.com"));
    let large = psql.ask("SELECT notes, email FROM customers WHERE id = 100002;", crate::SOON)?;
    assert!(large.contains("interceptor:") && !large.contains("a2@example.com"), "{large:.500}");
    assert_eq!(psql.ask("SELECT 'next';", crate::SOON)?.trim(), "next");
    // Nothing masked behind it: streamed, whatever its size.
    let free = psql.ask("SELECT repeat('y', 3000000);", crate::SOON)?;
    assert!(free.contains(&"y".repeat(3_000_000)));
    Ok(())
}

#[test]
fn psql_describes_tables_and_completes_names() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    let mut psql = bed.live_psql(&bed.login("app_ro")?)?;
    let mut wrong = String::new();
    for command in "\\d|\\d customers|\\d+ customers|\\d+ contacts|\\d customers_pkey|\\dt+ *.*|\\dv|\\di|\\df|\\df+ lower|\\dn+|\\du|\\l|\\dp|\\dT|\\ds|\\do|\\db|\\dx|\\dd|\\ddp|\\drds|\\dF|\\dC|\\dD|\\dE|\\dO|\\dRp|\\dy|\\sv contacts|\\sf lower(text)|\\conninfo|\\encoding"
        .split('|')
    {
        let answer = psql.ask(command, crate::SOON)?;
        if answer.contains("ERROR") {
            wrong.push_str(&format!("{command}: {}\n", answer.trim()));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    Ok(())
}
