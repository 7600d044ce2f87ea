package specs

import (
	"bytes"
	"fmt"
	"slices"
)

// Characters are what the values of a field are made of, whatever stands on the wire.
type Characters string

// The kinds of characters.
const (
	CharactersDigits    Characters = "digits"
	CharactersTrack2    Characters = "digits and ="
	CharactersSigned    Characters = "C or D and digits"
	CharactersPrintable Characters = "printable ASCII"
	CharactersASCII     Characters = "ASCII with control characters"
	CharactersAny       Characters = "any bytes"
)

// charactersOf are those that each encoder takes, by its name.
var charactersOf = map[string]Characters{
	"Binary": CharactersAny, "Raw": CharactersAny, "EBCDICRaw": CharactersAny, "EBCDIC1047Raw": CharactersAny,
	"HexText": CharactersAny, "HexTextLower": CharactersAny, "EBCDICHexText": CharactersAny,
	"BCDLeft": CharactersDigits, "BCDRight": CharactersDigits, "BCDLeftF": CharactersDigits, "BCDRightF": CharactersDigits,
	"Digits": CharactersDigits, "EBCDICDigits": CharactersDigits,
	"Track2BCD": CharactersTrack2, "Track2BCDLeft": CharactersTrack2, "Track2BCDF": CharactersTrack2, "Track2": CharactersTrack2,
	"EBCDICTrack2": CharactersTrack2, "Track2D": CharactersTrack2, "EBCDICTrack2D": CharactersTrack2,
	"SignNibble": CharactersSigned, "SignedBCD": CharactersSigned, "SignedEBCDICBCD": CharactersSigned,
	"SignedDigits": CharactersSigned, "EBCDICSignedDigits": CharactersSigned,
	"Text": CharactersPrintable, "EBCDICText": CharactersPrintable, "EBCDIC1047Text": CharactersPrintable,
	"ASCII7": CharactersASCII,
}

// Characters returns what values of the field are made of.
func (f Field) Characters() Characters { return charactersOf[f.Enc] }

// Within reports whether every text of these characters is one of the other's.
func (c Characters) Within(other Characters) bool {
	if c == other {
		return true
	}
	wider := []Characters{CharactersPrintable, CharactersASCII, CharactersAny} // each of these holds those before it
	if at := slices.Index(wider, other); at >= 0 {
		return slices.Index(wider, c) < at
	}
	return c == CharactersDigits && other == CharactersTrack2
}

// Apart reports whether no text is both of these characters and of the other's.
func (c Characters) Apart(other Characters) bool {
	digits := func(c Characters) bool { return c == CharactersDigits || c == CharactersTrack2 }
	return c == CharactersSigned && digits(other) || digits(c) && other == CharactersSigned
}

// Hold reports whether a text is made of these characters.
func (c Characters) Hold(text []byte) bool {
	switch c {
	case CharactersDigits:
		return allDigits(text)
	case CharactersTrack2:
		return allTrack2(text)
	case CharactersSigned:
		return signedDigits(text)
	case CharactersPrintable:
		return allPrintable(text)
	case CharactersASCII:
		return allASCII(text)
	case CharactersAny:
	}
	return true
}

// Sample is a value of n of the field's characters.
func (f Field) Sample(n int) []byte {
	value := bytes.Repeat([]byte{'0'}, n)
	if n > 0 && f.Characters() == CharactersSigned {
		value[0] = 'C'
	}
	return value
}

// Takes checks that a value can stand in the field, filled up if the field says so. Its error is one that Rule knows.
func (f Field) Takes(value []byte) error {
	value = f.Fill(value)
	if _, err := f.prefix().EncodeLength(f.Length, len(value)); err != nil {
		return err
	}
	_, err := encoders[f.Enc].Encode(value)
	return err
}

// ReadLength reads the length before a value: how many characters, digits or bytes the value has, and how many bytes the length takes.
func (f Field) ReadLength(wire []byte) (length, read int, err error) {
	return f.prefix().DecodeLength(f.Length, wire)
}

// Extents says for people how long a value may be: "6", "..19", "2..19".
func (f Field) Extents() string {
	switch {
	case f.IsFixed():
		return fmt.Sprint(f.Length)
	case f.Least > 0:
		return fmt.Sprintf("%d..%d", f.Least, f.Length)
	}
	return fmt.Sprintf("..%d", f.Length)
}

// Wire says for people how a value stands on the wire: "BCDRight after BCD.LL".
func (f Field) Wire() string {
	text := f.Enc
	if !f.IsFixed() {
		text += " after " + f.Prefix
		if f.Counts == CountsWire {
			text += " of bytes on the wire"
		}
		if f.Inclusive {
			text += " with itself"
		}
	}
	switch {
	case f.Pad != PadNone:
		text += ", " + string(f.Pad)
	case f.Content != ContentAny:
		text += ", " + string(f.Content)
	case f.Extent != "":
		text += ", " + string(f.Extent)
	}
	return text
}

// A Part is a stretch of a header.
type Part struct {
	Name  string
	Bytes Bytes
}

// Parts takes a header as Split returns it to pieces. Of a form without pieces it is one.
func (h *Header) Parts(header []byte) []Part {
	var parts []Part
	cut := func(name string, size int) {
		if size = min(size, len(header)); size > 0 {
			parts = append(parts, Part{name, header[:size:size]})
			header = header[size:]
		}
	}
	base1 := func(of string, size int) {
		cut(of+"length", 1)
		cut(of+"flag", 1)
		cut(of+"text_format", base1Length-2)
		cut(of+"message_length", base1Destination-base1Length)
		cut(of+"destination", base1Source-base1Destination)
		cut(of+"source", base1Source-base1Destination)
		cut(of+"status", min(size, base1Code)-(2*base1Source-base1Destination))
		cut(of+"code", size-base1Code)
	}
	switch h.Form {
	case HeaderTPDU:
		cut("identifier", 1)
		cut("destination", 2)
		cut("source", 2)
	case HeaderBase1:
		if len(header) > base1Size {
			base1("reject_", base1Reject)
		}
		base1("", base1Size)
	case "", HeaderNone, HeaderLiteral, HeaderEchoed:
	}
	cut("header", len(header))
	return parts
}

// Describe says for people what stands before the MTI.
func (h *Header) Describe() string {
	if h.Form == "" || h.Form == HeaderNone {
		return "no header"
	}
	size := fmt.Sprintf("a header (%s) of %d bytes", h.Form, len(h.Value))
	switch h.Form {
	case HeaderLiteral:
		return fmt.Sprintf("%s: %X", size, []byte(h.Value))
	case HeaderTPDU:
		return fmt.Sprintf("%s that begins with %02X", size, []byte(h.Value[:1]))
	case HeaderBase1:
		return size + " that begins with its own length and says the message's"
	case HeaderNone, HeaderEchoed:
	}
	return size
}

// Describe says for people how messages follow each other.
func (f *Framing) Describe() string {
	text := string(f.Length)
	if f.Length != LengthNone {
		text += " length"
	} else {
		text = "no length"
	}
	if f.LittleEndian {
		text += " with the low byte first"
	}
	if f.Inclusive {
		text += " that counts itself"
	}
	text += fmt.Sprintf(", at most %d bytes", f.Max)
	if len(f.Trailer) > 0 {
		text += fmt.Sprintf(", trailer %X", []byte(f.Trailer))
		if f.TrailerCounted {
			text += " (counted)"
		}
	}
	if f.Keepalive != "" {
		text += ", keep-alives " + string(f.Keepalive)
	}
	return text
}
