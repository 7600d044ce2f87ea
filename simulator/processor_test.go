package simulator_test

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/messages"
	"acquirerd/simulator"
	"acquirerd/specs"
)

func TestARuleDecides(t *testing.T) {
	for _, c := range []struct {
		name, rule, card string
		amount           int64
		code             string
		approved         int64
		state            simulator.State
	}{
		{"an amount that no rule names is approved", "", visa, 1250, "00", 1250, simulator.Held},
		{"an amount of nothing is approved", "", visa, 0, "00", 0, simulator.Held},
		{"the default table declines by the amount", "", visa, 9051, "51", 0, simulator.Declined},
		{"the default table looks at the last four digits", "", visa, 1_9005, "05", 0, simulator.Declined},
		{"a code that the dialect approves is held", "", visa, 9008, "08", 9008, simulator.Held},
		{"half is approved", "", visa, 9010, "10", 4505, simulator.Held},
		{"half is approved by the table's first line", "", visa, 9000, "10", 4500, simulator.Held},
		{"a card declines", "", "4000000000009995", 1250, "51", 0, simulator.Declined},
		{"a card is approved partially", "", "4000000000000556", 1001, "10", 500, simulator.Held},
		{"a rule goes before the table", "amount=9051 approve", visa, 9051, "00", 9051, simulator.Held},
		{"a rule goes before the card", "card=4000000000009995 approve", "4000000000009995", 1250, "00", 1250, simulator.Held},
		{"a rule declines", "amount=5100 decline=51", visa, 5100, "51", 0, simulator.Declined},
		{"a rule gives a part", "amount=1000-1999 partial=700", visa, 1500, "10", 700, simulator.Held},
		{"a rule of another amount does not apply", "amount=5100 decline=51", visa, 5101, "00", 5101, simulator.Held},
		{"a rule of another currency does not apply", "currency=840 decline=51", visa, 5100, "00", 5100, simulator.Held},
		{"a rule of another terminal does not apply", "terminal=OTHER decline=51", visa, 5100, "00", 5100, simulator.Held},
		{"a rule of the terminal applies", "terminal=TERM0001 decline=51", visa, 5100, "51", 0, simulator.Declined},
		{"a rule of the message type applies", "mti=01 decline=57", visa, 5100, "57", 0, simulator.Declined},
		{"a rule for PINs does not apply without one", "pin=yes decline=57", visa, 5100, "00", 5100, simulator.Held},
		{"a wrong check digit is declined", "", "4111111111111112", 1250, "14", 0, simulator.Declined},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				cfg := simulator.ProcessorConfig{Codec: codec(t, "iso87-ascii")}
				if c.rule != "" {
					cfg.Rules = rules(t, c.rule)
				}
				p, listener, stop := serve(t, cfg)
				defer stop()
				link := signedOn(t, cfg.Codec, listener, 0)
				request := link.request(c.card, c.amount)
				answer := link.ask(request)
				if got := answer.Get(messages.ResponseCode); got != c.code {
					t.Errorf("answered %q, want %q", got, c.code)
				}
				if approves := c.state == simulator.Held; approves != (len(answer.Get(messages.AuthorizationID)) == 6) {
					t.Errorf("DE 38 is %q", answer.Get(messages.AuthorizationID))
				}
				if err := cfg.Codec.Echoes(request, answer); err != nil {
					t.Error(err)
				}
				hold := p.Ledger().Snapshot().Holds[0]
				if hold.State != c.state || hold.ApprovedAmount != c.approved || hold.ResponseCode != c.code || hold.Amount != c.amount {
					t.Errorf("entered %+v", hold)
				}
			})
		})
	}
}

func TestARuleBreaksTheAnswer(t *testing.T) {
	type world struct {
		t           *testing.T
		p           *simulator.Processor
		link, other *peer
		request     *messages.Message
	}
	held := func(w world) {
		w.t.Helper()
		if n := w.p.Ledger().Counts().Held; n != 1 {
			w.t.Errorf("%d holds, want 1", n)
		}
	}
	nothing := func(w world) {
		w.t.Helper()
		if n := w.p.Ledger().Counts().Requests; n != 0 {
			w.t.Errorf("%d requests entered, want none", n)
		}
	}
	ended := func(w world) {
		w.t.Helper()
		if m, err := w.link.read(); !errors.Is(err, io.EOF) {
			w.t.Errorf("got %v, %v, want the link's end", m, err)
		}
	}
	broken := func(w world) {
		w.t.Helper()
		if m, err := w.link.read(); err == nil || errors.Is(err, io.EOF) || errors.Is(err, errQuiet) {
			w.t.Errorf("got %v, %v, want a part of a frame", m, err)
		}
	}
	approved := func(w world, on *peer) *messages.Message {
		w.t.Helper()
		answer := on.receive()
		if answer.Get(messages.ResponseCode) != "00" || answer.Get(messages.STAN) != w.request.Get(messages.STAN) {
			w.t.Errorf("got %v", answer)
		}
		return answer
	}
	for _, c := range []struct {
		name, rule string
		amount     int64
		check      func(world)
	}{
		{"delay", "delay=3s", 100, func(w world) {
			before := time.Now()
			approved(w, w.link)
			if waited := time.Since(before); waited != 3*time.Second {
				w.t.Errorf("answered after %v", waited)
			}
		}},
		{"delay by the amount", "", 9115, func(w world) {
			before := time.Now()
			approved(w, w.link)
			if waited := time.Since(before); waited != 1500*time.Millisecond {
				w.t.Errorf("answered after %v", waited)
			}
		}},
		{"late", "late=3s", 100, func(w world) {
			nothing(w)
			approved(w, w.link)
			held(w)
		}},
		{"silence", "", 9200, func(w world) { w.link.quiet(); held(w) }},
		{"lost", "", 9201, func(w world) { w.link.quiet(); nothing(w) }},
		{"drop", "", 9300, func(w world) { ended(w); held(w) }},
		{"lost drop", "", 9301, func(w world) { ended(w); nothing(w) }},
		{"close", "", 9302, func(w world) { approved(w, w.link); ended(w); held(w) }},
		{"drop other-link", "", 9303, func(w world) { ended(w); approved(w, w.other) }},
		{"duplicate", "", 9400, func(w world) { approved(w, w.link); approved(w, w.link); w.link.quiet(); held(w) }},
		{"garble", "", 9401, func(w world) {
			if m, err := w.link.read(); err == nil {
				w.t.Errorf("decoded %v", m)
			}
			if got := w.link.code(w.link.request(visa, 100)); got != "00" {
				w.t.Errorf("the next request is answered %q", got)
			}
		}},
		{"no-stan", "", 9402, func(w world) {
			answer := w.link.receive()
			if answer.Has(messages.STAN) || answer.Get(messages.ResponseCode) != "00" {
				w.t.Errorf("got %v", answer)
			}
		}},
		{"other-link", "", 9403, func(w world) { approved(w, w.other); w.link.quiet() }},
		{"wrong-amount", "", 9404, func(w world) {
			if err := w.link.codec.Echoes(w.request, w.link.receive()); err == nil {
				w.t.Error("the answer agrees with the request")
			}
		}},
		{"reorder", "amount=100 reorder", 100, func(w world) {
			second := w.link.request(visa, 200)
			w.link.send(second)
			if got := w.link.receive().Get(messages.STAN); got != second.Get(messages.STAN) {
				w.t.Errorf("%s is answered first", got)
			}
			approved(w, w.link)
		}},
		{"cut before the first byte", "cut=0", 100, func(w world) { ended(w); held(w) }},
		{"cut in the length", "cut=1", 100, func(w world) { broken(w); held(w) }},
		{"cut in the message", "cut=20", 100, func(w world) { broken(w); held(w) }},
		{"cut after the last byte", "cut=9999", 100, func(w world) { approved(w, w.link); ended(w); held(w) }},
		{"cut where chance says", "cut", 100, func(w world) { broken(w); held(w) }},
		{"cut by the amount", "", 9304, func(w world) { broken(w); held(w) }},
		{"cut after what stood aside", "amount=100 reorder", 100, func(w world) {
			synctest.Wait() // until it stands aside
			if err := w.p.SetRules(rules(w.t, "cut=3")...); err != nil {
				w.t.Error(err)
			}
			w.link.send(w.link.request(visa, 200))
			approved(w, w.link)
			broken(w)
		}},
		{"stall", "amount=100 stall=7s", 100, func(w world) {
			approved(w, w.link)
			before := time.Now()
			if got := w.link.code(w.link.request(visa, 200)); got != "00" || time.Since(before) != 7*time.Second {
				w.t.Errorf("the next is answered %q after %v", got, time.Since(before))
			}
		}},
		{"stall by the amount", "", 9405, func(w world) {
			approved(w, w.link)
			before := time.Now()
			if got := w.link.code(w.link.request(visa, 200)); got != "00" || time.Since(before) != 2*time.Second {
				w.t.Errorf("the next is answered %q after %v", got, time.Since(before))
			}
		}},
		{"reorder before a close", "amount=100 reorder close", 100, func(w world) { approved(w, w.link); ended(w) }},
		{"reorder without a second answer", "amount=100 reorder", 100, func(w world) { approved(w, w.link) }},
	} {
		for _, dialect := range []string{"iso87-ascii", "iso87-binary"} {
			t.Run(c.name+" in "+dialect, func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					cfg := simulator.ProcessorConfig{Codec: codec(t, dialect)}
					if c.rule != "" {
						cfg.Rules = rules(t, c.rule)
					}
					p, listener, stop := serve(t, cfg)
					defer stop()
					dial(t, cfg.Codec, listener, 0) // the oldest link, which has not signed on and is sent nothing
					w := world{t: t, p: p, link: signedOn(t, cfg.Codec, listener, 0), other: signedOn(t, cfg.Codec, listener, 1000)}
					w.request = w.link.request(visa, c.amount)
					w.link.send(w.request)
					c.check(w)
				})
			})
		}
	}
}

