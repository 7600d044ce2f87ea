package simulator

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"acquirerd/card"
	"acquirerd/messages"
)

// A Demand is a message that the processor sends of its own accord.
type Demand string

// The demands. Advices are not about anything that the processor was asked: it has authorized or reversed something on its own.
const (
	DemandEcho      Demand = "echo"
	DemandSignOn    Demand = "sign-on"
	DemandSignOff   Demand = "sign-off"   // and a sign-on after it, if the link stays
	DemandCutover   Demand = "cutover"    // to tomorrow's business date
	DemandKeyChange Demand = "key-change" // with a new key, or with that of the configuration
	DemandAdvice    Demand = "advice"     // 0120
	DemandReversal  Demand = "reversal"   // 0420
)

// Demands are all of them.
var Demands = []Demand{DemandEcho, DemandSignOn, DemandSignOff, DemandCutover, DemandKeyChange, DemandAdvice, DemandReversal}

// dialogueOf is the part of a link's dialogue that a demand is, "" for an advice.
func dialogueOf(d Demand) messages.Dialogue {
	return map[Demand]messages.Dialogue{DemandEcho: messages.Echo, DemandSignOn: messages.SignOn, DemandSignOff: messages.SignOff,
		DemandCutover: messages.Cutover, DemandKeyChange: messages.KeyChange}[d]
}

const (
	defaultDemandTimeout = 5 * time.Second
	maxDemands           = 10_000 // that are remembered, for answers that come twice
	demandTerminal       = "PROC0001"
	demandAmount         = 4200
	signOnAfter          = time.Second // a sign-off that the daemon has answered
)

// The ends of a Demand that is not answered as it should be.
var (
	errDemandRefused = errors.New("it is refused")
	errDemandSilence = errors.New("it is not answered")
	errDemandLost    = errors.New("the link ended before its answer")
	errDemandNoLink  = errors.New("there is no link")
	errNoSuchDemand  = errors.New("the dialect has none")
)

// A demanded is one demand under way, or one that is over.
type demanded struct {
	demand   Demand
	message  *messages.Message
	fresh    *freshKey   // of a key change, that is the processor's own once it is accepted
	sendings int         // guarded by Processor.mu
	answers  int         // guarded by Processor.mu
	answer   chan string // capacity 1: the code, in the dialect's own terms; guarded by Processor.mu but for its receiver
}

// can says why a demand cannot be made, nil if it can.
func (p *Processor) can(d Demand) error {
	part := dialogueOf(d)
	demanded := p.reader.NetworkManagement.Demanded()
	wanted := p.reader.NetworkManagement.KeyData.Cryptogram
	keyed := p.cfg.NewKey.Cryptogram != nil && wanted > 0 || p.cfg.ZMK != nil && wanted == keyBytes
	switch {
	case !slices.Contains(Demands, d):
		return fmt.Errorf("it is not one of %v", Demands)
	case d == DemandAdvice && !p.reader.takes(messages.AuthorizationAdvice), d == DemandReversal && !p.reader.takes(messages.ReversalAdvice),
		part != "" && partsOf(&demanded)[part] == "":
		return errNoSuchDemand
	case d == DemandKeyChange && !keyed:
		return errors.New("there is no new key")
	}
	return nil
}

// Demand sends a message of the processor's own on one of its links, and waits until it is answered. An advice is sent again, as a repeat and
// on whatever link there is, until it is taken or ctx ends; everything else is sent once. nil means that it was answered as it should be. Each
// is in the ledger's counts.
func (p *Processor) Demand(ctx context.Context, d Demand) error {
	if err := p.can(d); err != nil {
		return fmt.Errorf("demanding %s: %w", d, err)
	}
	l := p.chooseLink(dialogueOf(d) != messages.SignOn)
	if l == nil {
		return fmt.Errorf("demanding %s: %w", d, errDemandNoLink)
	}
	if err := l.demand(ctx, d); err != nil {
		return fmt.Errorf("demanding %s: %w", d, err)
	}
	return nil
}

// chooseLink takes the links in turn, nil if there is none.
func (p *Processor) chooseLink(signedOn bool) *link {
	p.mu.Lock()
	defer p.mu.Unlock()
	for range p.links {
		p.demandTurn++
		if l := p.links[p.demandTurn%len(p.links)]; l.signedOn.Load() || !signedOn {
			return l
		}
	}
	return nil
}

