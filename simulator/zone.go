package simulator

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"strings"

	"acquirerd/card"
	"acquirerd/messages"
)

// zoneKeys are the zone PIN keys that a processor can read PINs under. Guarded by Processor.mu.
type zoneKeys struct {
	current *Key
	former  *Key // the one before it, until the next change: blocks under it are on their way
}

// A freshKey is a zone key that the processor has made, and enciphers under its zone master key for the daemon.
type freshKey struct {
	key   *Key
	comes messages.NewKey
}

// makeKey makes a random zone key, nil without a zone master key.
func (p *Processor) makeKey() *freshKey {
	if p.cfg.ZMK == nil {
		return nil
	}
	for {
		value := make([]byte, keyBytes)
		_, _ = rand.Read(value)   // never fails
		key, err := newKey(value) // sets the parity
		if err != nil {
			continue // one in 2^56
		}
		cryptogram := bytes.Clone(value)
		for i := 0; i < len(cryptogram); i += p.cfg.ZMK.cipher.BlockSize() {
			p.cfg.ZMK.cipher.Encrypt(cryptogram[i:], cryptogram[i:])
		}
		clear(value)
		check, _ := hex.DecodeString(key.KCV()) // its own digits
		return &freshKey{key, messages.NewKey{Cryptogram: cryptogram, CheckValue: check}}
	}
}

// adopt puts a key in the place of the current one. Called under mu.
func (p *Processor) adopt(fresh *freshKey) {
	if fresh != nil {
		p.zone = zoneKeys{fresh.key, p.zone.current}
	}
}

// adoptSoon adopts a key that the daemon has accepted, at once or after a while, also if the link ends meanwhile. Called under mu.
func (l *link) adoptSoon(fresh *freshKey) {
	if l.cfg.Adoption <= 0 || fresh == nil {
		l.adopt(fresh)
		return
	}
	l.running.Go(func() {
		pause(l.ctx, l.cfg.Adoption)
		l.mu.Lock()
		defer l.mu.Unlock()
		l.adopt(fresh)
	})
}

// ZoneKCV is the check value of the zone key that the processor has now, "" if it checks no PINs.
func (p *Processor) ZoneKCV() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.zone.current == nil {
		return ""
	}
	return p.zone.current.KCV()
}

// reads verifies a PIN block under the zone key, and under the one before it.
func (z zoneKeys) reads(block card.PINBlock, pin PIN, pan card.PAN) pinVerdict {
	verdict := z.current.verify(block, pin, pan)
	if verdict == pinMalformed && z.former != nil {
		return z.former.verify(block, pin, pan)
	}
	return verdict
}

// carryKey puts what a key change brings where the dialect has it.
func (p *Processor) carryKey(m *messages.Message, key messages.NewKey) {
	where := p.reader.NetworkManagement.KeyData
	value := string(key.Cryptogram) + string(key.CheckValue[:min(len(key.CheckValue), where.CheckValue)])
	if f, _ := p.reader.Field(p.reader.WireMTI(string(m.MTI)), where.Element); !f.Binary() {
		value = strings.ToUpper(hex.EncodeToString([]byte(value)))
	}
	m.SetSensitive(messages.Element(where.Element), value)
}

// givesKeys reports whether the processor has a key for who asks for one: in its answer, or in a key change after it.
func (p *Processor) givesKeys() bool {
	return p.cfg.ZMK != nil && (p.reader.NetworkManagement.KeyData.InAnswer || p.can(DemandKeyChange) == nil)
}

// giveKey puts a new key into the answer to a request for one, if that is where the dialect has it. It is the processor's own at once.
func (l *link) giveKey(answer *messages.Message) {
	if !l.reader.NetworkManagement.KeyData.InAnswer {
		return
	}
	fresh := l.makeKey()
	l.carryKey(answer, fresh.comes)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.adopt(fresh)
}

// followKey sends a key change after the answer that has promised it.
func (l *link) followKey(answer *messages.Message) {
	if l.reader.sent(answer) == messages.KeyRequest && l.cfg.Codec.Accepts(answer) && l.givesKeys() && !l.reader.NetworkManagement.KeyData.InAnswer {
		l.running.Go(func() { _ = l.demand(l.ctx, DemandKeyChange) }) // what became of it is in the counts
	}
}
