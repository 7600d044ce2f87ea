package messages_test

import (
	"errors"
	"slices"
	"testing"

	"acquirerd/card"
	"acquirerd/messages"
	"acquirerd/specs"
)

// withKSN is a built-in dialect with a place for a key serial number.
func withKSN(t *testing.T, name string, element int, form specs.KeySerialNumberForm) *messages.Codec {
	t.Helper()
	dialect := *codec(t, name).Dialect()
	dialect.KeySerialNumber = specs.KeySerialNumber{Element: element, Form: form}
	return messages.NewCodec(&dialect)
}

func TestARequestHasTheKSNOfItsPINBlock(t *testing.T) {
	const tdes, aes = "FFFF9876543210E00001", "123456789012345600000001"
	binary := func(digits string) string {
		ksn, err := card.ParseKSN(digits)
		if err != nil {
			t.Fatal(err)
		}
		return string(ksn.Bytes())
	}
	for _, row := range []struct {
		name    string
		form    specs.KeySerialNumberForm
		value   string
		want    string
		failing string
	}{
		{"hexadecimal digits of TDES", specs.KeySerialNumberHex, tdes, tdes, ""},
		{"lower case", specs.KeySerialNumberHex, "ffff9876543210e00001", tdes, ""},
		{"without leading FF", specs.KeySerialNumberHex, tdes[4:], tdes, ""},
		{"hexadecimal digits of AES", specs.KeySerialNumberHex, aes, aes, ""},
		{"bytes of TDES", specs.KeySerialNumberBinary, binary(tdes), tdes, ""},
		{"bytes of AES", specs.KeySerialNumberBinary, binary(aes), aes, ""},
		{"none", specs.KeySerialNumberHex, "", "", ""},
		{"what is no number", specs.KeySerialNumberHex, "FFFF9876543210E0000G", "", "DE 62 is not a key serial number"},
		{"digits where bytes are", specs.KeySerialNumberBinary, tdes, "", "DE 62 is not a key serial number"},
		{"eleven bytes", specs.KeySerialNumberHex, tdes + "00", "", "DE 62 is not a key serial number"},
		{"the first key", specs.KeySerialNumberHex, "FFFF9876543210E00000", "", "DE 62 is a key serial number with a counter that no transaction has"},
		{"a counter with too many ones", specs.KeySerialNumberHex, "12345678901234560001FFFF", "", "DE 62 is a key serial number with a counter that no transaction has"},
	} {
		c, m := withKSN(t, "iso87-ascii", 62, row.form), request(t)
		m.SetSensitive(62, row.value)
		got, err := c.KSN(m)
		var format *messages.FormatError
		switch {
		case row.failing == "" && (err != nil || got.String() != row.want || got.IsZero() != (row.want == "")):
			t.Errorf("%s: got %v, %v", row.name, got, err)
		case row.failing != "" && (!errors.As(err, &format) || err.Error() != row.failing || !got.IsZero()):
			t.Errorf("%s: got %v, %v", row.name, got, err)
		}
		if row.failing == "" && row.want != "" {
			again := request(t)
			c.SetKSN(again, got)
			if back, err := c.KSN(again); err != nil || back != got {
				t.Errorf("%s: set, it is %v, %v", row.name, back, err)
			}
			if c.SetKSN(again, card.KSN{}); again.Has(62) {
				t.Errorf("%s: it was not removed", row.name)
			}
		}
	}
	m := request(t)
	m.SetSensitive(62, "1234")
	if got, err := codec(t, "iso87-ascii").KSN(m); err != nil || !got.IsZero() || codec(t, "iso87-ascii").KeySerialNumberElement() != 0 {
		t.Errorf("a dialect that has none: got %v, %v", got, err)
	}
}

// It is of the upstream's hop: nobody else is told of it, also not by the same dialect, and what the other party has in that element is not
// taken for one.
func TestAKSNGoesNoFurther(t *testing.T) {
	upstream := withKSN(t, "iso87-binary", 62, specs.KeySerialNumberHex)
	m := request(t)
	m.SetSensitive(62, "FFFF9876543210E00001")
	m.SetSensitive(63, "PRIVATE")
	for _, to := range []*messages.Codec{codec(t, "iso87-ascii"), codec(t, "iso87-binary"), upstream} {
		sent, err := messages.NewPassage(upstream, to).ForProcessor(m, numbers, noon)
		if err != nil || sent.Has(62) || sent.Reveal(63) != "PRIVATE" {
			t.Fatalf("got %v, %v", sent, err)
		}
		if kept := sent.Original(); kept.Get(62) != "" {
			t.Errorf("kept is %q", kept.Get(62))
		}
	}

	other := request(t)
	other.SetSensitive(62, "SOMETHING ELSE")
	_, err := messages.NewPassage(codec(t, "iso87-ascii"), upstream).ForProcessor(other, numbers, noon)
	if err == nil || err.Error() != "DE 62 cannot be carried into the processor's dialect" {
		t.Errorf("what is no KSN: got %v", err)
	}
	said := messages.NewAnswer(m, "00")
	said.SetSensitive(62, "SOMETHING ELSE")
	told, lost := messages.NewPassage(codec(t, "iso87-ascii"), upstream).ForUpstream(m, said, noon)
	if told.Has(62) || !slices.Contains(lost, 62) {
		t.Errorf("an answer: got %v, lost %v", told, lost)
	}

	losses := messages.NewPassage(upstream, codec(t, "iso87-ascii")).Losses()
	if !slices.Contains(losses.Anew, 62) || slices.ContainsFunc(losses.Elements, func(l messages.Loss) bool { return l.Element == 62 }) {
		t.Errorf("losses are %+v", losses)
	}
}
