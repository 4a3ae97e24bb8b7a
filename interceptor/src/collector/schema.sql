CREATE TABLE hosts (
  id                   INTEGER PRIMARY KEY,
  fingerprint          TEXT NOT NULL UNIQUE,
  name                 TEXT NOT NULL,
  public_key           BLOB NOT NULL,
  enrolled_us          INTEGER NOT NULL,
  revoked_us           INTEGER,
  serial               TEXT NOT NULL,
  certificate_until_us INTEGER NOT NULL,
  seen_us              INTEGER,
  version              TEXT,
  status               TEXT,
  ledger_idx           INTEGER NOT NULL DEFAULT 0,
  ledger_hash          BLOB,
  logged_idx           INTEGER NOT NULL DEFAULT 0,
  events               INTEGER NOT NULL DEFAULT 0,
  problem              TEXT
) STRICT;

CREATE TABLE codes (
  hash       BLOB PRIMARY KEY,
  name       TEXT NOT NULL,
  made_by    TEXT NOT NULL,
  created_us INTEGER NOT NULL,
  expires_us INTEGER NOT NULL,
  used_us    INTEGER
) STRICT, WITHOUT ROWID;

-- Sessions of all hosts, derived from the replicas; id = host << 32 | number.
CREATE TABLE sessions (
  id           INTEGER PRIMARY KEY,
  host         INTEGER NOT NULL,
  number       INTEGER NOT NULL,
  session      TEXT NOT NULL,
  opened_us    INTEGER NOT NULL,
  closed_us    INTEGER,
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
  sealed       INTEGER,
  leaf         INTEGER,
  legal_hold   INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX sessions_session   ON sessions (session);
CREATE INDEX sessions_opened    ON sessions (opened_us);
CREATE INDEX sessions_agent     ON sessions (agent, opened_us);
CREATE INDEX sessions_principal ON sessions (principal, opened_us);
CREATE INDEX sessions_service   ON sessions (service, opened_us);
CREATE INDEX sessions_host      ON sessions (host, opened_us);
CREATE INDEX sessions_live      ON sessions (opened_us) WHERE closed_us IS NULL;

-- The Merkle log over sealed sessions (RFC 6962).
CREATE TABLE leaves (
  idx    INTEGER PRIMARY KEY,
  host   INTEGER NOT NULL,
  number INTEGER NOT NULL,
  entry  BLOB NOT NULL,
  hash   BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX leaves_session ON leaves (host, number);
CREATE TABLE nodes (
  level INTEGER NOT NULL,
  idx   INTEGER NOT NULL,
  hash  BLOB NOT NULL,
  PRIMARY KEY (level, idx)
) STRICT, WITHOUT ROWID;
CREATE TABLE log_checkpoints (
  size  INTEGER PRIMARY KEY,
  root  BLOB NOT NULL,
  ts_us INTEGER NOT NULL,
  note  TEXT NOT NULL
) STRICT;

-- Holds of all hosts; their exact text is never here.
CREATE TABLE holds (
  id          TEXT PRIMARY KEY,
  host        INTEGER NOT NULL,
  hold        TEXT NOT NULL,
  session     TEXT NOT NULL,
  opened_us   INTEGER NOT NULL,
  deadline_us INTEGER NOT NULL,
  summary     TEXT NOT NULL,
  parties     TEXT NOT NULL,
  needs       INTEGER NOT NULL,
  state       TEXT NOT NULL,
  ended_us    INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX holds_waiting ON holds (opened_us) WHERE state = 'waiting';
CREATE INDEX holds_session ON holds (session);
CREATE TABLE votes (
  hold    TEXT NOT NULL,
  issuer  TEXT NOT NULL,
  sub     TEXT NOT NULL,
  name    TEXT NOT NULL,
  approve INTEGER NOT NULL,
  scope   TEXT NOT NULL,
  reason  TEXT,
  ts_us   INTEGER NOT NULL,
  PRIMARY KEY (hold, issuer, sub)
) STRICT, WITHOUT ROWID;
CREATE TABLE viewed (
  hold   TEXT NOT NULL,
  issuer TEXT NOT NULL,
  sub    TEXT NOT NULL,
  ts_us  INTEGER NOT NULL,
  PRIMARY KEY (hold, issuer, sub)
) STRICT, WITHOUT ROWID;

-- What hosts are told, in order; signed.
CREATE TABLE orders (
  host      INTEGER NOT NULL,
  seq       INTEGER NOT NULL,
  ts_us     INTEGER NOT NULL,
  body      TEXT NOT NULL,
  signature BLOB NOT NULL,
  done_us   INTEGER,
  result    TEXT,
  PRIMARY KEY (host, seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE grants (
  host       INTEGER NOT NULL,
  grant_id   TEXT NOT NULL,
  hold       TEXT NOT NULL,
  given_by   TEXT NOT NULL,
  until_us   INTEGER NOT NULL,
  revoked_us INTEGER,
  PRIMARY KEY (host, grant_id)
) STRICT, WITHOUT ROWID;

-- Which host a token is used on.
CREATE TABLE tokens (
  issuer     TEXT NOT NULL,
  jti_hash   TEXT NOT NULL,
  host       INTEGER NOT NULL,
  source     TEXT NOT NULL,
  expires_us INTEGER NOT NULL,
  PRIMARY KEY (issuer, jti_hash)
) STRICT, WITHOUT ROWID;
CREATE INDEX tokens_expires ON tokens (expires_us);

-- People who are logged in, and those on their way.
CREATE TABLE logins (
  hash       BLOB PRIMARY KEY,
  issuer     TEXT NOT NULL,
  sub        TEXT NOT NULL,
  name       TEXT NOT NULL,
  groups     TEXT NOT NULL,
  csrf       BLOB NOT NULL,
  created_us INTEGER NOT NULL,
  seen_us    INTEGER NOT NULL,
  expires_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE pending_logins (
  state_hash BLOB PRIMARY KEY,
  nonce      TEXT NOT NULL,
  verifier   TEXT NOT NULL,
  next       TEXT NOT NULL,
  created_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Messages for webhooks that are not delivered yet.
CREATE TABLE deliveries (
  id       INTEGER PRIMARY KEY,
  url      TEXT NOT NULL,
  body     TEXT NOT NULL,
  tries    INTEGER NOT NULL DEFAULT 0,
  next_us  INTEGER NOT NULL
) STRICT;

-- What people and hosts did here; hash = SHA-256(prev ‖ length-prefixed fields), see audit.rs.
CREATE TABLE audit (
  id     INTEGER PRIMARY KEY,
  ts_us  INTEGER NOT NULL,
  who    TEXT NOT NULL,
  what   TEXT NOT NULL,
  target TEXT NOT NULL,
  detail TEXT NOT NULL,
  hash   BLOB NOT NULL
) STRICT;
CREATE TRIGGER audit_stays BEFORE UPDATE ON audit
  BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END;
CREATE TRIGGER audit_keeps BEFORE DELETE ON audit
  BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END;
CREATE TRIGGER leaves_stay BEFORE UPDATE ON leaves
  BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER leaves_keep BEFORE DELETE ON leaves
  BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