func TestAnAnswerWithoutALinkWaitsForTheNextSignOn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := codec(t, "iso87-ascii")
		_, listener, stop := serve(t, simulator.ProcessorConfig{Codec: c})
		defer stop()
		link := signedOn(t, c, listener, 0)
		request := link.request(visa, 9303)
		link.send(request)
		if _, err := link.read(); !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		next := signedOn(t, c, listener, 10)
		if got := next.receive().Get(messages.STAN); got != request.Get(messages.STAN) {
			t.Errorf("the answer of %s came", got)
		}
	})
}

func TestALinkMustSignOn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := codec(t, "iso87-ascii")
		p, listener, stop := serve(t, simulator.ProcessorConfig{Codec: c})
		defer stop()
		link := dial(t, c, listener, 0)
		if got := link.code(link.request(visa, 100)); got != "91" {
			t.Errorf("before sign-on: %q", got)
		}
		if got := link.code(link.network("301")); got != "00" {
			t.Errorf("echo: %q", got)
		}
		if got := link.code(link.network("001")); got != "00" || p.SignedOn() != 1 {
			t.Errorf("sign-on: %q, %d links", got, p.SignedOn())
		}
		if got := link.code(link.request(visa, 100)); got != "00" {
			t.Errorf("after sign-on: %q", got)
		}
		if got := link.code(link.network("002")); got != "00" || p.SignedOn() != 0 {
			t.Errorf("sign-off: %q, %d links", got, p.SignedOn())
		}
		if got := link.code(link.request(visa, 100)); got != "91" {
			t.Errorf("after sign-off: %q", got)
		}
		if got := link.code(link.network("101")); got != "12" {
			t.Errorf("an 0800 of another kind: %q", got)
		}
		counts := p.Ledger().Counts()
		if counts.BeforeSignOn != 2 || counts.SignOns != 1 || counts.SignOffs != 1 || counts.Echoes != 1 || counts.Requests != 1 {
			t.Errorf("counted %+v", counts)
		}
	})
	bubble(t, func(t *testing.T) {
		c := codec(t, "iso87-ascii")
		_, listener, stop := serve(t, simulator.ProcessorConfig{Codec: c, AcceptBeforeSignOn: true})
		defer stop()
		link := dial(t, c, listener, 0)
		if got := link.code(link.request(visa, 100)); got != "00" {
			t.Errorf("with AcceptBeforeSignOn: %q", got)
		}
	})
	bubble(t, func(t *testing.T) {
		c := codec(t, "iso87-ascii")
		p, listener, stop := serve(t, simulator.ProcessorConfig{Codec: c, Rules: rules(t, "mti=0800 answer=91 times=2")})
		defer stop()
		link := dial(t, c, listener, 0)
		first, second, third := link.code(link.network("001")), link.code(link.network("001")), link.code(link.network("001"))
		if first != "91" || second != "91" || third != "00" || p.SignedOn() != 1 {
			t.Errorf("sign-ons are answered %s, %s, %s", first, second, third)
		}
	})
}

// A format 4 block of the PIN 1234 and the card visa, made by others: zpk_translation/aes-iso4-iso4 of vectors.json.
const (
	aesHex       = "AF8CB133A78F8DC2D1359F18527593FB"
	vectorOfISO4 = "A912150391AB65A67E52883D81CE2D15"
)

func unhexed(t testing.TB, text string) string {
	t.Helper()
	value, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return string(value)
}