// demand makes a demand, at first on this link, and enters what became of it.
func (l *link) demand(ctx context.Context, d Demand) (err error) {
	m, err := l.compose(d)
	if err != nil {
		return err
	}
	var fresh *freshKey
	if d == DemandKeyChange {
		brings := l.cfg.NewKey
		if fresh = l.makeKey(); fresh != nil {
			brings = fresh.comes
		}
		l.carryKey(m, brings)
	}
	advice := dialogueOf(d) == ""
	l.ledger.tally(func(c *Counts) {
		if c.Demands++; advice {
			c.DemandsOpen++
		}
	})
	defer func() {
		l.ledger.tally(func(c *Counts) {
			if advice {
				c.DemandsOpen--
			}
			switch {
			case err == nil:
				c.DemandsAnswered++
			case errors.Is(err, errDemandRefused):
				c.DemandsRefused++
			case errors.Is(err, errDemandSilence):
				c.DemandsUnanswered++
			default:
				c.DemandsLost++
			}
		})
	}()
	if advice {
		return l.insist(ctx, d, m)
	}
	asked := &demanded{demand: d, message: m, fresh: fresh, answer: make(chan string, 1)}
	code, err := l.put(ctx, asked)
	if err != nil {
		return err
	}
	if !slices.Contains(l.reader.NetworkManagement.Accepted, code) {
		return fmt.Errorf("%w with %s", errDemandRefused, code)
	}
	if d == DemandSignOff && pause(ctx, signOnAfter) && !isClosed(l.closed) {
		return l.demand(ctx, DemandSignOn)
	}
	return nil
}

// insist sends an advice until it is taken.
func (l *link) insist(ctx context.Context, d Demand, m *messages.Message) error {
	asked := &demanded{demand: d, message: m, answer: make(chan string, 1)}
	for on := l; ; on = l.chooseLink(true) {
		if on != nil {
			code, err := on.put(ctx, asked)
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case err == nil && l.took(m.MTI, code):
				return nil
			case err == nil && !l.asksForLater(code):
				return fmt.Errorf("%w with %s", errDemandRefused, code)
			}
		}
		if !pause(ctx, time.Second) {
			return ctx.Err()
		}
	}
}

// took reports whether a code takes an advice. That a reversal's original is not there is an answer too: it is not.
func (p *Processor) took(mti messages.MTI, code string) bool {
	r := &p.reader.Reversal
	return slices.Contains(r.Acknowledged, code) || slices.Contains(r.Already, code) || p.reader.Approves(code) ||
		mti.Class() == messages.Reversal && (slices.Contains(r.NotFound, code) || code == p.reader.Answers.OriginalNotFound)
}

// asksForLater reports whether a code asks for a repeat.
func (p *Processor) asksForLater(code string) bool {
	answers := p.reader.Answers
	return slices.Contains(append([]string{answers.Busy, answers.Malfunction, answers.NotSent, answers.Unknown}, p.reader.Reversal.Retry...), code)
}

// put sends a demand once and waits for its answer.
func (l *link) put(ctx context.Context, asked *demanded) (code string, err error) {
	m := asked.message.Clone()
	key, keyed := l.cfg.Codec.Key(m)
	if !keyed {
		return "", errors.New("it has no key")
	}
	l.mu.Lock()
	if asked.sendings++; asked.sendings > 1 {
		m.MTI = m.MTI.Repeat()
	}
	if asked.sendings == 1 {
		l.demands[key] = asked
		if l.demandKeys = append(l.demandKeys, key); len(l.demandKeys) > maxDemands {
			delete(l.demands, l.demandKeys[0])
			l.demandKeys = l.demandKeys[1:]
		}
	}
	l.mu.Unlock()
	frame, err := frameWith(l.cfg.Codec, l.cfg.MAC, m, macRight)
	if err != nil {
		return "", err
	}
	l.trace(Sent, m, len(frame), "demand")
	if !l.send(outgoing{frame: frame}) {
		return "", errDemandLost
	}
	timer := time.NewTimer(l.cfg.DemandTimeout)
	defer timer.Stop()
	select {
	case code = <-asked.answer:
		return code, nil
	case <-timer.C:
		err = errDemandSilence
	case <-l.closed:
		err = errDemandLost
	case <-ctx.Done():
		err = ctx.Err()
	}
	select {
	case code = <-asked.answer: // it came at this moment
		return code, nil
	default:
		return "", err
	}
}

