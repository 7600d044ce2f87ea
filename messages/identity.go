package messages

import (
	"slices"
	"strings"
)

// Identity is how the sender of a request would name it again, in a repeat or by the DE 90 of its reversal: version, class and function
// of the MTI, DE 7, DE 11 and DE 41. DE 32 is not part of it: DE 90 may leave it open, and a reversal that did not find its original would
// leave the money held. It holds nothing sensitive.
func (m *Message) Identity() string {
	return identity(m.MTI, m.Get(TransmissionTime), m.Get(STAN), m.Get(Terminal))
}

func identity(mti MTI, transmissionTime, stan, terminal string) string {
	return strings.Join([]string{string(mti[:min(3, len(mti))]), transmissionTime, stan, terminal}, "|")
}

// MTIOf is the type of the first sending in an identity.
func MTIOf(identity string) MTI { return MTI(strings.SplitN(identity, "|", 2)[0] + "0") }

// STANOf is DE 11 in an identity.
func STANOf(identity string) string {
	if parts := strings.Split(identity, "|"); len(parts) > 2 {
		return parts[2]
	}
	return ""
}

// dataElementsLength is that of DE 90 (ISO 8583:1987), see dataElements.
const dataElementsLength = 42

// reversible are the types that a reversal can undo, by their first sending.
var reversible = []MTI{AuthorizationRequest, FinancialRequest, AuthorizationAdvice, FinancialAdvice}

// OriginalIdentities are the identities that the original of a reversal can have, the likeliest first: by DE 90 or, without one, by the
// reversal's own DE 7 and DE 11, which are then those of its original. There is none if DE 90 is not one.
func (m *Message) OriginalIdentities() []string {
	types, transmissionTime, stan := reversible, m.Get(TransmissionTime), m.Get(STAN)
	if data := m.Get(OriginalData); data != "" {
		if len(data) != dataElementsLength || strings.Trim(data, "0123456789") != "" {
			return nil
		}
		mti := MTI(data[:4]).First()
		if !slices.Contains(reversible, mti) {
			return nil
		}
		types, stan, transmissionTime = []MTI{mti}, data[4:10], data[10:20]
	}
	var list []string
	for _, mti := range types {
		list = append(list, identity(mti, transmissionTime, stan, m.Get(Terminal)))
	}
	return list
}

// SameRequest reports whether two requests are the same one, but for the mark of a repeat, numbers, and what is made anew for each sending:
// PIN block and MAC. Of the sensitive elements, only the card is compared: no more is on record.
func (m *Message) SameRequest(other *Message) bool {
	return m.Original().SameContent(other.Original(), false) && m.PAN().Equal(other.PAN())
}

// amountDigits are those of DE 4 and of each amount in DE 95.
const amountDigits = 12

// Replacement returns the amount that is to stand instead of DE 4 after a partial reversal: the first of DE 95's amounts (ISO 8583:1987;
// MDS, DE 95). It is "" for a full reversal: without DE 95, or with an amount of zero. Its error is a *FormatError: it is no amount, or
// not less than DE 4.
func (m *Message) Replacement() (string, error) {
	amounts := m.Get(ReplacementAmounts)
	if amounts == "" {
		return "", nil
	}
	if len(amounts) < amountDigits || strings.Trim(amounts[:amountDigits], "0123456789") != "" {
		return "", &FormatError{ReplacementAmounts, "does not begin with an amount"}
	}
	replacement := amounts[:amountDigits]
	switch {
	case strings.Trim(replacement, "0") == "":
		return "", nil
	case replacement >= m.Get(Amount): // digits of one length
		return "", &FormatError{ReplacementAmounts, "is not less than DE 4"}
	}
	return replacement, nil
}

// SetReplacement makes a reversal a partial one: the amount stands first in DE 95, and its other amounts are zero.
func (m *Message) SetReplacement(amount string) {
	m.Set(ReplacementAmounts, amount+strings.Repeat("0", dataElementsLength-amountDigits))
}