// keyOf reads a key for PIN blocks of a format.
func keyOf(t testing.TB, format simulator.PINFormat, text string) *simulator.Key {
	t.Helper()
	path := filepath.Join(t.TempDir(), "zpk.key")
	if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	k, err := simulator.ReadKeyFile(path, format)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestAPINIsVerified(t *testing.T) {
	for _, c := range []struct {
		name, card, pin, zpk, code string
		right, wrong, malformed    int64
	}{
		{"the default PIN", visa, "1234", zpkHex, "00", 1, 0, 0},
		{"another PIN", visa, "1235", zpkHex, "55", 0, 1, 0},
		{"a PIN of another length", visa, "12345", zpkHex, "55", 0, 1, 0},
		{"a card's own PIN", "5500000000000004", "4321", zpkHex, "00", 1, 0, 0},
		{"the default PIN of a card with its own", "5500000000000004", "1234", zpkHex, "55", 0, 1, 0},
		{"a PIN of twelve digits and a card of nineteen", "6304000000000000000", "987654321098", zpkHex, "00", 1, 0, 0},
		{"a card of thirteen digits", "4222222222222", "1234", zpkHex, "00", 1, 0, 0},
		{"another key", visa, "1234", otherZPKHex, "55", 0, 0, 1},
		{"a card that declines is not asked for its PIN", "4000000000009995", "9999", zpkHex, "51", 0, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				cfg := simulator.ProcessorConfig{Codec: codec(t, "iso87-binary"), ZPK: key(t, zpkHex)}
				p, listener, stop := serve(t, cfg)
				defer stop()
				link := signedOn(t, cfg.Codec, listener, 0)
				request := link.request(c.card, 100)
				block, err := key(t, c.zpk).PINBlock(pin(t, c.pin), request.PAN())
				if err != nil {
					t.Fatal(err)
				}
				request.SetPINBlock(block)
				if got := link.code(request); got != c.code {
					t.Errorf("answered %q, want %q", got, c.code)
				}
				counts := p.Ledger().Counts()
				if counts.RightPINs != c.right || counts.WrongPINs != c.wrong || counts.MalformedPINBlocks != c.malformed {
					t.Errorf("counted %+v", counts)
				}
			})
		})
	}
	t.Run("a block of another format is none", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			cfg := simulator.ProcessorConfig{Codec: codec(t, "iso87-binary"), ZPK: key(t, zpkHex)}
			p, listener, stop := serve(t, cfg)
			defer stop()
			link := signedOn(t, cfg.Codec, listener, 0)
			request := link.request(visa, 100)
			// Format 3 (ISO 9564-1, 9.3.5) differs in its first nibble and fill; this one has a fill that format 0 would take too.
			request.SetSensitive(messages.PINData, encipher(t, zpkHex, "341225EEEEEEEEEE"))
			if got := link.code(request); got != "55" || p.Ledger().Counts().MalformedPINBlocks != 1 {
				t.Errorf("answered %q, counted %+v", got, p.Ledger().Counts())
			}
		})
	})
	for _, format := range []simulator.PINFormat{simulator.ISO1, simulator.ISO3, simulator.ISO4} {
		t.Run("a PIN block of "+string(format), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				c, keyText := codec(t, "iso87-binary"), zpkHex
				if format == simulator.ISO4 {
					c, keyText = codecWith(t, "iso87-binary", "52: { type: Binary, length: 8,", "52: { type: Binary, length: 16,"), aesHex
				}
				cfg := simulator.ProcessorConfig{Codec: c, ZPK: keyOf(t, format, keyText)}
				p, listener, stop := serve(t, cfg)
				defer stop()
				link := signedOn(t, cfg.Codec, listener, 0)
				for i, asked := range []struct{ card, pin, code string }{
					{visa, "1234", "00"}, {"6304000000000000000", "987654321098", "00"}, {"4222222222222", "1234", "00"}, {visa, "1235", "55"}, {visa, "12345", "55"},
				} {
					request := link.request(asked.card, int64(100+i))
					block, err := cfg.ZPK.PINBlock(pin(t, asked.pin), request.PAN())
					if err != nil {
						t.Fatal(err)
					}
					request.SetPINBlock(block)
					if got := link.code(request); got != asked.code {
						t.Errorf("PIN of %d digits, card of %d: answered %q, want %q", len(asked.pin), len(asked.card), got, asked.code)
					}
				}
				other := link.request(visa, 200)
				garbage := make([]byte, map[bool]int{true: 16, false: 8}[format == simulator.ISO4])
				other.SetSensitive(messages.PINData, string(garbage))
				if got := link.code(other); got != "55" {
					t.Errorf("garbage: answered %q", got)
				}
				counts := p.Ledger().Counts()
				if counts.RightPINs != 3 || counts.WrongPINs != 2 || counts.MalformedPINBlocks != 1 {
					t.Errorf("counted %+v", counts)
				}
			})
		})
	}
	t.Run("a block of 16 bytes under a key of 8 is none", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			cfg := simulator.ProcessorConfig{Codec: codecWith(t, "iso87-binary", "52: { type: Binary, length: 8,", "52: { type: Binary, length: 16,"), ZPK: key(t, zpkHex)}
			p, listener, stop := serve(t, cfg)
			defer stop()
			link := signedOn(t, cfg.Codec, listener, 0)
			request := link.request(visa, 100)
			request.SetSensitive(messages.PINData, unhexed(t, vectorOfISO4))
			if got := link.code(request); got != "55" || p.Ledger().Counts().MalformedPINBlocks != 1 {
				t.Errorf("answered %q, counted %+v", got, p.Ledger().Counts())
			}
		})
	})
	t.Run("a format 4 block that others made", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			c := codecWith(t, "iso87-binary", "52: { type: Binary, length: 8,", "52: { type: Binary, length: 16,")
			p, listener, stop := serve(t, simulator.ProcessorConfig{Codec: c, ZPK: keyOf(t, simulator.ISO4, aesHex)})
			defer stop()
			link := signedOn(t, c, listener, 0)
			request := link.request(visa, 100)
			request.SetSensitive(messages.PINData, unhexed(t, vectorOfISO4))
			if got := link.code(request); got != "00" || p.Ledger().Counts().RightPINs != 1 {
				t.Errorf("answered %q, counted %+v", got, p.Ledger().Counts())
			}
		})
	})
	t.Run("without a key no PIN is checked", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			cfg := simulator.ProcessorConfig{Codec: codec(t, "iso87-binary")}
			_, listener, stop := serve(t, cfg)
			defer stop()
			link := signedOn(t, cfg.Codec, listener, 0)
			request := link.request(visa, 100)
			block, err := key(t, zpkHex).PINBlock(pin(t, "9999"), request.PAN())
			if err != nil {
				t.Fatal(err)
			}
			request.SetPINBlock(block)
			if got := link.code(request); got != "00" {
				t.Errorf("answered %q", got)
			}
		})
	})
}

