package specs

import "golang.org/x/text/encoding/charmap"

// A page is a one to one EBCDIC code page, between its bytes and Latin-1.
type page struct{ toLatin, fromLatin [256]byte }

// The EBCDIC code pages. They agree in digits, letters, space and "="; they differ in brackets, "!", "|" and "^".
var (
	cp1047 = newPage(charmap.CodePage1047, nil)
	// Code page 500 is 037 but for seven characters (IBM, Coded Character Set Identifiers 37 and 500).
	cp500 = newPage(charmap.CodePage037, map[byte]byte{0x4A: '[', 0x4F: '!', 0x5A: ']', 0x5F: '^', 0xB0: 0xA2, 0xBA: 0xAC, 0xBB: '|'})
)

func newPage(of *charmap.Charmap, but map[byte]byte) *page {
	p := &page{}
	for i := range 256 {
		latin := byte(of.DecodeByte(byte(i))) //nolint:gosec // these pages hold Latin-1 and nothing else
		if other, differs := but[byte(i)]; differs {
			latin = other
		}
		p.toLatin[i], p.fromLatin[latin] = latin, byte(i)
	}
	return p
}

func (p *page) encode(latin []byte) []byte { return mapped(latin, &p.fromLatin) }

func (p *page) decode(wire []byte) []byte { return mapped(wire, &p.toLatin) }

func mapped(b []byte, table *[256]byte) []byte {
	made := make([]byte, len(b))
	for i, c := range b {
		made[i] = table[c]
	}
	return made
}
