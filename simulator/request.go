package simulator

import (
	"errors"
	"fmt"
	"time"

	"acquirerd/card"
	"acquirerd/messages"
)

// A Request describes what an upstream asks for. It prints itself masked.
type Request struct {
	MTI            messages.MTI // default 0100
	PAN            card.PAN     // or Track2
	Track2         card.Track2
	Expiry         card.Expiry
	PIN            PIN    // zero: no PIN block
	Amount         int64  // in minor units of the currency
	Currency       string // DE 49, default 978
	ProcessingCode string // DE 3, default 000000: purchase
	Terminal       string // DE 41, up to 8 characters; default the upstream's
	Merchant       string // DE 42, up to 15 characters; default the upstream's
	Chip           []byte // DE 55, as it goes on the wire

	// STAN, TransmissionTime (DE 7) and RRN are the upstream's next ones if they are "". Those of an Entry make the same request
	// again, as after a lost connection, or name the original of a reversal.
	STAN, TransmissionTime, RRN string

	// OriginalMTI is for a reversal (0400, 0420 and their repeats): the type of the request that it undoes, default 0100. The other
	// elements are then those of that request.
	OriginalMTI messages.MTI

	// Replacement is for a reversal in part: the amount that remains (DE 95); Amount stays that of the request. 0: it is whole.
	Replacement int64
	// AuthorizationID is DE 38, for an advice or a reversal of what was approved.
	AuthorizationID string
}

// Again returns the request with the numbers of its first sending.
func (r Request) Again(first Entry) Request {
	r.STAN, r.TransmissionTime, r.RRN = first.STAN, first.TransmissionTime, first.RRN
	return r
}

// build makes the message.
func (u *Upstream) build(r Request) (*messages.Message, error) {
	if r.MTI == "" {
		r.MTI = messages.AuthorizationRequest
	}
	pan := r.PAN
	if pan.IsZero() {
		pan = r.Track2.PAN()
	}
	switch {
	case len(r.MTI) != 4 || !r.MTI.IsRequest() || r.MTI.Class() == messages.Network:
		return nil, fmt.Errorf("building request: %q is not the MTI of a request or a reversal", string(r.MTI))
	case pan.IsZero():
		return nil, errors.New("building request: it needs a PAN or track 2")
	case r.Amount < 0 || r.Amount > 999_999_999_999:
		return nil, errors.New("building request: amount is not within 0 to 999999999999 minor units")
	case r.Currency != "" && (len(r.Currency) != 3 || !digitsOnly(r.Currency)):
		return nil, errors.New("building request: currency is not three digits")
	case !r.PIN.IsZero() && u.cfg.ZPK == nil:
		return nil, errors.New("building request: a PIN needs the upstream's zone PIN key")
	}
	now := time.Now().UTC()
	numbers := u.numbers(r, now)
	m := messages.New(r.MTI)
	m.SetPAN(r.PAN)
	m.Set(messages.ProcessingCode, byDefault(r.ProcessingCode, "000000"))
	m.Set(messages.Amount, fmt.Sprintf("%012d", r.Amount))
	m.Set(messages.TransmissionTime, byDefault(r.TransmissionTime, now.Format("0102150405")))
	m.Set(messages.STAN, numbers.STAN)
	// Made again, a request has the time of its first sending.
	sent := m.Get(messages.TransmissionTime)
	m.Set(messages.LocalTime, sent[4:])
	m.Set(messages.LocalDate, sent[:4])
	m.SetSensitive(messages.Expiry, r.Expiry.Reveal())
	m.Set(messages.MerchantType, "5999")
	m.Set(messages.POSEntryMode, entryMode(r))
	m.Set(messages.POSConditionCode, "00")
	m.Set(messages.AcquirerID, u.cfg.AcquirerID)
	m.SetSensitive(messages.Track2, r.Track2.Reveal())
	m.Set(messages.RRN, numbers.RRN)
	m.Set(messages.Terminal, fmt.Sprintf("%-8s", byDefault(r.Terminal, u.cfg.Terminal)))
	m.Set(messages.Merchant, fmt.Sprintf("%-15s", byDefault(r.Merchant, u.cfg.Merchant)))
	m.Set(messages.Currency, byDefault(r.Currency, "978"))
	m.SetSensitive(messages.ChipData, string(r.Chip))
	if r.MTI.Class() == messages.Reversal {
		m.MTI = messages.MTI(byDefault(string(r.OriginalMTI), string(messages.AuthorizationRequest)))
		return newReversal(u.cfg.Codec, m, r), nil
	}
	m.Set(messages.AuthorizationID, r.AuthorizationID)
	if !r.PIN.IsZero() {
		block, err := u.cfg.ZPK.PINBlock(r.PIN, pan)
		if err != nil {
			return nil, fmt.Errorf("building request: %w", err)
		}
		m.SetPINBlock(block)
		block.Clear()
	}
	return m, nil
}

// newReversal undoes a request, whole, or so that the replacement remains.
func newReversal(codec *messages.Codec, request *messages.Message, r Request) *messages.Message {
	replacement := ""
	if r.Replacement > 0 {
		replacement = fmt.Sprintf("%012d", r.Replacement)
	}
	reversal := codec.NewReversal(request.Original(), request.PAN(), r.AuthorizationID, replacement)
	reversal.MTI = r.MTI
	return reversal
}

// numbers gives a request its STAN, one after the other, and an RRN of the year's last digit, day, hour and STAN (DE 37).
func (u *Upstream) numbers(r Request, now time.Time) messages.Numbers {
	n := messages.Numbers{STAN: r.STAN, RRN: r.RRN}
	if n.STAN == "" {
		n.STAN = fmt.Sprintf("%06d", (u.stan.Add(1)-1)%lastSTAN+1)
	}
	if n.RRN == "" {
		n.RRN = fmt.Sprintf("%d%03d%02d%s", now.Year()%10, now.YearDay(), now.Hour(), n.STAN)
	}
	return n
}

const lastSTAN = 999_999

// entryMode is DE 22: how the card was read, and whether a PIN can be entered (1) or not (2).
func entryMode(r Request) string {
	mode := "01" // by hand
	switch {
	case len(r.Chip) > 0:
		mode = "05"
	case !r.Track2.IsZero():
		mode = "02"
	}
	if r.PIN.IsZero() {
		return mode + "2"
	}
	return mode + "1"
}

func byDefault(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}