func TestAReversalUndoesItsOriginal(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := codec(t, "iso87-ascii")
		p, listener, stop := serve(t, simulator.ProcessorConfig{Codec: c})
		defer stop()
		link := signedOn(t, c, listener, 0)

		request := link.request(visa, 1250)
		link.ask(request)
		reversal := link.reversal(request)
		if got := link.code(reversal); got != "00" {
			t.Errorf("the reversal is answered %q", got)
		}
		hold := p.Ledger().Snapshot().Holds[0]
		if hold.State != simulator.Reversed || hold.ReversedAt.IsZero() || hold.Reversals != 1 || hold.Repeats != 0 || hold.UnmarkedRepeats != 0 {
			t.Errorf("entered %+v", hold)
		}

		reversal.MTI = reversal.MTI.Repeat()
		if got := link.code(reversal); got != "00" {
			t.Errorf("its repeat is answered %q", got)
		}
		reversal.MTI = "0420"
		if got := link.code(reversal); got != "00" {
			t.Errorf("its unmarked repeat is answered %q", got)
		}
		hold = p.Ledger().Snapshot().Holds[0]
		counts := p.Ledger().Counts()
		if hold.Reversals != 3 || hold.Repeats != 1 || hold.UnmarkedRepeats != 1 || counts.AlreadyReversed != 2 || counts.Reversed != 1 ||
			counts.Held != 0 || counts.UnmarkedRepeats != 1 || counts.DisagreeingReversals != 0 {
			t.Errorf("entered %+v, counted %+v", hold, counts)
		}

		declined := link.request(visa, 9051)
		link.ask(declined)
		if got := link.code(link.reversal(declined)); got != "00" {
			t.Errorf("the reversal of a decline is answered %q", got)
		}
		if state := p.Ledger().Snapshot().Holds[1].State; state != simulator.Declined {
			t.Errorf("a decline that is reversed is %s", state)
		}

		overtaken := link.request(visa, 100)
		link.ask(overtaken)
		reversal = link.reversal(overtaken)
		for _, mti := range []messages.MTI{"0421", "0420", "0421"} {
			reversal.MTI = mti
			link.ask(reversal)
		}
		if hold := p.Ledger().Snapshot().Holds[2]; hold.Reversals != 3 || hold.Repeats != 2 || hold.UnmarkedRepeats != 0 {
			t.Errorf("an 0420 that its repeat has overtaken: %+v", hold)
		}

		disagreeing := link.request(visa, 100)
		link.ask(disagreeing)
		disagreeing.Set(messages.Amount, "000000000099")
		link.ask(link.reversal(disagreeing))
		if n := p.Ledger().Counts().DisagreeingReversals; n != 1 {
			t.Errorf("%d reversals disagree", n)
		}
	})
}

func TestEveryTypeOfReversalIsTaken(t *testing.T) {
	for _, mti := range []messages.MTI{"0400", "0401", "0420", "0421"} {
		bubble(t, func(t *testing.T) {
			c := codec(t, "iso87-binary")
			p, listener, stop := serve(t, simulator.ProcessorConfig{Codec: c})
			defer stop()
			link := signedOn(t, c, listener, 0)
			request := link.request(visa, 100)
			request.MTI = messages.FinancialRequest
			link.ask(request)
			reversal := link.reversal(request)
			reversal.MTI = mti
			answer := link.ask(reversal)
			if answer.MTI != mti.Answer() || answer.Get(messages.ResponseCode) != "00" || p.Ledger().Counts().Reversed != 1 {
				t.Errorf("%s is answered %v", mti, answer)
			}
			if n := p.Ledger().Counts().UnmarkedRepeats; n != 0 {
				t.Errorf("%s alone counts as an unmarked repeat", mti)
			}
		})
	}
}

func TestAnOriginalAfterItsReversalHoldsNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := codec(t, "iso87-ascii")
		p, listener, stop := serve(t, simulator.ProcessorConfig{Codec: c})
		defer stop()
		link := signedOn(t, c, listener, 0)
		request := link.request(visa, 1250)
		if got := link.code(link.reversal(request)); got != "25" {
			t.Errorf("the reversal is answered %q", got)
		}
		if got := link.code(request); got != "21" {
			t.Errorf("the original is answered %q", got)
		}
		reversal := link.reversal(request)
		reversal.MTI = "0421"
		if got := link.code(reversal); got != "00" {
			t.Errorf("the repeated reversal is answered %q", got)
		}
		s := p.Ledger().Snapshot()
		if s.Counts.Held != 0 || s.Counts.RefusedAfterReversal != 1 || s.Holds[0].State != simulator.Declined || s.Holds[0].Reversals != 2 {
			t.Errorf("entered %+v, counted %+v", s.Holds[0], s.Counts)
		}
		if len(s.UnknownReversals) != 1 || !s.UnknownReversals[0].OriginalCame || s.UnknownReversals[0].OtherCard {
			t.Errorf("unknown reversals: %+v", s.UnknownReversals)
		}
	})
	t.Run("when the original is late", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			c := codec(t, "iso87-ascii")
			p, listener, stop := serve(t, simulator.ProcessorConfig{Codec: c})
			defer stop()
			link := signedOn(t, c, listener, 0)
			request := link.request(visa, 9202)
			link.send(request)
			if got := link.code(link.reversal(request)); got != "25" {
				t.Errorf("the reversal is answered %q", got)
			}
			if got := link.receive().Get(messages.ResponseCode); got != "21" {
				t.Errorf("the original is answered %q", got)
			}
			if n := p.Ledger().Counts().Held; n != 0 {
				t.Errorf("%d holds", n)
			}
		})
	})
}

func TestAReversalOfAnotherCardUndoesNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := codec(t, "iso87-ascii")
		p, listener, stop := serve(t, simulator.ProcessorConfig{Codec: c})
		defer stop()
		link := signedOn(t, c, listener, 0)
		request := link.request(visa, 1250)
		link.ask(request)
		reversal := link.reversal(request)
		reversal.SetPAN(pan(t, mastercard))
		if got := link.code(reversal); got != "25" {
			t.Errorf("answered %q", got)
		}
		s := p.Ledger().Snapshot()
		if s.Counts.Held != 1 || len(s.UnknownReversals) != 1 || !s.UnknownReversals[0].OtherCard {
			t.Errorf("entered %+v", s)
		}
		// Again without the mark, and then to a processor that is busy: it stays one unknown reversal.
		if got := link.code(reversal); got != "25" {
			t.Errorf("again: answered %q", got)
		}
		if err := p.SetRules(rules(t, "mti=042 answer=91")...); err != nil {
			t.Error(err)
		}
		reversal.MTI = "0421"
		if got := link.code(reversal); got != "91" {
			t.Errorf("refused: answered %q", got)
		}
		s = p.Ledger().Snapshot()
		if u := s.UnknownReversals[0]; len(s.UnknownReversals) != 1 || u.Reversals != 3 || u.Repeats != 1 || u.UnmarkedRepeats != 1 || s.Counts.UnknownReversals != 2 {
			t.Errorf("entered %+v, counted %+v", s.UnknownReversals, s.Counts)
		}
		reversal.Delete(messages.OriginalData)
		reversal.MTI = "0400"
		answer := link.ask(reversal)
		if answer.Get(messages.ResponseCode) != "30" || answer.Reveal(messages.AdditionalResponse) != "090" {
			t.Errorf("without DE 90: %v", answer)
		}
	})
}

