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
	dialect := l.cfg.Codec.Dialect()
	class := m.MTI.Class()
	if class == messages.Network {
		return l.manage(m, do)
	}
	if !l.signedOn.Load() && !l.cfg.AcceptBeforeSignOn {
		l.ledger.tally(func(c *Counts) { c.BeforeSignOn++ })
		return messages.NewAnswer(m, codeBeforeSignOn)
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
			failing := messages.OriginalData
			if errors.Is(err, errReplacement) {
				failing = messages.ReplacementAmounts
			}
			return messages.NewFormatError(m, dialect.Answers.FormatError, failing)
		}
		return messages.NewAnswer(m, code)
	case isAdvice(m.MTI):
		return messages.NewAnswer(m, byDefault(l.ledger.advise(m, refusal, do.effects), dialect.Answers.Busy))
	case (class == messages.Authorization || class == messages.Financial) && m.MTI[2] == '0':
		return l.authorize(m, do)
	}
	l.ledger.tally(func(c *Counts) { c.Unsupported++ })
	return messages.NewAnswer(m, dialect.Answers.Unsupported)
}

// authorize decides a request for money.
func (l *link) authorize(m *messages.Message, do action) *messages.Message {
	dialect := l.cfg.Codec.Dialect()
	pan := m.PAN()
	asked := max(0, amountOf(m))
	d := decision{code: byDefault(do.code, codeApproved), amount: asked}
	switch d.approves = dialect.Approves(d.code); {
	case !d.approves:
	case !pan.LuhnValid():
		d = decision{code: codeInvalidCard}
	case !l.verify(m, pan):
		d = decision{code: codeWrongPIN}
	case do.approved == amountOfHalf:
		d.amount = max(1, asked/2)
	case do.approved > 0:
		d.amount = min(do.approved, asked)
	}
	entered := l.ledger.request(m, d, do.effects)
	if entered.full {
		return messages.NewAnswer(m, dialect.Answers.Busy)
	}
	answer := messages.NewAnswer(m, entered.code)
	answer.Set(messages.AuthorizationID, entered.authorizationID)
	if dialect.ApprovesPartially(entered.code) {
		answer.Set(messages.Amount, fmt.Sprintf("%012d", entered.amount))
	}
	return answer
}

// verify checks the PIN, if there is one and a key to check it.
func (l *link) verify(m *messages.Message, pan card.PAN) bool {
	block, err := m.PINBlock()
	if l.cfg.ZPK == nil || err != nil || block.IsZero() {
		return err == nil
	}
	defer block.Clear()
	pin, known := l.cards[pan.Reveal()]
	if !known {
		pin = defaultPIN
	}
	verdict := l.cfg.ZPK.verify(block, pin, pan)
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
	return verdict == pinRight
}

// manage answers the 0800 dialogue.
func (l *link) manage(m *messages.Message, do action) *messages.Message {
	dialect := l.cfg.Codec.Dialect()
	network := dialect.NetworkManagement
	code := do.code
	if code == "" {
		code = network.Accepted[0]
	}
	accepted := slices.Contains(network.Accepted, code)
	switch m.Get(messages.NetworkManagement) {
	case network.SignOn:
		if accepted {
			l.ledger.tally(func(c *Counts) { c.SignOns++ })
			answer := messages.NewAnswer(m, code)
			l.signedOn.Store(true)
			return answer
		}
	case network.SignOff:
		l.signedOn.Store(false)
		l.ledger.tally(func(c *Counts) { c.SignOffs++ })
	case network.Echo:
		l.ledger.tally(func(c *Counts) { c.Echoes++ })
	default:
		code = dialect.Answers.Unsupported
	}
	return messages.NewAnswer(m, code)
}
