package simulator

import (
	"errors"
	"fmt"
	"time"

	"acquirerd/card"
	"acquirerd/messages"
	"acquirerd/specs"
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

	// Replacement is for a reversal in part: the amount that remains; Amount stays that of the request. 0: it is whole.
	Replacement int64
	// WrongMAC and NoMAC make the message's authentication code another one, or leave it out, where the dialect has MACs.
	WrongMAC, NoMAC bool

	// AuthorizationID is DE 38, for an advice or a reversal of what was approved.
	AuthorizationID string
}

func (r Request) macFault() macFault {
	switch {
	case r.NoMAC:
		return macMissing
	case r.WrongMAC:
		return macWrong
	}
	return macRight
}

// Again returns the request with the numbers of its first sending.
func (r Request) Again(first Entry) Request {
	r.STAN, r.TransmissionTime, r.RRN = first.STAN, first.TransmissionTime, first.RRN
	return r
}

// build makes the message, of the elements that the dialect has.
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
	case !r.PIN.IsZero() && u.cfg.ZPK == nil && u.cfg.Device == nil:
		return nil, errors.New("building request: a PIN needs the upstream's zone PIN key, or its device")
	}
	now := time.Now().UTC()
	numbers := u.numbers(r, now)
	r.STAN, r.RRN = numbers.STAN, numbers.RRN
	r.Terminal, r.Merchant = byDefault(r.Terminal, u.cfg.Terminal), byDefault(r.Merchant, u.cfg.Merchant)
	m := u.reader.compose(r, now)
	u.reader.set(m, messages.AcquirerID, u.cfg.AcquirerID)
	for _, e := range u.cfg.Omits {
		m.Delete(e)
	}
	if r.MTI.Class() == messages.Reversal {
		m.MTI = messages.MTI(byDefault(string(r.OriginalMTI), string(messages.AuthorizationRequest)))
		u.reader.set(m, messages.FunctionCode, u.reader.functionCode(m.MTI))
		return u.reversal(m, r, now)
	}
	u.reader.set(m, messages.AuthorizationID, r.AuthorizationID)
	if !r.PIN.IsZero() {
		block, ksn, err := u.pinBlock(r.PIN, pan)
		if err != nil {
			return nil, fmt.Errorf("building request: %w", err)
		}
		m.SetPINBlock(block)
		u.cfg.Codec.SetKSN(m, ksn)
		block.Clear()
	}
	return m, nil
}

// pinBlock enciphers a PIN under the zone PIN key, or under the next key of the device.
func (u *Upstream) pinBlock(pin PIN, pan card.PAN) (card.PINBlock, card.KSN, error) {
	if u.cfg.Device != nil {
		return u.cfg.Device.PINBlock(pin, pan)
	}
	block, err := u.cfg.ZPK.PINBlock(pin, pan)
	return block, card.KSN{}, err
}

// compose makes a message of what is asked for, with numbers that are there already.
func (r reader) compose(asked Request, now time.Time) *messages.Message {
	m := messages.New(asked.MTI)
	m.SetPAN(asked.PAN)
	sent := byDefault(asked.TransmissionTime, now.Format(messages.TransmissionTimeLayout))
	time12, date13 := r.localTime(lastOn(sent, now)) // made again, a request has the time of its first sending
	for _, e := range []struct {
		element messages.Element
		value   string
	}{
		{messages.ProcessingCode, byDefault(asked.ProcessingCode, "000000")}, {messages.Amount, fmt.Sprintf("%012d", asked.Amount)},
		{messages.TransmissionTime, sent}, {messages.STAN, asked.STAN}, {messages.LocalTime, time12}, {messages.LocalDate, date13},
		{messages.Expiry, asked.Expiry.Reveal()}, {messages.MerchantType, "5999"}, {messages.POSEntryMode, r.entryMode(asked)},
		{messages.FunctionCode, r.functionCode(asked.MTI)}, {messages.Track2, asked.Track2.Reveal()}, {messages.RRN, asked.RRN},
		{messages.Terminal, asked.Terminal}, {messages.Merchant, asked.Merchant}, {messages.Currency, byDefault(asked.Currency, "978")},
		{messages.ChipData, string(asked.Chip)},
	} {
		r.set(m, e.element, e.value)
	}
	if r.Standard == specs.ISO87 {
		r.set(m, messages.POSConditionCode, "00") // another element in 1993
	}
	return m
}

// lastOn is the last time before now, or within a day after it, that DE 7 can mean.
func lastOn(sent string, now time.Time) time.Time {
	for year := now.Year() + 1; year > now.Year()-8; year-- { // 29 February
		at, err := time.Parse("2006"+messages.TransmissionTimeLayout, fmt.Sprintf("%04d", year)+sent)
		if err == nil && at.Before(now.AddDate(0, 0, 1)) {
			return at
		}
	}
	return now
}

// reversal undoes a request, whole, or so that the replacement remains.
func (u *Upstream) reversal(request *messages.Message, r Request, now time.Time) (*messages.Message, error) {
	replacement := ""
	if r.Replacement > 0 {
		replacement = fmt.Sprintf("%012d", r.Replacement)
	}
	reversal, err := u.cfg.Codec.NewReversal(request.Original(), request.PAN(), r.AuthorizationID, replacement)
	if err != nil {
		return nil, err
	}
	reversal.MTI = r.MTI
	if reversal.Get(messages.FunctionCode) != function93Part {
		u.reader.set(reversal, messages.FunctionCode, u.reader.functionCode(r.MTI))
	}
	if u.reader.Reversal.Numbers == specs.NewNumbers {
		reversal.Set(messages.STAN, u.numbers(Request{}, now).STAN)
		reversal.Set(messages.TransmissionTime, now.Format(messages.TransmissionTimeLayout))
	}
	return reversal, nil
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

// entryMode is DE 22: how the card was read, and whether a PIN can be entered (1) or not (2); with twelve places, the point of service data
// code of ISO 8583:1993.
func (r reader) entryMode(asked Request) string {
	mode := "1" // by hand
	switch {
	case len(asked.Chip) > 0:
		mode = "5"
	case !asked.Track2.IsZero():
		mode = "2"
	}
	entry := "2"
	if !asked.PIN.IsZero() {
		entry = "1"
	}
	f, _ := r.Field(r.WireMTI(string(asked.MTI)), int(messages.POSEntryMode))
	switch f.Length {
	case 12:
		// It reads chips, takes PINs, keeps no cards; attended, on the premises; cardholder and card are there; then how the card was read,
		// how and by whom the cardholder was authenticated, what the terminal can write and show, and how long a PIN can be.
		authenticated := "00"
		if entry == "1" {
			authenticated = "13"
		}
		return "510101" + mode + authenticated + "14C"
	case 4: // three digits in two bytes
		return "00" + mode + entry
	}
	return "0" + mode + entry
}

func byDefault(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}
