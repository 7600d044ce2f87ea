-- What was done with keys, and by people, as a chain that shows where it was changed; and what of a record can never change.

-- Rows are never changed and never deleted, by prune neither. Each holds the hash of the one before: see audit.go for what is hashed.
CREATE TABLE audit (
	number    INTEGER PRIMARY KEY,           -- from 1, without a gap
	at        INTEGER NOT NULL,              -- nanoseconds since 1970-01-01 UTC, by the clock of who did it
	who       TEXT NOT NULL CHECK (who <> '' AND length(who) <= 128),   -- station of a daemon, or user of the operating system
	what      TEXT NOT NULL CHECK (what <> '' AND length(what) <= 64),
	key_label TEXT NOT NULL CHECK (length(key_label) <= 128),
	kcv       TEXT NOT NULL CHECK (length(kcv) <= 32),
	result    TEXT NOT NULL CHECK (length(result) <= 256),
	detail    TEXT NOT NULL CHECK (length(detail) <= 1024),
	previous  BLOB NOT NULL CHECK (length(previous) = 32), -- SHA-256 of the row before; of row 1, of whose journal this is
	hash      BLOB NOT NULL CHECK (length(hash) = 32)      -- SHA-256 of this row, previous included
) STRICT;

-- The number is checked because INSERT OR REPLACE deletes without asking a trigger.
CREATE TRIGGER audit_grows BEFORE INSERT ON audit
WHEN NEW.number IS NOT (SELECT coalesce(max(number), 0) + 1 FROM audit)
	OR EXISTS (SELECT 1 FROM audit WHERE number = NEW.number - 1 AND hash <> NEW.previous)
BEGIN SELECT RAISE(ABORT, 'audit: a row does not follow the last one'); END;

CREATE TRIGGER audit_stays BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'audit: rows are never changed'); END;

CREATE TRIGGER audit_is_kept BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'audit: rows are never deleted'); END;

-- A seal may give way to one under another key, as a whole, and to nothing else: journal reseal does that. Old and new hold the same, which
-- only the HSM can see.
CREATE TRIGGER transactions_pan BEFORE UPDATE OF pan_key_id, pan_nonce, pan_ciphertext ON transactions
WHEN OLD.pan_key_id IS NULL OR NEW.pan_key_id IS NULL OR NEW.pan_key_id = OLD.pan_key_id OR NEW.pan_nonce IS NULL OR NEW.pan_ciphertext IS NULL
	OR NEW.pan_ciphertext = OLD.pan_ciphertext
BEGIN SELECT RAISE(ABORT, 'transactions: a sealed PAN only changes its key'); END;

CREATE TRIGGER transactions_rest BEFORE UPDATE OF rest_key_id, rest_nonce, rest_ciphertext ON transactions
WHEN OLD.rest_key_id IS NULL OR NEW.rest_key_id IS NULL OR NEW.rest_key_id = OLD.rest_key_id OR NEW.rest_nonce IS NULL OR NEW.rest_ciphertext IS NULL
	OR NEW.rest_ciphertext = OLD.rest_ciphertext
BEGIN SELECT RAISE(ABORT, 'transactions: a sealed rest only changes its key'); END;

CREATE TRIGGER processor_advices_pan BEFORE UPDATE OF pan_key_id, pan_nonce, pan_ciphertext ON processor_advices
WHEN OLD.pan_key_id IS NULL OR NEW.pan_key_id IS NULL OR NEW.pan_key_id = OLD.pan_key_id OR NEW.pan_nonce IS NULL OR NEW.pan_ciphertext IS NULL
	OR NEW.pan_ciphertext = OLD.pan_ciphertext
BEGIN SELECT RAISE(ABORT, 'processor_advices: a sealed PAN only changes its key'); END;

-- What was recorded when a transaction began stays, and so do its events and what a processor has told. Prune deletes them whole.
CREATE TRIGGER transactions_begun BEFORE UPDATE OF id, upstream, upstream_stan, upstream_rrn, endpoint, mti, stan, rrn,
	transmission_time, acquirer_id, terminal, merchant, amount, currency, masked_pan, pan_token, original, begun_at, business_date ON transactions
BEGIN SELECT RAISE(ABORT, 'transactions: what was begun does not change'); END;

-- The key of the upstream's request goes over from one that was declined to the one that asks again for it.
CREATE TRIGGER transactions_key BEFORE UPDATE OF upstream_key ON transactions
WHEN NEW.upstream_key IS NOT NULL OR OLD.outcome IS NOT 'declined'
BEGIN SELECT RAISE(ABORT, 'transactions: an upstream''s key only goes over from what was declined'); END;

CREATE TRIGGER events_stay BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events: rows are never changed'); END;

CREATE TRIGGER processor_advices_stay BEFORE UPDATE OF id, endpoint, identity, mti, original, masked_pan, pan_token, digest, withheld, response_code,
	transaction_id, undoes, business_date, at ON processor_advices
BEGIN SELECT RAISE(ABORT, 'processor_advices: what was told does not change'); END;
