package simulator

import (
	"errors"
	"fmt"
	"slices"

	"acquirerd/card"
	"acquirerd/messages"
)

// decide makes the answer and enters it in the ledger.
func (l *link) decide(m *messages.Message, do action) *messages.Message {
	answers := l.reader.Answers
	class := m.MTI.Class()
	if class == messages.Network {
		return l.manage(m, do)
	}
	if !l.signedOn.Load() && !l.cfg.AcceptBeforeSignOn {
		l.ledger.tally(func(c *Counts) { c.BeforeSignOn++ })
		return messages.NewAnswer(m, l.reader.code(codeBeforeSignOn))
	}
	refusal := do.code // of a reversal or an advice
	if refusal == codeApproved {
		refusal = ""
	}
	switch {
	case class == messages.Reversal:
		code, err := l.ledger.reverse(m, refusal, do.effects)
		if err != nil {
			l.ledger.tally(func(c *Counts) { c.FormatErrors++ })
			failing := l.reader.originalElement()
			if errors.Is(err, errReplacement) {
				failing = l.reader.replacementElement()
			}
			return l.formatError(m, failing)
		}
		return messages.NewAnswer(m, l.reader.settling(m.MTI, code))
	case isAdvice(m.MTI):
		code := l.ledger.advise(m, refusal, do.effects)
		if code == "" {
			return messages.NewAnswer(m, answers.Busy)
		}
		return messages.NewAnswer(m, l.reader.settling(m.MTI, code))
	case (class == messages.Authorization || class == messages.Financial) && m.MTI[2] == '0':
		return l.authorize(m, do)
	}
	l.ledger.tally(func(c *Counts) { c.Unsupported++ })
	return messages.NewAnswer(m, answers.Unsupported)
}

// formatError is the answer to a message that does not keep the format. DE 44 is only in it if the dialect has room for that.
func (l *link) formatError(m *messages.Message, failing messages.Element) *messages.Message {
	answer := messages.NewFormatError(m, l.reader.Answers.FormatError, failing)
	if !l.reader.has(answer.MTI, messages.AdditionalResponse) {
		answer.Delete(messages.AdditionalResponse)
	}
	return answer
}

// authorize decides a request for money.
func (l *link) authorize(m *messages.Message, do action) *messages.Message {
	pan := m.PAN()
	asked := max(0, amountOf(m))
	d := decision{code: byDefault(do.code, codeApproved), amount: asked}
	unread := "" // why the PIN is refused
	if d.approves = l.reader.Approves(l.reader.code(d.code)); d.approves && pan.LuhnValid() {
		unread = l.verify(m, pan)
	}
	switch {
	case !d.approves:
	case !pan.LuhnValid():
		d = decision{code: codeInvalidCard}
	case unread != "":
		d = decision{code: unread}
	case do.approved == amountOfHalf:
		d.amount = max(1, asked/2)
	case do.approved > 0:
		d.amount = min(do.approved, asked)
	}
	entered := l.ledger.request(m, d, do.effects)
	if entered.full {
		return messages.NewAnswer(m, l.reader.Answers.Busy)
	}
	answer := messages.NewAnswer(m, l.reader.code(entered.code))
	l.reader.set(answer, messages.AuthorizationID, entered.authorizationID)
	if l.reader.ApprovesPartially(answer.Get(messages.ResponseCode)) {
		answer.Set(messages.Amount, fmt.Sprintf("%012d", entered.amount))
	}
	return answer
}

// verify checks the PIN, if there is one and a key to check it, and returns why it is refused, "" if it is not. What is under neither of the zone
// keys that the processor has is no PIN block: a dialect may have a code of its own for that.
func (l *link) verify(m *messages.Message, pan card.PAN) (refused string) {
	block, err := m.PINBlock()
	l.mu.Lock()
	zone := l.zone
	l.mu.Unlock()
	if err != nil {
		return codeWrongPIN
	}
	if zone.current == nil || block.IsZero() {
		return ""
	}
	defer block.Clear()
	pin, known := l.cards[pan.Reveal()]
	if !known {
		pin = defaultPIN
	}
	verdict := zone.reads(block, pin, pan)
	l.ledger.tally(func(c *Counts) {
		switch verdict {
		case pinRight:
			c.RightPINs++
		case pinWrong:
			c.WrongPINs++
		case pinMalformed:
			c.MalformedPINBlocks++
		}
	})
	switch codes := l.reader.KeySync; {
	case verdict == pinRight:
		return ""
	case verdict == pinMalformed && len(codes) > 0:
		if said, known := l.reader.ISO87Code(codes[0]); known {
			return said
		}
	}
	return codeWrongPIN
}

// manage answers what the daemon asks of the link. A rule's code other than 00 refuses it.
func (l *link) manage(m *messages.Message, do action) *messages.Message {
	code, accepted := l.reader.NetworkManagement.Accepted[0], true
	if do.code != "" && do.code != codeApproved {
		code = l.reader.code(do.code)
		accepted = slices.Contains(l.reader.NetworkManagement.Accepted, code)
	}
	switch l.reader.sent(m) {
	case messages.SignOn:
		if accepted {
			l.ledger.tally(func(c *Counts) { c.SignOns++ })
			answer := messages.NewAnswer(m, code)
			l.signedOn.Store(true)
			return answer
		}
	case messages.SignOff:
		l.signedOn.Store(false)
		l.ledger.tally(func(c *Counts) { c.SignOffs++ })
	case messages.Echo:
		l.ledger.tally(func(c *Counts) { c.Echoes++ })
	case messages.KeyRequest:
		switch {
		case accepted && l.givesKeys():
			answer := messages.NewAnswer(m, code)
			l.giveKey(answer)
			return answer
		case accepted:
			code = l.reader.Answers.Unsupported
		}
	case messages.KeyChange, messages.Cutover: // it is the processor that demands these
		code = l.reader.Answers.Unsupported
	default:
		code = l.reader.Answers.Unsupported
	}
	return messages.NewAnswer(m, code)
}
