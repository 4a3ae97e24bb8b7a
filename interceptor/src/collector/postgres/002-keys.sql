-- How the signing keys followed one another; the first has no row.
CREATE TABLE successions (
  number         BIGINT PRIMARY KEY,
  body           TEXT COLLATE "C" NOT NULL,
  by_old         BYTEA NOT NULL,
  by_new         BYTEA NOT NULL,
  -- Until then the key before signs the log along.
  along_until_us BIGINT NOT NULL,
  -- The policies of then, signed with the key after.
  policies           BIGINT,
  policies_signature BYTEA
);
CREATE TRIGGER successions_stay BEFORE UPDATE OF number, body, by_old, by_new ON successions
  FOR EACH ROW EXECUTE FUNCTION refuse('successions of keys are append-only');
CREATE TRIGGER successions_keep BEFORE DELETE ON successions
  FOR EACH ROW EXECUTE FUNCTION refuse('successions of keys are append-only');

-- Fingerprint of the key whose orders the host takes, as it said last.
ALTER TABLE hosts ADD COLUMN follows TEXT COLLATE "C";
