package simulator_test

import (
	"bytes"
	"crypto/des"
	"encoding/hex"
	"strings"
	"testing"

	"acquirerd/messages"
	"acquirerd/simulator"
)

const zmkHex = "2A4C6E80A2C4E6081B3D5F7193B5D7F9"

// brought is the key that a message brings, deciphered under the zone master key, in hexadecimal digits.
func brought(t testing.TB, c *messages.Codec, m *messages.Message) string {
	t.Helper()
	came, err := c.NewKey(m)
	if err != nil {
		t.Fatal(err)
	}
	zmk, err := hex.DecodeString(zmkHex + zmkHex[:16])
	if err != nil {
		t.Fatal(err)
	}
	block, err := des.NewTripleDESCipher(zmk)
	if err != nil {
		t.Fatal(err)
	}
	value := bytes.Clone(came.Cryptogram)
	for i := 0; i < len(value); i += 8 {
		block.Decrypt(value[i:], value[i:])
	}
	text := hex.EncodeToString(value)
	if kcv := key(t, text).KCV(); !strings.EqualFold(kcv, hex.EncodeToString(came.CheckValue)) {
		t.Errorf("the key has check value %s, and comes with %X", kcv, came.CheckValue)
	}
	return text
}

// A processor with a zone master key makes a new key for each change, and reads PINs under it once it was accepted, under the one before as well, and
// under no other, which it says by a code of its own.
func TestAProcessorChangesItsZoneKey(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := codecWith(t, "iso87-ascii", "\npartial:", "\nkey_sync: [\"63\"]\npartial:")
		p, listener, stop := serve(t, simulator.ProcessorConfig{Codec: c, ZPK: key(t, zpkHex), ZMK: key(t, zmkHex)})
		defer stop()
		link := signedOn(t, c, listener, 0)
		with := func(zpk string) string {
			request := link.request(visa, 1000)
			block, err := key(t, zpk).PINBlock(pin(t, "1234"), request.PAN())
			if err != nil {
				t.Fatal(err)
			}
			request.SetPINBlock(block)
			return link.code(request)
		}
		keys := []string{zpkHex}
		for i, ask := range []bool{false, true, true} {
			var ended <-chan error
			if ask { // by a key request, whose answer does not bring it
				if answer := link.ask(link.network("161")); answer.Get(messages.ResponseCode) != "00" || answer.Has(messages.AdditionalData) {
					t.Errorf("a key request is answered %v", answer)
				}
			} else {
				ended = demanding(p, simulator.DemandKeyChange)
			}
			change := link.receive()
			fresh := brought(t, c, change)
			if got := with(fresh); got != "63" {
				t.Errorf("%d: before it is accepted, a PIN under the new key is answered %s", i, got)
			}
			link.send(messages.NewAnswer(change, "00"))
			if ended != nil {
				if err := <-ended; err != nil {
					t.Error(err)
				}
			}
			keys = append(keys, fresh)
			if got := with(fresh) + with(keys[len(keys)-2]); got != "0000" {
				t.Errorf("%d: PINs under the new key and the one before are answered %s", i, got)
			}
			if len(keys) > 2 && with(keys[len(keys)-3]) != "63" {
				t.Errorf("%d: a PIN under a key of long ago is read", i)
			}
			if !strings.EqualFold(p.ZoneKCV(), key(t, fresh).KCV()) {
				t.Errorf("%d: it has the key %s", i, p.ZoneKCV())
			}
		}
		// One that is refused is not its own.
		ended := demanding(p, simulator.DemandKeyChange)
		change := link.receive()
		link.send(messages.NewAnswer(change, "96"))
		if err := <-ended; err == nil || !strings.EqualFold(p.ZoneKCV(), key(t, keys[3]).KCV()) {
			t.Errorf("after a refusal (%v) it has the key %s", err, p.ZoneKCV())
		}
	})
}

func TestAKeyInTheAnswerAndNoneToGive(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := codecWith(t, "iso87-ascii", "check_value: 3 }", "check_value: 3, in_answer: true }")
		p, listener, stop := serve(t, simulator.ProcessorConfig{Codec: c, ZPK: key(t, zpkHex), ZMK: key(t, zmkHex)})
		defer stop()
		link := signedOn(t, c, listener, 0)
		answer := link.ask(link.network("161"))
		if fresh := brought(t, c, answer); answer.Get(messages.ResponseCode) != "00" || !strings.EqualFold(p.ZoneKCV(), key(t, fresh).KCV()) {
			t.Errorf("answered %v; it has the key %s", answer, p.ZoneKCV())
		}
		link.quiet()
	})
	bubble(t, func(t *testing.T) {
		c := codec(t, "iso87-ascii")
		_, listener, stop := serve(t, simulator.ProcessorConfig{Codec: c, ZPK: key(t, zpkHex)})
		defer stop()
		link := signedOn(t, c, listener, 0)
		if got := link.code(link.network("161")); got != "12" {
			t.Errorf("without a zone master key: %s", got)
		}
		link.quiet()
	})
}
