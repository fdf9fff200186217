CREATE TABLE judgements (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL CHECK (kind IN ('battle', 'ranking')),
    prompt TEXT NOT NULL,
    replies TEXT NOT NULL,
    sampling TEXT NOT NULL,
    base TEXT NOT NULL,
    verdict TEXT CHECK (verdict IN ('a', 'b', 'tie', 'both_bad', 'skip')),
    ranks TEXT,
    likert TEXT,
    flags TEXT,
    reason TEXT NOT NULL,
    labeler TEXT NOT NULL,
    time TEXT NOT NULL,
    CHECK ((kind = 'battle') = (verdict IS NOT NULL) AND (kind = 'ranking') = (ranks IS NOT NULL))
) STRICT
