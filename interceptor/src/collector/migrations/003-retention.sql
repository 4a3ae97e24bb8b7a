-- When the collector took a session's seal, by its own clock: retention counts from there, since
-- every other time is what the host says. Leaves from before got their time with the first signed
-- root that covers them. A leaf without a time is never deleted.
ALTER TABLE leaves ADD COLUMN accepted_us INTEGER;
DROP TRIGGER leaves_stay;
UPDATE leaves SET accepted_us = coalesce(
  (SELECT c.ts_us FROM log_checkpoints c WHERE c.size > leaves.idx ORDER BY c.size LIMIT 1),
  unixepoch() * 1000000);
CREATE TRIGGER leaves_stay BEFORE UPDATE ON leaves
  BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;

-- arrived_us: when its first event came, by the collector's clock.
-- deleted_us: retention decided, and wrote it into the audit trail; purged_us: the events are gone.
ALTER TABLE sessions DROP COLUMN legal_hold;
ALTER TABLE sessions ADD COLUMN arrived_us INTEGER;
ALTER TABLE sessions ADD COLUMN deleted_us INTEGER;
ALTER TABLE sessions ADD COLUMN deleted_policy TEXT;
ALTER TABLE sessions ADD COLUMN purged_us INTEGER;
CREATE INDEX leaves_accepted ON leaves (accepted_us, idx);
CREATE INDEX sessions_kept  ON sessions (leaf) WHERE deleted_us IS NULL AND leaf IS NOT NULL;
CREATE INDEX sessions_purge ON sessions (host) WHERE deleted_us IS NOT NULL AND purged_us IS NULL;
CREATE TRIGGER sessions_deleted BEFORE UPDATE OF deleted_us, deleted_policy ON sessions
  WHEN OLD.deleted_us IS NOT NULL
  BEGIN SELECT RAISE(ABORT, 'what retention deleted stays deleted'); END;
CREATE TRIGGER sessions_sealed BEFORE UPDATE OF deleted_us ON sessions
  WHEN NEW.deleted_us IS NOT NULL AND (OLD.sealed IS NULL OR OLD.leaf IS NULL)
  BEGIN SELECT RAISE(ABORT, 'retention deletes sealed sessions only'); END;

-- What retention must not delete. Fields that are not NULL restrict; all must fit. Evaluated when
-- something is to be deleted, so that sessions which come later fall under it too.
CREATE TABLE legal_holds (
  id             INTEGER PRIMARY KEY,
  name           TEXT NOT NULL,
  session        INTEGER,
  agent          TEXT,
  principal      TEXT,
  service        TEXT,
  host           TEXT,
  host_id        INTEGER,
  from_us        INTEGER,
  to_us          INTEGER,
  reason         TEXT NOT NULL,
  placed_by      TEXT NOT NULL,
  placed_us      INTEGER NOT NULL,
  released_by    TEXT,
  released_us    INTEGER,
  release_reason TEXT
) STRICT;
CREATE INDEX legal_holds_active ON legal_holds (id) WHERE released_us IS NULL;
CREATE TRIGGER legal_holds_keep BEFORE DELETE ON legal_holds
  BEGIN SELECT RAISE(ABORT, 'legal holds are released, not deleted'); END;
CREATE TRIGGER legal_holds_stay BEFORE UPDATE ON legal_holds WHEN OLD.released_us IS NOT NULL
  OR (NEW.session, NEW.agent, NEW.principal, NEW.service, NEW.host, NEW.host_id, NEW.from_us, NEW.to_us)
  IS NOT (OLD.session, OLD.agent, OLD.principal, OLD.service, OLD.host, OLD.host_id, OLD.from_us, OLD.to_us)
  BEGIN SELECT RAISE(ABORT, 'a legal hold can only be released'); END;

-- What retention did since the beginning, and under which policy.
CREATE TABLE retention (
  one      INTEGER PRIMARY KEY CHECK (one = 1),
  policy   TEXT NOT NULL DEFAULT '',
  sessions INTEGER NOT NULL DEFAULT 0,
  events   INTEGER NOT NULL DEFAULT 0,
  bytes    INTEGER NOT NULL DEFAULT 0,
  kept     INTEGER NOT NULL DEFAULT 0,
  swept_us INTEGER
) STRICT;
INSERT INTO retention (one) VALUES (1);
