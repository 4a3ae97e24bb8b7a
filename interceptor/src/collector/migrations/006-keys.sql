-- How the signing keys followed one another; the first has no row.
CREATE TABLE successions (
  number         INTEGER PRIMARY KEY,
  body           TEXT NOT NULL,
  by_old         BLOB NOT NULL,
  by_new         BLOB NOT NULL,
  -- Until then the key before signs the log along.
  along_until_us INTEGER NOT NULL,
  -- The policies of then, signed with the key after.
  policies           INTEGER,
  policies_signature BLOB
) STRICT;
CREATE TRIGGER successions_stay BEFORE UPDATE OF number, body, by_old, by_new ON successions
  BEGIN SELECT RAISE(ABORT, 'successions of keys are append-only'); END;
CREATE TRIGGER successions_keep BEFORE DELETE ON successions
  BEGIN SELECT RAISE(ABORT, 'successions of keys are append-only'); END;

-- Fingerprint of the key whose orders the host takes, as it said last.
ALTER TABLE hosts ADD COLUMN follows TEXT;
