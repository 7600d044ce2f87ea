package card

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
)

// The shortest and the longest PAN that is accepted, in digits. ISO/IEC 7812-1 allows up to 19; shorter ones than 12
// are not issued, and a PIN block of ISO 9564-1 format 0 needs 12 digits beside the check digit or zeros in their place.
const (
	MinPANDigits = 12
	MaxPANDigits = 19
)

// Errors of ParsePAN. They never quote what was given.
var (
	ErrPANLength = fmt.Errorf("PAN is not %d to %d digits long", MinPANDigits, MaxPANDigits)
	ErrPANDigits = errors.New("PAN has a character that is not a digit")
)

// A PAN is a primary account number (DE 2). The zero PAN is absent. PANs are compared with Equal, not with ==.
type PAN struct{ digits *string }

// ParsePAN checks length and digits. It does not check the check digit: see LuhnValid.
func ParsePAN(s string) (PAN, error) {
	if len(s) < MinPANDigits || len(s) > MaxPANDigits {
		return PAN{}, ErrPANLength
	}
	if !digitsOnly(s) {
		return PAN{}, ErrPANDigits
	}
	return PAN{&s}, nil
}

// Reveal returns the clear digits, "" for the zero PAN.
func (p PAN) Reveal() string {
	if p.digits == nil {
		return ""
	}
	return *p.digits
}

// IsZero reports whether the PAN is absent.
func (p PAN) IsZero() bool { return p.digits == nil }

// Equal reports whether both are the same account number, or both absent.
func (p PAN) Equal(other PAN) bool { return p.Reveal() == other.Reveal() }

// HasPrefix reports whether the PAN begins with the given digits: what routing by BIN asks.
func (p PAN) HasPrefix(bin string) bool { return strings.HasPrefix(p.Reveal(), bin) }

// Mask returns the first six and the last four digits with asterisks between, "" for the zero PAN.
func (p PAN) Mask() string { return maskDigits(p.Reveal()) }

// LuhnValid reports whether the last digit is the check digit of ISO/IEC 7812-1, Annex B.
func (p PAN) LuhnValid() bool {
	s, sum := p.Reveal(), 0
	for i := range len(s) {
		digit := int(s[len(s)-1-i] - '0')
		if i%2 == 1 {
			if digit *= 2; digit > 9 {
				digit -= 9
			}
		}
		sum += digit
	}
	return s != "" && sum%10 == 0
}

// HideIn returns the text with each occurrence of the PAN masked.
func (p PAN) HideIn(text string) string {
	if p.IsZero() {
		return text
	}
	return strings.ReplaceAll(text, p.Reveal(), p.Mask())
}

// The shortest run of digits in a text of other purpose that is taken for a PAN: all schemes of today issue at least 13.
const minFoundDigits = 13

// HidePANs returns a text with each run of 13 to 19 digits masked that has the check digit of a PAN. One in ten such runs of another
// meaning is masked, too.
func HidePANs(text string) string {
	for from := 0; from < len(text); {
		to := from
		for to < len(text) && text[to] >= '0' && text[to] <= '9' {
			to++
		}
		if pan, err := ParsePAN(text[from:to]); err == nil && to-from >= minFoundDigits && pan.LuhnValid() {
			text = text[:from] + pan.Mask() + text[to:]
		}
		from = to + 1
	}
	return text
}

// Format prints the mask, whatever the verb.
func (p PAN) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(p.Mask())) }

// LogValue is the mask.
func (p PAN) LogValue() slog.Value { return slog.StringValue(p.Mask()) }

// MarshalJSON is the mask as a JSON string.
func (p PAN) MarshalJSON() ([]byte, error) { return []byte(`"` + p.Mask() + `"`), nil }

// MarshalText is the mask.
func (p PAN) MarshalText() ([]byte, error) { return []byte(p.Mask()), nil }

// maskDigits keeps six and four digits where that hides at least two; shorter text is hidden whole.
func maskDigits(s string) string {
	const first, last = 6, 4
	if len(s) < first+last+2 {
		return strings.Repeat("*", len(s))
	}
	return s[:first] + strings.Repeat("*", len(s)-first-last) + s[len(s)-last:]
}

func digitsOnly(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}
