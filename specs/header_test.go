package specs

import (
	"encoding/hex"
	"errors"
	"testing"
)

func unhexed(t *testing.T, digits string) []byte {
	t.Helper()
	raw, err := hex.DecodeString(digits)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestHeaders(t *testing.T) {
	const message = "0800822000"
	for name, test := range map[string]struct {
		header              Header
		own, theirs, answer string // whole headers, in hexadecimal digits
	}{
		"none":    {Header{}, "", "", ""},
		"literal": {Header{HeaderLiteral, unhexed(t, "49534F303132")}, "49534F303132", "49534F303132", "49534F303132"},
		"echoed":  {Header{HeaderEchoed, unhexed(t, "0000")}, "0000", "ABCD", "ABCD"},
		"a transport header, whose addresses change places": {Header{HeaderTPDU, unhexed(t, "6000030000")}, "6000030000", "6000018053", "6080530001"},
		"a transport header with more behind it": {Header{HeaderTPDU, unhexed(t, "6000030000603100")}, "6000030000603100", "6000030000603199",
			"6000000003603199"},
		"BASE I-like, with its length": {Header{HeaderBase1, unhexed(t, "16010200000000001291290000000000000000000000")},
			"160102001B0000001291290000000000000000000000", "160102001B2222223333330000000000000000000044", "160102001B3333332222220000000000000000000044"},
	} {
		t.Run(name, func(t *testing.T) {
			h, wire := &test.header, unhexed(t, message)
			if got := hex.EncodeToString(h.Join(nil, wire)); got != hex.EncodeToString(unhexed(t, test.own))+message {
				t.Errorf("own: got %s, want %s", got, test.own+message)
			}
			header, body, rejected, err := h.Split(append(unhexed(t, test.theirs), wire...))
			if err != nil || hex.EncodeToString(body) != message || rejected != "" {
				t.Fatalf("theirs: %x, %q, %v", body, rejected, err)
			}
			if got := h.Join(header, wire); hex.EncodeToString(got) != hex.EncodeToString(unhexed(t, test.theirs))+message {
				t.Errorf("written again: %x", got)
			}
			if got := h.Join(h.Answer(header), wire); hex.EncodeToString(got) != hex.EncodeToString(unhexed(t, test.answer))+message {
				t.Errorf("answer: got %x, want %s", got, test.answer+message)
			}
		})
	}
}

func TestWhatDoesNotBeginWithTheHeaderIsRefused(t *testing.T) {
	base1 := Header{HeaderBase1, unhexed(t, "16010200000000001291290000000000000000000000")}
	for name, test := range map[string]struct {
		header Header
		body   string
	}{
		"another literal":              {Header{HeaderLiteral, unhexed(t, "4953")}, "49540800"},
		"less than a literal":          {Header{HeaderLiteral, unhexed(t, "4953")}, "49"},
		"less than what is echoed":     {Header{HeaderEchoed, unhexed(t, "4953")}, "49"},
		"another identifier":           {Header{HeaderTPDU, unhexed(t, "6000030000")}, "68000300000800"},
		"less than a transport header": {Header{HeaderTPDU, unhexed(t, "6000030000")}, "60000300"},
		"nothing":                      {Header{HeaderTPDU, unhexed(t, "6000030000")}, ""},
		"a length that is not its own": {base1, "160102001C00000012912900000000000000000000000800822000"},
		"a header of another length":   {base1, "170102001B00000012912900000000000000000000000800822000"},
		"a rejection that is cut":      {base1, "1A010200201291280000000110004104001601067600800012341601020046" + "0000"},
	} {
		t.Run(name, func(t *testing.T) {
			if header, _, _, err := test.header.Split(unhexed(t, test.body)); !errors.Is(err, ErrHeader) {
				t.Errorf("taken, with the header %x, %v", header, err)
			}
		})
	}
}

func TestARejectedMessageComesBackBehindTwoHeaders(t *testing.T) {
	h := Header{HeaderBase1, unhexed(t, "16010200000000001291290000000000000000000000")}
	body := unhexed(t, "1A010200351291280000000110004104001601067600"+"80001234"+"160102001B4612912800000001100041040016010676"+"0800822000")
	header, message, rejected, err := h.Split(body)
	if err != nil || rejected != "1234" || hex.EncodeToString(message) != "0800822000" {
		t.Fatalf("%x, %q, %v", message, rejected, err)
	}
	if got := h.Join(header, message); hex.EncodeToString(got) != hex.EncodeToString(body) {
		t.Errorf("written again: %x", got)
	}
}
