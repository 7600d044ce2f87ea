package messages

import (
	"fmt"
	"slices"
	"strings"

	"acquirerd/specs"
)

// Identity is how the sender of a request would name it again, in a repeat or by the original data elements of its reversal: version, class
// and function of the MTI, and the dialect's elements of identity (DE 7, DE 11 and DE 41, say). DE 32 had better not be part of it: original
// data elements may leave it open, and a reversal that did not find its original would leave the money held. It holds nothing sensitive.
func (c *Codec) Identity(m *Message) string { return c.identity(m.MTI, m.Get) }

func (c *Codec) identity(mti MTI, value func(Element) string) string {
	parts := make([]string, 0, 1+len(c.dialect.Identity))
	parts = append(parts, string(mti[:min(3, len(mti))]))
	for _, number := range c.dialect.Identity {
		parts = append(parts, value(Element(number)))
	}
	return strings.Join(parts, "|")
}

// MTIOf is the type of the first sending in an identity.
func MTIOf(identity string) MTI { return MTI(strings.SplitN(identity, "|", 2)[0] + "0") }

// STANOf is DE 11 in an identity.
func (c *Codec) STANOf(identity string) string {
	parts := strings.Split(identity, "|")
	if at := 1 + slices.Index(c.dialect.Identity, int(STAN)); at > 0 && at < len(parts) {
		return parts[at]
	}
	return ""
}

// reversible are the types that a reversal can undo, by their first sending.
var reversible = []MTI{AuthorizationRequest, FinancialRequest, AuthorizationAdvice, FinancialAdvice}

// OriginalIdentities are the identities that the original of a reversal can have, the likeliest first: by its original data elements or,
// without them, by the reversal's own elements, which are then those of its original. There is none if the data are not what the dialect
// says.
func (c *Codec) OriginalIdentities(m *Message) []string {
	named, is := c.named(m)
	if !is {
		return nil
	}
	value := func(e Element) string {
		if text, has := named.values[e]; has {
			return text
		}
		return m.Get(e)
	}
	types := reversible
	if named.MTI != "" {
		types = []MTI{named.MTI}
	}
	list := make([]string, 0, len(types))
	for _, mti := range types {
		list = append(list, c.identity(mti, value))
	}
	return list
}

// HasOriginal reports whether a message names another one.
func (c *Codec) HasOriginal(m *Message) bool { return m.Has(c.OriginalElement()) }

// named reads what a message says of its original: its type, and elements of it. Without original data elements it says nothing. It is false
// if the data are not what the dialect says.
func (c *Codec) named(m *Message) (kept, bool) {
	data := m.Reveal(c.OriginalElement())
	if data == "" {
		return kept{}, true
	}
	if strings.Trim(data, "0123456789") != "" || len(data) < 4 {
		return kept{}, false
	}
	own, ours := c.dialect.OwnMTI(data[:4])
	k := kept{MTI: MTI(own).First(), values: map[Element]string{}}
	if !ours || !slices.Contains(reversible, k.MTI) {
		return kept{}, false
	}
	switch c.dialect.Reversal.Original {
	case specs.OriginalISO93:
		if len(data) < 24 || fmt.Sprintf("%02d", len(data)-24) != data[22:24] {
			return kept{}, false
		}
		k.values[STAN], k.values[LocalTime] = data[4:10], data[10:22]
	case specs.OriginalISO87:
		if len(data) != 42 {
			return kept{}, false
		}
		k.values[STAN], k.values[TransmissionTime] = data[4:10], data[10:20]
	}
	return k, true
}

// SameRequest reports whether two requests of one party are the same one, but for the mark of a repeat, numbers, and what is made anew for
// each sending: PIN block and MAC. Of the sensitive elements, only the card is compared: no more is on record.
func (m *Message) SameRequest(other *Message) bool {
	return m.Original().SameContent(other.Original(), false) && m.PAN().Equal(other.PAN())
}

// amountDigits are those of DE 4 and of each amount in DE 95 and DE 30.
const amountDigits = 12

// Reversed is what a reversal says of amounts, in digits: that of its original, and what is to stand instead of it, "" for nothing. Its error
// is a *FormatError: it is no amount, or not less than the original's.
func (c *Codec) Reversed(m *Message) (amount, replacement string, err error) {
	amount = m.Get(Amount)
	switch c.dialect.Reversal.Replacement {
	case specs.ReplacementISO93:
		original := m.Get(amountsOriginal93)
		switch {
		case original != "" && !beginsWithAmount(original):
			return "", "", &FormatError{amountsOriginal93, "does not begin with an amount"}
		case original != "":
			amount = original[:amountDigits]
		case m.Get(FunctionCode) == partialReversal93:
			return "", "", &FormatError{amountsOriginal93, "is missing from a partial reversal"}
		}
		if m.Get(FunctionCode) != partialReversal93 {
			return amount, "", nil
		}
		replacement = m.Get(Amount)
	case specs.ReplacementISO87, specs.ReplacementISO87Zeros, specs.ReplacementNone:
		if c.dialect.Standard == specs.ISO93 { // DE 95 is another thing there
			if m.Get(FunctionCode) == partialReversal93 {
				return "", "", &FormatError{FunctionCode, "is of a partial reversal, which the dialect does not have"}
			}
			return amount, "", nil
		}
		amounts := m.Get(ReplacementAmounts)
		if amounts == "" {
			return amount, "", nil
		}
		if !beginsWithAmount(amounts) {
			return "", "", &FormatError{ReplacementAmounts, "does not begin with an amount"}
		}
		replacement = amounts[:amountDigits]
	}
	switch {
	case strings.Trim(replacement, "0") == "":
		return amount, "", nil
	case replacement >= amount: // digits of one length
		return "", "", &FormatError{c.ReplacementElement(), "is not less than the original's"}
	}
	return amount, replacement, nil
}

// partialReversal93 is the function code of a partial reversal (ISO 8583:1993, DE 24); a full one has 400.
const partialReversal93 = "401"

// ReplacementElement is the element in which this party's reversals say what is to stand.
func (c *Codec) ReplacementElement() Element {
	if c.dialect.Reversal.Replacement == specs.ReplacementISO93 {
		return amountsOriginal93
	}
	return ReplacementAmounts
}

func beginsWithAmount(text string) bool {
	return len(text) >= amountDigits && strings.Trim(text[:amountDigits], "0123456789") == ""
}

// TakesParts reports whether this party takes partial reversals.
func (c *Codec) TakesParts() bool { return c.dialect.Reversal.Replacement != specs.ReplacementNone }

// setReplacement makes a reversal a partial one, "" a full one.
func (c *Codec) setReplacement(m *Message, replacement string) {
	switch c.dialect.Reversal.Replacement {
	case specs.ReplacementISO93:
		if replacement != "" {
			m.Set(amountsOriginal93, m.Get(Amount)+strings.Repeat("0", amountDigits))
			m.Set(Amount, replacement)
			m.Set(FunctionCode, partialReversal93)
		}
	case specs.ReplacementISO87, specs.ReplacementISO87Zeros:
		if replacement != "" || c.dialect.Reversal.Replacement == specs.ReplacementISO87Zeros {
			m.Set(ReplacementAmounts, replacement+strings.Repeat("0", replacementDigits-len(replacement)))
		}
	case specs.ReplacementNone: // the whole is all that it takes, see TakesParts
	}
}

// replacementDigits are those of DE 95 (ISO 8583:1987): two amounts of 12, two fees of 9 with their signs.
const replacementDigits = 42