func TestAReversalCanFailToo(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := codec(t, "iso87-ascii")
		p, listener, stop := serve(t, simulator.ProcessorConfig{Codec: c})
		defer stop()
		link := signedOn(t, c, listener, 0)
		state := func() simulator.State {
			s := p.Ledger().Snapshot()
			return s.Holds[len(s.Holds)-1].State
		}
		for _, step := range []struct {
			amount              int64
			first, second       string
			afterFirst, atLast  simulator.State
			unmarked, reversals int
		}{
			{9500, "", "00", simulator.Reversed, simulator.Reversed, 0, 2},
			{9501, "91", "00", simulator.Held, simulator.Reversed, 0, 2},
			{9502, "12", "12", simulator.Held, simulator.Held, 0, 2},
			{9503, "", "00", simulator.Held, simulator.Reversed, 0, 1},
		} {
			request := link.request(visa, step.amount)
			link.ask(request)
			reversal := link.reversal(request)
			link.send(reversal)
			if step.first == "" {
				link.quiet()
			} else if got := link.receive().Get(messages.ResponseCode); got != step.first {
				t.Errorf("%d: first %q", step.amount, got)
			}
			if got := state(); got != step.afterFirst {
				t.Errorf("%d: %s after the first", step.amount, got)
			}
			reversal.MTI = "0421"
			if got := link.code(reversal); got != step.second || state() != step.atLast {
				t.Errorf("%d: then %q, %s", step.amount, got, state())
			}
			s := p.Ledger().Snapshot()
			if hold := s.Holds[len(s.Holds)-1]; hold.UnmarkedRepeats != step.unmarked || hold.Reversals != step.reversals {
				t.Errorf("%d: %+v", step.amount, hold)
			}
		}
	})
}

func TestAReversalInPartLowersItsOriginal(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := codec(t, "iso87-ascii")
		p, listener, stop := serve(t, simulator.ProcessorConfig{Codec: c})
		defer stop()
		link := signedOn(t, c, listener, 0)
		request := link.request(visa, 1250)
		link.ask(request)
		partial := func(replacement string) *messages.Message {
			reversal := link.reversal(request)
			reversal.Set(messages.ReplacementAmounts, replacement)
			return reversal
		}
		const rest = "000000000000000000000000000000"
		step := func(name string, m *messages.Message, code string, held int64, state simulator.State) {
			t.Helper()
			if got := link.code(m); got != code {
				t.Errorf("%s is answered %q, want %q", name, got, code)
			}
			if hold := p.Ledger().Snapshot().Holds[0]; hold.State != state || hold.ApprovedAmount != held {
				t.Errorf("after %s: %+v", name, hold)
			}
		}
		repeated := func(m *messages.Message) *messages.Message { m.MTI = m.MTI.Repeat(); return m }
		step("a part", partial("000000000400"+rest), "00", 400, simulator.Held)
		step("its repeat", repeated(partial("000000000400"+rest)), "00", 400, simulator.Held)
		again := request.Clone()
		again.MTI = "0101"
		step("the request's repeat", again, "00", 400, simulator.Held)
		if counts := p.Ledger().Counts(); counts.PartialReversals != 1 || counts.AlreadyReversed != 1 || counts.UnmarkedRepeats != 0 ||
			counts.DisagreeingReversals != 0 || counts.Held != 1 {
			t.Errorf("counted %+v", counts)
		}
		step("another part", repeated(partial("000000000300"+rest)), "00", 300, simulator.Held)
		step("more than is held", repeated(partial("000000000900"+rest)), "00", 300, simulator.Held)
		step("a text", repeated(partial("ABC000000400"+rest)), "30", 300, simulator.Held)
		if n := p.Ledger().Counts().DisagreeingReversals; n != 2 {
			t.Errorf("%d reversals disagree", n)
		}
		step("nothing that remains", repeated(partial("000000000000"+rest)), "00", 300, simulator.Reversed)
		step("a part of what is reversed", repeated(partial("000000000100"+rest)), "00", 300, simulator.Reversed)

		hold := p.Ledger().Snapshot().Holds[0]
		if want := (simulator.Event{At: hold.RequestedAt, MTI: "0420", Code: "00", Replacement: 400}); len(hold.Events.Events) != 8 ||
			fmt.Sprint(hold.Events.Events[1]) != fmt.Sprint(want) {
			t.Errorf("events %+v", hold.Events)
		}
	})
}

func TestAReversalIsKnownByItsOriginalDataAlone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := codec(t, "iso87-ascii")
		p, listener, stop := serve(t, simulator.ProcessorConfig{Codec: c, Rules: rules(t, "mti=04 lost attempt=1")})
		defer stop()
		link := signedOn(t, c, listener, 0)
		request := link.request(visa, 1250)
		link.ask(request)
		reversal := link.reversal(request)
		for i := range 3 {
			reversal.Set(messages.STAN, link.number())
			reversal.Set(messages.TransmissionTime, "1123120105")
			link.send(reversal)
			if i == 0 {
				link.quiet() // an attempt is one of the original, too
			} else if got := link.receive().Get(messages.ResponseCode); got != "00" {
				t.Errorf("answered %q", got)
			}
			reversal.MTI = "0421"
		}
		hold, counts := p.Ledger().Snapshot().Holds[0], p.Ledger().Counts()
		if hold.State != simulator.Reversed || hold.Reversals != 2 || counts.UnknownReversals+counts.UnmarkedRepeats+counts.DisagreeingReversals != 0 {
			t.Errorf("entered %+v, counted %+v", hold, counts)
		}
		if lost := hold.Events.Events[1]; lost.MTI != "0420" || lost.Code != "" || !slices.Equal(lost.Effects, []string{"lost"}) {
			t.Errorf("noted %+v", hold.Events)
		}
	})
}

func TestAHoldListsItsFirstMessages(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := codec(t, "iso87-ascii")
		p, listener, stop := serve(t, simulator.ProcessorConfig{Codec: c})
		defer stop()
		link := signedOn(t, c, listener, 0)
		request := link.request(visa, 1250)
		link.ask(request)
		request.MTI = "0101"
		for range 20 {
			link.ask(request)
		}
		hold := p.Ledger().Snapshot().Holds[0]
		if len(hold.Events.Events) != 16 || hold.MoreEvents != 5 {
			t.Errorf("%d events, and %d", len(hold.Events.Events), hold.MoreEvents)
		}
		hold.Events.Events[0].Code = "99"
		if got := p.Ledger().Snapshot().Holds[0].Events.Events[0].Code; got != "00" {
			t.Errorf("a snapshot shares its events: %q", got)
		}
	})
}

