-- As in migrations/006-recordings.sql.
CREATE TABLE recordings (
  one      BIGINT PRIMARY KEY CHECK (one = 1),
  place    TEXT COLLATE "C" NOT NULL,
  sessions BIGINT NOT NULL,
  bytes    BIGINT NOT NULL
);
INSERT INTO recordings VALUES (1, '', 0, 0);
