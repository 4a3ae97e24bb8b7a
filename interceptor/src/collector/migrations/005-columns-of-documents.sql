-- What is asked for stands in a column of its own: the documents hold what hosts and people wrote.
ALTER TABLE orders ADD COLUMN expires_us INTEGER NOT NULL DEFAULT 0;
ALTER TABLE orders ADD COLUMN hold TEXT;
UPDATE orders SET expires_us = coalesce(json_extract(body, '$.expires_us'), 0),
  hold = json_extract(body, '$.order.hold');
ALTER TABLE holds ADD COLUMN agent TEXT;
UPDATE holds SET agent = json_extract(summary, '$.agent');
