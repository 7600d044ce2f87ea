package card

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
)

// hidden is what is printed in the place of a value that has no part to show.
const hidden = "****"

// Errors of the parsers. They never quote what was given.
var (
	ErrTrack2   = errors.New("track 2 is not PAN, separator, expiry and discretionary data")
	ErrExpiry   = errors.New("expiry is not YYMM")
	ErrPINBlock = errors.New("PIN block is not 8 or 16 bytes long")
)

// A Track2 is the content of track 2 (DE 35) without sentinels and check character, with "=" as its separator.
// It is sensitive authentication data: never stored (PCI DSS 3.3.1.1).
type Track2 struct{ text *string }

// ParseTrack2 checks that there is a PAN before the first separator. What follows is the issuer's and not checked.
func ParseTrack2(s string) (Track2, error) {
	pan, _, found := strings.Cut(s, "=")
	if _, err := ParsePAN(pan); err != nil || !found || len(s) > 37 {
		return Track2{}, ErrTrack2
	}
	return Track2{&s}, nil
}

// Reveal returns the clear track, "" for the zero Track2.
func (t Track2) Reveal() string {
	if t.text == nil {
		return ""
	}
	return *t.text
}

// IsZero reports whether the track is absent.
func (t Track2) IsZero() bool { return t.text == nil }

// PAN returns the account number before the separator.
func (t Track2) PAN() PAN {
	digits, _, _ := strings.Cut(t.Reveal(), "=")
	pan, err := ParsePAN(digits)
	if err != nil {
		return PAN{}
	}
	return pan
}

// Mask returns the PAN's mask and hides all that follows it.
func (t Track2) Mask() string {
	if t.IsZero() {
		return ""
	}
	return t.PAN().Mask() + "=" + hidden
}

// Format prints the mask, whatever the verb.
func (t Track2) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(t.Mask())) }

// LogValue is the mask.
func (t Track2) LogValue() slog.Value { return slog.StringValue(t.Mask()) }

// MarshalJSON is the mask as a JSON string.
func (t Track2) MarshalJSON() ([]byte, error) { return []byte(`"` + t.Mask() + `"`), nil }

// An Expiry is a card's expiry date (DE 14), four digits YYMM.
type Expiry struct{ yymm *string }

// ParseExpiry takes any four digits: some hosts send 0000 for "none".
func ParseExpiry(s string) (Expiry, error) {
	if len(s) != 4 || !digitsOnly(s) {
		return Expiry{}, ErrExpiry
	}
	return Expiry{&s}, nil
}

// Reveal returns the clear digits YYMM, "" for the zero Expiry.
func (e Expiry) Reveal() string {
	if e.yymm == nil {
		return ""
	}
	return *e.yymm
}

// IsZero reports whether the expiry is absent.
func (e Expiry) IsZero() bool { return e.yymm == nil }

// Format prints asterisks, whatever the verb.
func (e Expiry) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(hidden)) }

// LogValue is asterisks.
func (e Expiry) LogValue() slog.Value { return slog.StringValue(hidden) }

// MarshalJSON is asterisks as a JSON string.
func (e Expiry) MarshalJSON() ([]byte, error) { return []byte(`"` + hidden + `"`), nil }

// A PINBlock is an enciphered PIN block (DE 52): one block of its cipher, 8 bytes of TDES or 16 of AES (ISO 9564-1). Its holder clears it after
// use.
//
// The bytes stand behind two pointers: for a verb that does not fit, such as %s, fmt prints what a single pointer to a struct points to.
type PINBlock struct{ block **enciphered }

type enciphered struct {
	bytes  [16]byte
	length int
}

// NewPINBlock copies the 8 or 16 bytes of b.
func NewPINBlock(b []byte) (PINBlock, error) {
	if len(b) != 8 && len(b) != 16 {
		return PINBlock{}, ErrPINBlock
	}
	block := &enciphered{length: len(b)}
	copy(block.bytes[:], b)
	return PINBlock{&block}, nil
}

// Reveal returns the block's bytes, not a copy; nil for the zero PINBlock.
func (p PINBlock) Reveal() []byte {
	if p.block == nil {
		return nil
	}
	return (*p.block).bytes[:(*p.block).length]
}

// IsZero reports whether the block is absent.
func (p PINBlock) IsZero() bool { return p.block == nil }

// Clear overwrites the block with zeros.
func (p PINBlock) Clear() { clear(p.Reveal()) }

// Format prints asterisks, whatever the verb.
func (p PINBlock) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(hidden)) }

// LogValue is asterisks.
func (p PINBlock) LogValue() slog.Value { return slog.StringValue(hidden) }

// MarshalJSON is asterisks as a JSON string.
func (p PINBlock) MarshalJSON() ([]byte, error) { return []byte(`"` + hidden + `"`), nil }