func TestAnAdviceIsTakenOnce(t *testing.T) {
	for _, mti := range []messages.MTI{"0120", "0220"} {
		bubble(t, func(t *testing.T) {
			c := codec(t, "iso87-binary")
			p, listener, stop := serve(t, simulator.ProcessorConfig{Codec: c, Rules: rules(t, "mti="+string(mti[:3])+" amount=777 answer=91 attempt=1")})
			defer stop()
			link := signedOn(t, c, listener, 0)
			step := func(name string, m *messages.Message, code string) {
				t.Helper()
				if answer := link.ask(m); answer.MTI != m.MTI.Answer() || answer.Get(messages.ResponseCode) != code {
					t.Errorf("%s is answered %v, want %s", name, answer, code)
				}
			}
			last := func() simulator.Hold {
				s := p.Ledger().Snapshot()
				return s.Holds[len(s.Holds)-1]
			}
			advice := link.request(visa, 9051) // an amount means nothing for an advice
			advice.MTI = mti
			step("an advice", advice, "00")
			advice.MTI = mti.Repeat()
			step("its repeat", advice, "00")
			if hold, counts := last(), p.Ledger().Counts(); !hold.Advice || hold.State != simulator.Held || hold.ApprovedAmount != 9051 || hold.Advices != 2 ||
				hold.AdviceRepeats != 1 || counts.Advices != 1 || counts.RepeatedAdvices != 1 || counts.UnmarkedAdvices != 0 || counts.Held != 1 || counts.Requests != 0 {
				t.Errorf("entered %+v, counted %+v", hold, counts)
			}
			advice.MTI = mti
			step("the same without its mark", advice, "00")
			advice.Set(messages.Amount, "000000000001")
			advice.MTI = mti.Repeat()
			step("another amount", advice, "94")
			advice.Set(messages.Amount, "000000009051")
			if counts := p.Ledger().Counts(); counts.UnmarkedAdvices != 1 || counts.DisagreeingAdvices != 1 || counts.Advices != 1 || counts.DuplicateRequests != 0 {
				t.Errorf("counted %+v", counts)
			}
			advice.MTI = mti
			step("its reversal", link.reversal(advice), "00")
			if hold := last(); hold.State != simulator.Reversed {
				t.Errorf("entered %+v", hold)
			}
			request := advice.Clone()
			request.MTI = mti[:2] + "00"
			step("a request of its numbers", request, "94")
			if n := p.Ledger().Counts().DuplicateRequests; n != 1 {
				t.Errorf("%d duplicates", n)
			}

			refused := link.request(visa, 777)
			refused.MTI = mti
			step("an advice that is refused", refused, "91")
			if hold := last(); hold.State != simulator.Declined || hold.ApprovedAmount != 0 || hold.ResponseCode != "91" {
				t.Errorf("entered %+v", hold)
			}
			refused.MTI = mti.Repeat()
			step("its repeat", refused, "00")
			if hold, counts := last(), p.Ledger().Counts(); hold.State != simulator.Held || hold.ApprovedAmount != 777 || counts.Declined != 0 || counts.Held != 1 {
				t.Errorf("entered %+v, counted %+v", hold, counts)
			}

			overtaken := link.request(visa, 100)
			overtaken.MTI = mti
			step("a reversal before its advice", link.reversal(overtaken), "25")
			step("the advice after it", overtaken, "00")
			if hold := last(); hold.State != simulator.Reversed || hold.ApprovedAmount != 0 {
				t.Errorf("entered %+v", hold)
			}

			untaken := link.request(visa, 777)
			untaken.MTI = mti
			step("one more that is refused", untaken, "91")
			step("its reversal", link.reversal(untaken), "00")
			untaken.MTI = mti.Repeat()
			step("its repeat after that", untaken, "00")
			if hold, counts := last(), p.Ledger().Counts(); hold.State != simulator.Reversed || counts.Held != 1 || counts.Declined != 0 || counts.Reversed != 3 {
				t.Errorf("entered %+v, counted %+v", hold, counts)
			}
		})
	}
	bubble(t, func(t *testing.T) {
		c := codec(t, "iso87-ascii")
		_, listener, stop := serve(t, simulator.ProcessorConfig{Codec: c, Ledger: simulator.NewLedger(1)})
		defer stop()
		link := signedOn(t, c, listener, 0)
		link.ask(link.request(visa, 100))
		advice := link.request(visa, 100)
		advice.MTI = "0220"
		if got := link.code(advice); got != "96" {
			t.Errorf("a full ledger answers %q", got)
		}
	})
}

func TestAnAdviceCanFailToo(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := codec(t, "iso87-ascii")
		p, listener, stop := serve(t, simulator.ProcessorConfig{Codec: c})
		defer stop()
		link := signedOn(t, c, listener, 0)
		for _, step := range []struct {
			amount        int64
			first, second string
			state         simulator.State
			advices       int
		}{
			{9600, "", "00", simulator.Held, 2},
			{9601, "91", "00", simulator.Held, 2},
			{9602, "12", "12", simulator.Declined, 2},
			{9603, "", "00", simulator.Held, 1},
		} {
			advice := link.request(visa, step.amount)
			advice.MTI = "0220"
			link.send(advice)
			if step.first == "" {
				link.quiet()
			} else if got := link.receive().Get(messages.ResponseCode); got != step.first {
				t.Errorf("%d: first %q", step.amount, got)
			}
			advice.MTI = "0221"
			got := link.code(advice)
			s := p.Ledger().Snapshot()
			if hold := s.Holds[len(s.Holds)-1]; got != step.second || hold.State != step.state || hold.Advices != step.advices || s.Counts.UnmarkedAdvices != 0 {
				t.Errorf("%d: then %q, %+v", step.amount, got, hold)
			}
		}
	})
}

func TestANumberThatIsUsedTwiceIsADuplicate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := codec(t, "iso87-ascii")
		p, listener, stop := serve(t, simulator.ProcessorConfig{Codec: c})
		defer stop()
		link := signedOn(t, c, listener, 0)
		request := link.request(visa, 1250)
		first := link.ask(request)
		if got := link.code(request); got != "94" {
			t.Errorf("the same again is answered %q", got)
		}
		request.Set(messages.Amount, "000000000099")
		if got := link.code(request); got != "94" {
			t.Errorf("another amount under the same number is answered %q", got)
		}
		request.Set(messages.Amount, "000000001250")
		request.MTI = "0101"
		answer := link.ask(request)
		request.Set(messages.Amount, "000000001251")
		if got := link.code(request); got != "94" {
			t.Errorf("a marked repeat of another amount is answered %q", got)
		}
		request.Set(messages.Amount, "000000001250")
		if answer.Get(messages.ResponseCode) != "00" || answer.Get(messages.AuthorizationID) != first.Get(messages.AuthorizationID) {
			t.Errorf("a marked repeat is answered %v", answer)
		}
		link.ask(link.reversal(request))
		if got := link.code(request); got != "21" {
			t.Errorf("a marked repeat of what is reversed is answered %q", got)
		}
		request.MTI = "0100"
		request.Set(messages.Terminal, "TERM0002")
		if got := link.code(request); got != "00" {
			t.Errorf("the number of another terminal is answered %q", got)
		}
		s := p.Ledger().Snapshot()
		want := []simulator.RequestKey{{Class: "1", STAN: "000002", TransmissionTime: "1123120059", Terminal: "TERM0001", SameContent: true},
			{Class: "1", STAN: "000002", TransmissionTime: "1123120059", Terminal: "TERM0001"},
			{Class: "1", STAN: "000002", TransmissionTime: "1123120059", Terminal: "TERM0001"}}
		if !slices.Equal(s.DuplicateRequests, want) || s.Counts.DuplicateRequests != 3 || s.Counts.RepeatedRequests != 2 || s.Counts.Held != 1 {
			t.Errorf("duplicates %+v, counted %+v", s.DuplicateRequests, s.Counts)
		}
	})
}