// answered takes an answer of the daemon. It is false if nothing was asked. An answer that is not for its demand, or one more than the demand
// was sent, is a fault of the daemon, in the ledger's counts.
func (l *link) answered(m *messages.Message) bool {
	key, keyed := l.cfg.Codec.Key(m)
	l.mu.Lock()
	defer l.mu.Unlock()
	asked := l.demands[key]
	if !keyed || asked == nil {
		return false
	}
	asked.answers++
	twice, improper := asked.answers > asked.sendings, l.cfg.Codec.Echoes(asked.message, m) != nil
	l.ledger.tally(func(c *Counts) {
		if twice {
			c.DemandsTwice++
		}
		if improper {
			c.DemandsImproper++
		}
	})
	if code := m.Get(messages.ResponseCode); slices.Contains(l.reader.NetworkManagement.Accepted, code) {
		switch asked.demand { // before the next message is read
		case DemandSignOn:
			l.signedOn.Store(true)
		case DemandSignOff:
			l.signedOn.Store(false)
		case DemandKeyChange:
			l.adoptSoon(asked.fresh)
			asked.fresh = nil // a second answer brings back no key
		case DemandEcho, DemandCutover, DemandAdvice, DemandReversal:
		}
	}
	select {
	case asked.answer <- m.Get(messages.ResponseCode):
	default: // it is a second one
	}
	return true
}

// compose builds a demand.
func (p *Processor) compose(d Demand) (*messages.Message, error) {
	now := time.Now().UTC()
	p.mu.Lock()
	p.demandSTAN = p.demandSTAN%lastSTAN + 1
	stan := fmt.Sprintf("%06d", p.demandSTAN)
	p.mu.Unlock()
	if part := dialogueOf(d); part != "" {
		m := demand(p.cfg.Codec, part, now, stan)
		switch d {
		case DemandCutover: // to the next day, by name
			tomorrow := now.AddDate(0, 0, 1).Format("060102")
			if f, has := p.reader.Field(p.reader.WireMTI(string(m.MTI)), int(messages.SettlementDate)); has && f.Length <= len(tomorrow) {
				m.Set(messages.SettlementDate, tomorrow[len(tomorrow)-f.Length:]) // MMDD, or YYMMDD in 1993
			}
		case DemandEcho, DemandSignOn, DemandSignOff, DemandAdvice, DemandReversal, DemandKeyChange:
		}
		return m, nil
	}
	pan, err := card.ParsePAN(testCards[3].pan)
	if err != nil {
		return nil, err
	}
	request := p.reader.compose(Request{MTI: messages.AuthorizationAdvice, PAN: pan, Amount: demandAmount, STAN: stan, RRN: "000000" + stan,
		Terminal: demandTerminal, Merchant: "SIMULATOR"}, now)
	if d == DemandAdvice {
		return request, nil
	}
	request.MTI = messages.AuthorizationRequest
	p.reader.set(request, messages.FunctionCode, p.reader.functionCode(request.MTI))
	reversal, err := p.cfg.Codec.NewReversal(request.Original(), pan, "", "")
	if err != nil {
		return nil, err
	}
	reversal.MTI = messages.ReversalAdvice
	p.reader.set(reversal, messages.FunctionCode, p.reader.functionCode(reversal.MTI))
	return reversal, nil
}

// chosen is a demand that chance makes, "" for none: what the dialect has, and no key change, whose key is used once.
func (p *Processor) chosen(chance *rand.Rand) Demand {
	weighted := []Demand{DemandEcho, DemandEcho, DemandEcho, DemandEcho, DemandAdvice, DemandAdvice, DemandReversal, DemandReversal, DemandCutover,
		DemandSignOff}
	weighted = slices.DeleteFunc(weighted, func(d Demand) bool { return p.can(d) != nil })
	if len(weighted) == 0 {
		return ""
	}
	return weighted[chance.IntN(len(weighted))]
}
