-- Stored answers, reversals and advices of upstreams, numbers of reversals of their own. SQLite cannot change a CHECK: the tables are
-- made anew.

CREATE TABLE transactions_2 (
	id                INTEGER PRIMARY KEY,
	upstream          TEXT NOT NULL CHECK (upstream <> ''),
	upstream_key      TEXT CHECK (upstream_key <> ''), -- by which upstream would repeat it; NULL: no check for duplicates
	upstream_stan     TEXT NOT NULL,
	upstream_rrn      TEXT NOT NULL,
	endpoint          TEXT NOT NULL CHECK (endpoint <> '' OR outcome = 'not_sent'), -- '': barred, see reason
	mti               TEXT NOT NULL CHECK (length(mti) = 4),
	stan              TEXT NOT NULL CHECK (length(stan) = 6 OR outcome = 'not_sent'),
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
	rest_key_id       TEXT,          -- what else of an advice is sensitive, sealed in the same way
	rest_nonce        BLOB,
	rest_ciphertext   BLOB,
	original          TEXT NOT NULL, -- what a reversal repeats, or all of an advice that is not sensitive, as JSON
	begun_at          INTEGER NOT NULL,
	outcome           TEXT CHECK (outcome = 'approved' OR outcome = 'declined' OR outcome = 'not_sent' OR outcome = 'unknown' OR
	                              outcome = 'accepted'), -- accepted: an advice, which is owed to the processor
	response_code     TEXT,          -- DE 39 of the answer
	authorization_id  TEXT,          -- DE 38 of the answer
	approved_amount   TEXT,          -- DE 4 of the answer where it differs
	reason            TEXT,
	answer            TEXT,          -- what the upstream is told, as JSON; NULL: recovery decided, or nothing is to be told
	finished_at       INTEGER,
	CHECK ((outcome IS NULL) = (finished_at IS NULL)),
	CHECK ((pan_key_id IS NULL) = (pan_ciphertext IS NULL)),
	CHECK ((rest_key_id IS NULL) = (rest_ciphertext IS NULL))
) STRICT;

-- Keys have the function of the MTI in them now: a request and an advice may bear the same numbers.
INSERT INTO transactions_2 SELECT id, upstream, substr(upstream_key, 1, 2) || substr(mti, 3, 1) || substr(upstream_key, 3), upstream_stan,
	upstream_rrn, endpoint, mti, stan, rrn, transmission_time, acquirer_id, terminal, merchant, amount, currency, masked_pan, pan_token,
	pan_key_id, pan_nonce, pan_ciphertext, NULL, NULL, NULL, original, begun_at, outcome, response_code, authorization_id,
	approved_amount, reason, NULL, finished_at FROM transactions;

CREATE TABLE owed_2 (
	id                INTEGER PRIMARY KEY,
	transaction_id    INTEGER NOT NULL REFERENCES transactions_2 (id),
	kind              TEXT NOT NULL CHECK (kind = 'reversal' OR kind = 'advice'),
	endpoint          TEXT NOT NULL,
	reason            TEXT NOT NULL,
	replacement       TEXT NOT NULL CHECK (kind = 'reversal' OR replacement = ''), -- first amount of DE 95; '': a full reversal
	stan              TEXT NOT NULL, -- of the message, if it has numbers of its own, since its first attempt
	transmission_time TEXT NOT NULL,
	state             TEXT NOT NULL CHECK (state = 'owed' OR state = 'acknowledged' OR state = 'parked'),
	attempts          INTEGER NOT NULL CHECK (attempts >= 0), -- sends that may have left this host
	answered          INTEGER NOT NULL CHECK (answered >= 0 AND answered <= attempts), -- of these, how many had an answer
	due_at            INTEGER NOT NULL,
	since             INTEGER NOT NULL,
	last_reason       TEXT NOT NULL, -- of the last attempt that was not acknowledged, or of the parking
	response_code     TEXT NOT NULL, -- DE 39 of the last answer
	settled_at        INTEGER,
	CHECK ((state = 'owed') = (settled_at IS NULL))
) STRICT;

INSERT INTO owed_2 SELECT id, transaction_id, kind, endpoint, reason, '', '', '', state, attempts, answered, due_at, since, last_reason,
	response_code, settled_at FROM owed;

CREATE TABLE events_2 (
	transaction_id INTEGER NOT NULL,
	number         INTEGER NOT NULL CHECK (number > 0), -- from 1 for each transaction
	owed_id        INTEGER,
	state          TEXT NOT NULL CHECK (state = 'begun' OR state = 'approved' OR state = 'declined' OR state = 'not_sent' OR
	                                    state = 'unknown' OR state = 'accepted' OR state = 'owed' OR state = 'attempted' OR
	                                    state = 'again' OR state = 'unsent' OR state = 'acknowledged' OR state = 'parked' OR
	                                    state = 'released' OR state = 'late_answer' OR state = 'second_answer'),
	at             INTEGER NOT NULL,
	detail         TEXT NOT NULL, -- response code, reason, or number of the attempt
	PRIMARY KEY (transaction_id, number)
) STRICT, WITHOUT ROWID;

INSERT INTO events_2 SELECT transaction_id, number, owed_id, state, at, detail FROM events;

DROP TABLE owed;
DROP TABLE transactions;
DROP TABLE events;
ALTER TABLE transactions_2 RENAME TO transactions;
ALTER TABLE owed_2 RENAME TO owed;
ALTER TABLE events_2 RENAME TO events;

CREATE UNIQUE INDEX transactions_upstream_key ON transactions (upstream, upstream_key) WHERE upstream_key IS NOT NULL;

-- And they do not end in DE 32 any more, because the DE 90 of a reversal may leave it open.
UPDATE OR IGNORE transactions SET upstream_key = substr(upstream_key, 1, length(upstream_key) - length(acquirer_id) - 1)
	WHERE substr(upstream_key, -length(acquirer_id) - 1) = '|' || acquirer_id;

CREATE INDEX transactions_open ON transactions (id) WHERE outcome IS NULL;
CREATE INDEX transactions_stan ON transactions (stan);
CREATE INDEX transactions_rrn ON transactions (rrn);
CREATE UNIQUE INDEX owed_transaction ON owed (transaction_id, kind);
CREATE INDEX owed_open ON owed (id) WHERE state = 'owed';
CREATE INDEX owed_parked ON owed (id) WHERE state = 'parked';
