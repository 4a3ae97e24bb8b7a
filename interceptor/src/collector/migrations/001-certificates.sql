-- Certificates of hosts. A renewal leaves the one before standing, so that a host that dies
-- between our answer and its own disk still comes in.
CREATE TABLE certificates (
  serial    TEXT PRIMARY KEY,
  host      INTEGER NOT NULL,
  issued_us INTEGER NOT NULL,
  until_us  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX certificates_host ON certificates (host, issued_us);
