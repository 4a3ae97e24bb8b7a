-- Where recordings of large sessions are: what marks that place, drawn when it is first used; and what
-- was moved there.
CREATE TABLE recordings (
  one      INTEGER PRIMARY KEY CHECK (one = 1),
  place    TEXT NOT NULL,
  sessions INTEGER NOT NULL,
  bytes    INTEGER NOT NULL
) STRICT;
INSERT INTO recordings VALUES (1, '', 0, 0);
