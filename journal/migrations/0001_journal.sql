-- Checks are chains of OR: for IN with more than two values SQLite builds a set each time that a row is written.
--
-- Times are microseconds since 1970-01-01 UTC. Amounts are digits in minor units with their ISO 4217 number beside them, as
-- they stood in the message. Texts that a message did not have are ''.

-- Whose journal this is: one row.
CREATE TABLE journal (
	only_row   INTEGER PRIMARY KEY CHECK (only_row = 1),
	station    TEXT NOT NULL CHECK (station <> ''),
	created_at INTEGER NOT NULL
) STRICT;

-- Numbers given out so far, block by block: 'rrn', and 'stan:' with the endpoint's name.
CREATE TABLE numbers (
	name     TEXT PRIMARY KEY,
	reserved INTEGER NOT NULL CHECK (reserved > 0)
) STRICT, WITHOUT ROWID;

-- One row for each request to a processor, written before it is sent. No outcome: open.
CREATE TABLE transactions (
	id                INTEGER PRIMARY KEY,
	upstream          TEXT NOT NULL CHECK (upstream <> ''),
	upstream_key      TEXT CHECK (upstream_key <> ''), -- by which upstream would repeat it; NULL: no check for duplicates
	upstream_stan     TEXT NOT NULL,
	upstream_rrn      TEXT NOT NULL,
	endpoint          TEXT NOT NULL CHECK (endpoint <> ''),
	mti               TEXT NOT NULL CHECK (length(mti) = 4),
	stan              TEXT NOT NULL CHECK (length(stan) = 6),
	rrn               TEXT NOT NULL,
	transmission_time TEXT NOT NULL, -- DE 7
	acquirer_id       TEXT NOT NULL, -- DE 32
	terminal          TEXT NOT NULL, -- DE 41
	merchant          TEXT NOT NULL, -- DE 42
	amount            TEXT NOT NULL, -- DE 4
	currency          TEXT NOT NULL, -- DE 49
	masked_pan        TEXT NOT NULL,
	pan_token         BLOB CHECK (length(pan_token) = 32),
	pan_key_id        TEXT,          -- the PAN sealed by an HSM key: label, nonce, ciphertext
	pan_nonce         BLOB,
	pan_ciphertext    BLOB,
	original          TEXT NOT NULL, -- what a reversal repeats, as JSON
	begun_at          INTEGER NOT NULL,
	outcome           TEXT CHECK (outcome = 'approved' OR outcome = 'declined' OR outcome = 'not_sent' OR outcome = 'unknown'),
	response_code     TEXT,          -- DE 39 of the answer
	authorization_id  TEXT,          -- DE 38 of the answer
	approved_amount   TEXT,          -- DE 4 of the answer where it differs
	reason            TEXT,
	finished_at       INTEGER,
	CHECK ((outcome IS NULL) = (finished_at IS NULL)),
	CHECK ((pan_key_id IS NULL) = (pan_ciphertext IS NULL))
) STRICT;

CREATE UNIQUE INDEX transactions_upstream_key ON transactions (upstream, upstream_key) WHERE upstream_key IS NOT NULL;
CREATE INDEX transactions_open ON transactions (id) WHERE outcome IS NULL;
CREATE INDEX transactions_stan ON transactions (stan);
CREATE INDEX transactions_rrn ON transactions (rrn);

-- What a processor must acknowledge. The message to repeat is its transaction's.
CREATE TABLE owed (
	id             INTEGER PRIMARY KEY,
	transaction_id INTEGER NOT NULL REFERENCES transactions (id),
	kind           TEXT NOT NULL CHECK (kind = 'reversal' OR kind = 'advice'),
	endpoint       TEXT NOT NULL,
	reason         TEXT NOT NULL,
	state          TEXT NOT NULL CHECK (state = 'owed' OR state = 'acknowledged' OR state = 'parked'),
	attempts       INTEGER NOT NULL CHECK (attempts >= 0), -- sends that may have left this host
	answered       INTEGER NOT NULL CHECK (answered >= 0 AND answered <= attempts), -- of these, how many had an answer
	due_at         INTEGER NOT NULL,
	since          INTEGER NOT NULL,
	last_reason    TEXT NOT NULL, -- of the last attempt that was not acknowledged, or of the parking
	response_code  TEXT NOT NULL, -- DE 39 of the last answer
	settled_at     INTEGER,
	CHECK ((state = 'owed') = (settled_at IS NULL))
) STRICT;

CREATE UNIQUE INDEX owed_transaction ON owed (transaction_id, kind);
CREATE INDEX owed_due ON owed (endpoint, due_at, id) WHERE state = 'owed';
CREATE INDEX owed_parked ON owed (id) WHERE state = 'parked';

-- Each change of state of a transaction, or of what it owes (then owed_id is set).
CREATE TABLE events (
	transaction_id INTEGER NOT NULL,
	number         INTEGER NOT NULL CHECK (number > 0), -- from 1 for each transaction
	owed_id        INTEGER,
	state          TEXT NOT NULL CHECK (state = 'begun' OR state = 'approved' OR state = 'declined' OR state = 'not_sent' OR
	                                    state = 'unknown' OR state = 'owed' OR state = 'attempted' OR state = 'again' OR
	                                    state = 'unsent' OR state = 'acknowledged' OR state = 'parked'),
	at             INTEGER NOT NULL,
	detail         TEXT NOT NULL, -- response code, reason, or number of the attempt
	PRIMARY KEY (transaction_id, number)
) STRICT, WITHOUT ROWID;
