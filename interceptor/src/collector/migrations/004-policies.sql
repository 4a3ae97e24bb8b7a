-- Versions of the policies that hosts may take from here: signed, in order, for good.
CREATE TABLE policy_versions (
  version      INTEGER PRIMARY KEY,
  published_us INTEGER NOT NULL,
  published_by TEXT NOT NULL,
  what         TEXT NOT NULL,
  content_of   INTEGER,
  note         TEXT,
  sha256       TEXT NOT NULL,
  rules        INTEGER NOT NULL,
  body         TEXT NOT NULL,
  signature    BLOB NOT NULL
) STRICT;
CREATE TRIGGER policy_versions_stay BEFORE UPDATE ON policy_versions
  BEGIN SELECT RAISE(ABORT, 'versions of policies are append-only'); END;
CREATE TRIGGER policy_versions_keep BEFORE DELETE ON policy_versions
  BEGIN SELECT RAISE(ABORT, 'versions of policies are append-only'); END;

-- What each host said last about them; a host without a row takes none.
CREATE TABLE host_policies (
  host        INTEGER PRIMARY KEY,
  reported_us INTEGER NOT NULL,
  takes       INTEGER NOT NULL,
  version     INTEGER NOT NULL,
  in_force    INTEGER NOT NULL,
  sha256      TEXT NOT NULL,
  rules       INTEGER NOT NULL,
  since_us    INTEGER,
  error       TEXT,
  refused     INTEGER
) STRICT;
