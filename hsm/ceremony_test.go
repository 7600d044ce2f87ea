package hsm

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math/bits"
	"strings"
	"testing"
)

func TestComponents(t *testing.T) {
	const (
		a     = "1C587F1C13924FEFE5F1A1B1C1D1E1F1"
		b     = "0123456789ABCDEFFEDCBA9876543210"
		c     = "112233445566778889ABCDEF01234567"
		aXORb = "1C7A3B7A9B3883011A2C1A29B685D3E0" // with odd parity
	)
	for _, test := range []struct {
		name       string
		components []string
		want       string // the key, or what the error says
	}{
		{"one", []string{a}, "1 of them"},
		{"four", []string{a, b, c, a}, "4 of them"},
		{"nothing", []string{"", ""}, "component 1 has 0 bytes"},
		{"a short one", []string{a, b[:30]}, "component 2 has 15 bytes"},
		{"zeros", []string{a, strings.Repeat("0", 32)}, "component 2 is all zeros"},
		{"equal ones", []string{a, b, a}, "components 1 and 3 are equal"},
		{"equal halves", []string{a, xor(a, strings.Repeat("2357BD1357235713", 2))}, "equal halves"},
		{"equal halves but for parity", []string{a, xor(a, "2357BD13572357132256BC1256225612")}, "equal halves"},
		{"a third that undoes the others", []string{a, b, xor(a, b)}, "equal halves"},
		{"a weak left half", []string{a, xor(a, "01010101010101012357BD1357235713")}, "weak half"},
		{"a semi-weak right half without parity", []string{a, xor(a, "2357BD135723571300FE00FE00FE00FE")}, "weak half"},
		{"two good ones", []string{a, b}, aXORb},
		{"three good ones", []string{a, b, c}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			var components []Component
			for _, s := range test.components {
				components = append(components, Component{Value: bytesOf(t, s)})
			}
			key := make([]byte, len(test.components[0])/2)
			err := wellFormedComponents(components)
			if err == nil {
				err = combine(TDES, components, key)
			}
			switch {
			case err != nil && (!errors.Is(err, ErrComponents) || !strings.Contains(err.Error(), test.want) || test.want == "" || len(test.want) == 32):
				t.Errorf("got %v, want %q", err, test.want)
			case err == nil && len(test.want) == 32 && !strings.EqualFold(hex.EncodeToString(key), test.want):
				t.Errorf("got another key")
			case err == nil && len(test.want) != 32 && test.want != "":
				t.Errorf("accepted, want %q", test.want)
			}
			for _, b := range key {
				if err == nil && bits.OnesCount8(b)%2 == 0 {
					t.Error("a byte has even parity")
				}
			}
		})
	}
}

func TestComponentsAreClearedWhateverCame(t *testing.T) {
	for name, load := range map[string]func([]Component) error{
		"a key": func(c []Component) error {
			_, err := ImportComponents(Config{Module: "none"}, NewKey{Label: "new", Use: PINIn}, c)
			return err
		},
		"a key block protection key": func(c []Component) error {
			_, err := ImportLegacyKeyBlock(Config{Module: "none"}, NewKey{Label: "new", Use: PINIn}, nil, c, "")
			return err
		},
	} {
		components := []Component{{Value: bytes.Repeat([]byte{1}, 16)}, {Value: bytes.Repeat([]byte{1}, 16)}}
		if err := load(components); !errors.Is(err, ErrComponents) {
			t.Errorf("%s: got %v", name, err)
		}
		if !bytes.Equal(append(components[0].Value, components[1].Value...), make([]byte, 32)) {
			t.Errorf("%s: components were left in memory", name)
		}
	}
}

func xor(a, b string) string {
	x, _ := hex.DecodeString(a)
	y, _ := hex.DecodeString(b)
	for i := range x {
		x[i] ^= y[i]
	}
	return hex.EncodeToString(x)
}
