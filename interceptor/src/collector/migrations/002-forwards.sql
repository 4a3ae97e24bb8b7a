-- Other systems that get events, and how far each of them is with each host. A cursor moves only
-- after delivery.
CREATE TABLE forwards (
  name     TEXT PRIMARY KEY,
  begun_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE forward_cursors (
  forward TEXT NOT NULL,
  host    INTEGER NOT NULL,
  cursor  TEXT NOT NULL,
  passed  INTEGER NOT NULL,
  PRIMARY KEY (forward, host)
) STRICT, WITHOUT ROWID;
