-- What processors say of their own accord: the business days that they open, and their advices.

-- The latest day of an endpoint is its business date. None: no cutover was heard.
CREATE TABLE business_days (
	endpoint TEXT NOT NULL CHECK (endpoint <> ''),
	date     TEXT NOT NULL CHECK (length(date) = 10), -- YYYY-MM-DD
	began_at INTEGER NOT NULL, -- when its cutover was recorded
	PRIMARY KEY (endpoint, date)
) STRICT, WITHOUT ROWID;

-- The endpoint's business date when the transaction was recorded, and when something came to be owed or came to be owed again (since).
-- '': none was known.
ALTER TABLE transactions ADD COLUMN business_date TEXT NOT NULL DEFAULT '';
ALTER TABLE owed ADD COLUMN business_date TEXT NOT NULL DEFAULT '';

-- One row for each advice of a processor, written before it is answered. IDs are never used again.
CREATE TABLE processor_advices (
	id             INTEGER PRIMARY KEY AUTOINCREMENT,
	endpoint       TEXT NOT NULL CHECK (endpoint <> ''),
	identity       TEXT NOT NULL CHECK (identity <> ''), -- by which the processor would repeat it
	mti            TEXT NOT NULL CHECK (length(mti) = 4), -- as it came
	original       TEXT NOT NULL, -- all of it that is not sensitive, as a first sending, as JSON
	masked_pan     TEXT NOT NULL,
	pan_token      BLOB CHECK (length(pan_token) = 32),
	digest         BLOB NOT NULL CHECK (length(digest) = 32), -- SHA-256 of original and token: a repeat is found by it, and not by reading
	pan_key_id     TEXT,
	pan_nonce      BLOB,
	pan_ciphertext BLOB,
	withheld       TEXT NOT NULL, -- names of the elements that it carried and that are not kept, with spaces between
	response_code  TEXT NOT NULL, -- what the processor was answered
	transaction_id INTEGER,       -- the transaction that it names, if that is on record
	undoes         INTEGER NOT NULL CHECK (undoes = 0 OR undoes = 1 AND transaction_id IS NOT NULL), -- what stood as approved
	business_date  TEXT NOT NULL,
	at             INTEGER NOT NULL,
	CHECK ((pan_key_id IS NULL) = (pan_ciphertext IS NULL))
) STRICT;

CREATE UNIQUE INDEX processor_advices_identity ON processor_advices (endpoint, identity, digest);
CREATE INDEX processor_advices_transaction ON processor_advices (transaction_id) WHERE transaction_id IS NOT NULL;
CREATE INDEX processor_advices_undoing ON processor_advices (id) WHERE undoes = 1;