func TestARepeatMayOvertakeItsRequest(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := codec(t, "iso87-ascii")
		p, listener, stop := serve(t, simulator.ProcessorConfig{Codec: c})
		defer stop()
		link := signedOn(t, c, listener, 0)
		request := link.request(visa, 1250)
		for _, step := range []struct {
			mti  messages.MTI
			code string
		}{{"0101", "00"}, {"0100", "00"}, {"0101", "00"}, {"0100", "94"}} {
			request.MTI = step.mti
			if got := link.code(request); got != step.code {
				t.Errorf("%s is answered %q, want %q", step.mti, got, step.code)
			}
		}
		if counts := p.Ledger().Counts(); counts.Held != 1 || counts.RepeatedRequests != 2 || counts.DuplicateRequests != 1 {
			t.Errorf("counted %+v", counts)
		}
	})
}

func TestWhatDoesNotKeepTheFormatIsRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := codec(t, "iso87-ascii")
		p, listener, stop := serve(t, simulator.ProcessorConfig{Codec: c})
		defer stop()
		link := signedOn(t, c, listener, 0)
		request := link.request(visa, 100)
		request.Delete(messages.Currency)
		answer := link.ask(request)
		if answer.Get(messages.ResponseCode) != "30" || answer.Reveal(messages.AdditionalResponse) != "049" {
			t.Errorf("without a currency: %v", answer)
		}
		update := link.request(visa, 100)
		update.MTI = "0300"
		if got := link.code(update); got != "12" {
			t.Errorf("an 0300 is answered %q", got)
		}
		late := link.request(visa, 100)
		late.MTI = "0110"
		late.Set(messages.ResponseCode, "00")
		link.send(late)
		if got := link.code(link.network("301")); got != "00" {
			t.Errorf("after an answer that nobody asked for, an echo is answered %q", got)
		}
		if _, err := link.conn.Write([]byte("0004abcd")); err != nil {
			t.Fatal(err)
		}
		if m, err := link.read(); !errors.Is(err, io.EOF) {
			t.Errorf("got %v, %v, want the link's end", m, err)
		}
		counts := p.Ledger().Counts()
		if counts.FormatErrors != 2 || counts.Unsupported != 1 || counts.Unasked != 1 || counts.Requests != 0 {
			t.Errorf("counted %+v", counts)
		}
	})
}

func TestChanceDependsOnTheSeedAlone(t *testing.T) {
	run := func(t *testing.T, seed uint64, backwards bool) map[string]int64 {
		var effects map[string]int64
		bubble(t, func(t *testing.T) {
			c := codec(t, "iso87-ascii")
			p, listener, stop := serve(t, simulator.ProcessorConfig{Codec: c, Faults: simulator.Faults{Seed: seed, Lost: 0.1, Late: 0.1, Delay: 0.1,
				Silence: 0.1, Duplicate: 0.1, Reorder: 0.1, Garble: 0.1, NoSTAN: 0.1, OtherLink: 0.1}})
			defer stop()
			link := signedOn(t, c, listener, 0)
			var requests []*messages.Message
			for range 100 {
				requests = append(requests, link.request(visa, 100))
			}
			if backwards {
				slices.Reverse(requests)
			}
			go func() { _, _ = io.Copy(io.Discard, link.conn) }()
			for _, request := range requests {
				link.send(request)
			}
			<-time.After(time.Minute) // of the bubble's clock
			if err := p.SetFaults(simulator.Faults{}); err != nil {
				t.Error(err)
			}
			effects = p.Ledger().Counts().Effects
			_ = link.conn.Close()
		})
		return effects
	}
	first, again, other := run(t, 7, false), run(t, 7, true), run(t, 8, false)
	text := func(m map[string]int64) string { b, _ := json.Marshal(m); return string(b) }
	if text(first) != text(again) || text(first) == text(other) || len(first) != 9 {
		t.Errorf("seed 7: %s\nbackwards: %s\nseed 8: %s", text(first), text(again), text(other))
	}
}

func TestANewFaultLeavesTheOthersWhereTheyWere(t *testing.T) {
	run := func(t *testing.T, faults simulator.Faults) map[string]int64 {
		var effects map[string]int64
		bubble(t, func(t *testing.T) {
			c := codec(t, "iso87-ascii")
			p, listener, stop := serve(t, simulator.ProcessorConfig{Codec: c, Faults: faults})
			defer stop()
			for range 100 {
				link := signedOn(t, c, listener, 1000)
				link.stan = int(p.Ledger().Counts().Links)
				link.send(link.request(visa, 100))
				for {
					if _, err := link.read(); err != nil {
						break
					}
				}
				_ = link.conn.Close()
			}
			effects = p.Ledger().Counts().Effects
		})
		return effects
	}
	faults := simulator.Faults{Seed: 7, Delay: .2, Silence: .2, Duplicate: .2, OtherLink: .2}
	before := run(t, faults)
	faults.CutAnswer, faults.Stall = .2, .2
	after := run(t, faults)
	for name, n := range before {
		if after[name] != n {
			t.Errorf("%s: %d before, %d with the new ones", name, n, after[name])
		}
	}
	if len(before) != 4 || after["cut_answer"] == 0 || after["stall"] == 0 {
		t.Errorf("before %v, after %v", before, after)
	}
}

func TestGarbledAnswersNeverDecode(t *testing.T) {
	for _, dialect := range []string{"iso87-ascii", "iso87-binary"} {
		bubble(t, func(t *testing.T) {
			c := codec(t, dialect)
			_, listener, stop := serve(t, simulator.ProcessorConfig{Codec: c, Faults: simulator.Faults{Garble: 1}})
			defer stop()
			link := signedOn(t, c, listener, 0)
			for range 200 {
				link.send(link.request(visa, 100))
				if m, err := link.read(); err == nil || errors.Is(err, errQuiet) || errors.Is(err, io.EOF) {
					t.Fatalf("got %v, %v", m, err)
				}
			}
		})
	}
}

