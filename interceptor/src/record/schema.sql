CREATE TABLE meta (
  key   TEXT PRIMARY KEY,
  value ANY NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE sessions (
  number       INTEGER PRIMARY KEY,
  id           TEXT NOT NULL,
  opened_us    INTEGER NOT NULL,
  closed_us    INTEGER,
  host         TEXT NOT NULL,
  service      TEXT NOT NULL,
  protocol     TEXT NOT NULL,
  mode         TEXT NOT NULL,
  source       TEXT NOT NULL,
  original_dst TEXT NOT NULL,
  agent        TEXT,
  principal    TEXT,
  issuer       TEXT,
  proven       INTEGER NOT NULL,
  role         TEXT,
  database     TEXT,
  client       TEXT,
  events       INTEGER NOT NULL,
  requests     INTEGER NOT NULL,
  allowed      INTEGER NOT NULL,
  held         INTEGER NOT NULL,
  denied       INTEGER NOT NULL,
  errors       INTEGER NOT NULL,
  rows         INTEGER NOT NULL,
  masked       INTEGER NOT NULL,
  alerts       INTEGER NOT NULL,
  reason       TEXT,
  seal         INTEGER
) STRICT;
CREATE INDEX sessions_id        ON sessions (id);
CREATE INDEX sessions_agent     ON sessions (agent, number);
CREATE INDEX sessions_principal ON sessions (principal, number);
CREATE INDEX sessions_service   ON sessions (service, number);
CREATE INDEX sessions_opened    ON sessions (opened_us);
CREATE INDEX sessions_closed    ON sessions (closed_us) WHERE closed_us IS NOT NULL;
CREATE INDEX sessions_open      ON sessions (number) WHERE seal IS NULL;

-- One row per event; id = number << 31 | seq, so a session lies together and in order.
CREATE TABLE events (
  id    INTEGER PRIMARY KEY,
  ts_us INTEGER NOT NULL,
  kind  TEXT NOT NULL,
  body  TEXT NOT NULL,
  data  BLOB,
  hash  BLOB NOT NULL
) STRICT;

CREATE TABLE ledger (
  idx       INTEGER PRIMARY KEY,
  kind      TEXT NOT NULL,
  number    INTEGER,
  ts_us     INTEGER NOT NULL,
  body      TEXT NOT NULL,
  signature BLOB NOT NULL
) STRICT;
CREATE INDEX ledger_number ON ledger (number) WHERE number IS NOT NULL;
CREATE INDEX ledger_kind   ON ledger (kind, idx) WHERE kind <> 'seal';
CREATE VIEW seals AS SELECT idx, number, ts_us, body, signature FROM ledger WHERE kind = 'seal';

CREATE TABLE checkpoints (
  idx       INTEGER PRIMARY KEY,
  ts_us     INTEGER NOT NULL,
  body      TEXT NOT NULL,
  signature BLOB NOT NULL
) STRICT;

-- Against accidents only: the seals stand against people.
CREATE TRIGGER events_stay BEFORE UPDATE ON events
  BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER ledger_stays BEFORE UPDATE ON ledger
  BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER ledger_keeps BEFORE DELETE ON ledger
  BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
