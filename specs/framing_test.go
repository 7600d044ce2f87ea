package specs

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"
)

// The bytes of each form, worked out by hand.
func TestFramings(t *testing.T) {
	message := bytes.Repeat([]byte{0x31}, 36)
	text := hex.EncodeToString(message)
	for name, test := range map[string]struct {
		framing Framing
		want    string
	}{
		"four ASCII digits":                   {Framing{Length: LengthASCII4}, "30303336" + text},
		"four ASCII digits that count itself": {Framing{Length: LengthASCII4, Inclusive: true}, "30303430" + text},
		"four hexadecimal digits":             {Framing{Length: LengthHex4}, "30303234" + text},
		"two bytes":                           {Framing{Length: LengthBinary2}, "0024" + text},
		"two bytes that count themselves":     {Framing{Length: LengthBinary2, Inclusive: true}, "0026" + text},
		"two bytes, low one first":            {Framing{Length: LengthBinary2, LittleEndian: true}, "2400" + text},
		"four bytes":                          {Framing{Length: LengthBinary4}, "00000024" + text},
		"four bytes, low one first":           {Framing{Length: LengthBinary4, LittleEndian: true}, "24000000" + text},
		"two bytes of BCD":                    {Framing{Length: LengthBCD2}, "0036" + text},
		"VisaNet's":                           {Framing{Length: LengthVMLH}, "00240000" + text},
		"a trailer that is not counted":       {Framing{Length: LengthBinary2, Trailer: Bytes{3}}, "0024" + text + "03"},
		"a trailer that is counted":           {Framing{Length: LengthBinary2, Trailer: Bytes{3}, TrailerCounted: true}, "0025" + text + "03"},
		"both counted":                        {Framing{Length: LengthBinary2, Trailer: Bytes{3}, TrailerCounted: true, Inclusive: true}, "0027" + text + "03"},
		"a trailer alone":                     {Framing{Length: LengthNone, Trailer: Bytes{3}}, text + "03"},
	} {
		t.Run(name, func(t *testing.T) {
			f := test.framing
			f.Max = 100
			frame := f.Append(nil, message)
			if got := hex.EncodeToString(frame); got != test.want {
				t.Fatalf("got %s, want %s", got, test.want)
			}
			if f.Length == LengthNone {
				return
			}
			if n, err := f.Parse(frame[:f.Size()]); err != nil || n != len(message) {
				t.Errorf("read back: %d bytes, %v", n, err)
			}
			f.Max = len(message) - 1
			if n, err := f.Parse(frame[:f.Size()]); !errors.Is(err, ErrFrameLength) {
				t.Errorf("over the maximum: %d bytes, %v", n, err)
			}
		})
	}
}

func TestWhatIsNoLengthIsRefused(t *testing.T) {
	for name, test := range map[string]struct {
		framing Framing
		header  string
		want    error
	}{
		"a sign":                       {Framing{Length: LengthASCII4}, "2D303031", ErrLengthHeader},
		"a space":                      {Framing{Length: LengthASCII4}, "20303031", ErrLengthHeader},
		"lower case":                   {Framing{Length: LengthHex4}, "30303061", ErrLengthHeader},
		"a nibble over 9":              {Framing{Length: LengthBCD2}, "003A", ErrLengthHeader},
		"reserved bytes":               {Framing{Length: LengthVMLH}, "00240001", ErrLengthHeader},
		"zero":                         {Framing{Length: LengthBinary2}, "0000", ErrFrameLength},
		"less than itself":             {Framing{Length: LengthBinary2, Inclusive: true}, "0001", ErrFrameLength},
		"itself alone":                 {Framing{Length: LengthBinary2, Inclusive: true}, "0002", ErrFrameLength},
		"the trailer alone":            {Framing{Length: LengthBinary2, Trailer: Bytes{3}, TrailerCounted: true}, "0001", ErrFrameLength},
		"four bytes of what cannot be": {Framing{Length: LengthBinary4}, "FFFFFFFF", ErrFrameLength},
	} {
		t.Run(name, func(t *testing.T) {
			header, err := hex.DecodeString(test.header)
			if err != nil {
				t.Fatal(err)
			}
			test.framing.Max = 4096
			if n, err := test.framing.Parse(header); !errors.Is(err, test.want) {
				t.Errorf("got %d, %v; want %v", n, err, test.want)
			}
		})
	}
}

func TestKeepalives(t *testing.T) {
	for _, way := range []Keepalive{KeepaliveIgnored, KeepaliveAnswered} {
		for frame, f := range map[string]Framing{"0000": {Length: LengthBinary2}, "0002": {Length: LengthBinary2, Inclusive: true},
			"30303030": {Length: LengthASCII4}, "00000000": {Length: LengthVMLH}} {
			f.Max, f.Keepalive, f.Trailer = 100, way, nil
			if got := hex.EncodeToString(f.Append(nil, nil)); got != frame {
				t.Errorf("%s: written as %s, want %s", f.Length, got, frame)
			}
			header, _ := hex.DecodeString(frame)
			if n, err := f.Parse(header); n != 0 || err != nil {
				t.Errorf("%s: read as %d, %v", f.Length, n, err)
			}
		}
	}
}