func TestTheLedgerIsReadable(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := codec(t, "iso87-ascii")
		var traced []string
		p, listener, stop := serve(t, simulator.ProcessorConfig{Codec: c, Trace: func(e simulator.TraceEvent) {
			traced = append(traced, string(e.Direction)+" "+e.Link+" "+strings.SplitN(sprint(e.Message), " ", 3)[1])
		}})
		link := signedOn(t, c, listener, 0)
		link.ask(link.request(visa, 1250))
		var text strings.Builder
		if err := p.Ledger().WriteJSON(&text); err != nil {
			t.Fatal(err)
		}
		stop()
		if strings.Contains(text.String(), visa) || strings.Contains(text.String(), "111111111") {
			t.Error("the ledger holds a card number")
		}
		var read simulator.Snapshot
		if err := json.Unmarshal([]byte(text.String()), &read); err != nil {
			t.Fatal(err)
		}
		h := read.Holds[0]
		if h.PAN != "411111******1111" || h.STAN != "000002" || h.TransmissionTime != "1123120059" || h.RRN != "532712000002" || h.MTI != "0100" ||
			h.Currency != "978" || h.Terminal != "TERM0001" || h.State != simulator.Held || h.AuthorizationID != "000001" {
			t.Errorf("read %+v", h)
		}
		if len(read.InState(simulator.Held)) != 1 || len(read.InState(simulator.Reversed)) != 0 {
			t.Errorf("read %+v", read)
		}
		for _, field := range []string{`"transmission_time"`, `"response_code"`, `"unmarked_repeats"`, `"duplicate_requests"`, `"unknown_reversals": []`} {
			if !strings.Contains(text.String(), field) {
				t.Errorf("%s is missing in\n%s", field, text.String())
			}
		}
		want := []string{`received link 1 7="1123120059"`, `sent link 1 7="1123120059"`, `received link 1 2="411111******1111"`, `sent link 1 2="411111******1111"`}
		if !slices.Equal(traced, want) {
			t.Errorf("traced %q", traced)
		}
	})
}

func TestAFullLedgerRefuses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := codec(t, "iso87-ascii")
		p, listener, stop := serve(t, simulator.ProcessorConfig{Codec: c, Ledger: simulator.NewLedger(1)})
		defer stop()
		link := signedOn(t, c, listener, 0)
		first, second := link.code(link.request(visa, 100)), link.code(link.request(visa, 100))
		if first != "00" || second != "96" || p.Ledger().Counts().Full != 1 {
			t.Errorf("answered %s, %s", first, second)
		}
	})
}

func TestTheProcessorCanGoAndComeBack(t *testing.T) {
	c := codec(t, "iso87-ascii")
	p, err := simulator.NewProcessor(simulator.ProcessorConfig{Codec: c})
	if err != nil {
		t.Fatal(err)
	}
	for round := range 2 {
		listeners := make([]net.Listener, 2)
		for i := range listeners {
			if listeners[i], err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- p.Serve(ctx, listeners...) }()
		var links []*peer
		for i, listener := range listeners {
			conn, err := net.Dial("tcp", listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			link := &peer{t: t, codec: c, conn: conn, reader: newReader(conn), stan: 1000*round + 100*i}
			links = append(links, link)
			if got := link.code(link.network("001")); got != "00" {
				t.Errorf("sign-on: %q", got)
			}
			if got := link.code(link.request(visa, 100)); got != "00" {
				t.Errorf("request: %q", got)
			}
		}
		p.DropLinks()
		for _, link := range links {
			if m, err := link.read(); err == nil || errors.Is(err, errQuiet) {
				t.Errorf("after DropLinks: %v, %v", m, err)
			}
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if n := p.Ledger().Counts().Held; n != 4 {
		t.Errorf("%d holds, want 4", n)
	}
}

func TestAListenerThatFailsEndsTheProcessor(t *testing.T) {
	p, err := simulator.NewProcessor(simulator.ProcessorConfig{Codec: codec(t, "iso87-ascii")})
	if err != nil {
		t.Fatal(err)
	}
	listener := simulator.NewPipeListener()
	_ = listener.Close()
	if err := p.Serve(context.Background(), listener, simulator.NewPipeListener()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

func TestABadConfigurationIsRefused(t *testing.T) {
	c := codec(t, "iso87-ascii")
	for name, cfg := range map[string]simulator.ProcessorConfig{
		"no codec":               {},
		"a negative limit":       {Codec: c, MaxWaiting: -1},
		"a rule of nowhere":      {Codec: c, Rules: make([]simulator.Rule, 1)},
		"a decline that is none": {Codec: c, Rules: rules(t, "decline=08")},
		"a probability over 1":   {Codec: c, Faults: simulator.Faults{Drop: 1.5}},
		"a negative delay":       {Codec: c, Faults: simulator.Faults{MaxDelay: -1}},
		"a probability below 0":  {Codec: c, Faults: simulator.Faults{CutAnswer: -.1}},
		"a probability of 2":     {Codec: c, Faults: simulator.Faults{Stall: 2}},
		"a card with bad effects": {Codec: c,
			Cards: []simulator.Card{{PAN: pan(t, visa), Effects: "explode"}}},
	} {
		if _, err := simulator.NewProcessor(cfg); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

func TestABadRuleIsRefusedWithoutItsValues(t *testing.T) {
	for _, text := range []string{"", "explode", "amount", "amount=x", "amount=5-1", "amount=*1-22", "amount=1234567890123", "card=12",
		"card=411111111111111x", "mti=01000", "mti=x", "pin=maybe", "attempt=0", "times=x", "decline=5", "decline", "answer=123", "delay=x",
		"delay=-1s", "late=amount", "stall", "stall=0s", "cut=-1", "cut=x", "partial=0", "partial=x", "approve=1", "silence=1", "currency=", "terminal="} {
		rule, err := simulator.ParseRule(text)
		if err == nil {
			t.Errorf("%q is read as %v", text, rule)
		} else if strings.Contains(err.Error(), "4111") {
			t.Errorf("%q is quoted: %v", text, err)
		}
	}
	rule, err := simulator.ParseRule("  card=4111111111111111   amount=1,2,*99 decline=05 ")
	if err != nil || rule.String() != "card=…1111 amount=1,2,*99 decline=05" {
		t.Errorf("got %q, %v", rule.String(), err)
	}
}

func TestTheDefaultsAreSound(t *testing.T) {
	for _, d := range simulator.DefaultRules {
		if _, err := simulator.ParseRule(d.Rule); err != nil || d.Meaning == "" {
			t.Errorf("%q: %v", d.Rule, err)
		}
	}
	lengths := map[int]bool{}
	for _, c := range simulator.TestCards() {
		lengths[len(c.PAN.Reveal())] = true
		if !c.PAN.LuhnValid() || c.PIN.IsZero() || c.Brand == "" || c.Meaning == "" {
			t.Errorf("%v", c)
		}
	}
	for n := 13; n <= 19; n++ {
		if !lengths[n] {
			t.Errorf("no test card of %d digits", n)
		}
	}
	for _, name := range specs.Names() {
		if _, err := simulator.NewProcessor(simulator.ProcessorConfig{Codec: codec(t, name)}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func BenchmarkProcessor(b *testing.B) {
	c := codec(b, "iso87-ascii")
	_, listener, stop := serve(b, simulator.ProcessorConfig{Codec: c})
	defer stop()
	u, stopUpstream := run(b, simulator.UpstreamConfig{}, listener)
	defer stopUpstream()
	ready(b, u)
	request := simulator.Request{PAN: pan(b, visa), Amount: 1250}
	b.ReportAllocs()
	for b.Loop() {
		do(b, u, request)
	}
}
