package messages_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"acquirerd/card"
	"acquirerd/messages"
)

func toJSON(t testing.TB, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// edited is the request with changes.
func edited(t testing.TB, edit func(*messages.Message)) *messages.Message {
	m := request(t)
	edit(m)
	return m
}

func TestMTIsOfRepeatsAndAdvices(t *testing.T) {
	for _, row := range []struct {
		mti, first messages.MTI
		advice     bool
	}{
		{"0100", "0100", false}, {"0101", "0100", false}, {"0120", "0120", true}, {"0121", "0120", true}, {"0201", "0200", false},
		{"0221", "0220", true}, {"0400", "0400", false}, {"0401", "0400", false}, {"0421", "0420", true}, {"0130", "0130", false},
		{"", "", false}, {"012", "012", false}, {"01201", "01201", false}, {"0123", "0122", true},
	} {
		if got := row.mti.First(); got != row.first {
			t.Errorf("first of %s: got %s, want %s", row.mti, got, row.first)
		}
		if got := row.mti.IsAdvice(); got != row.advice {
			t.Errorf("%s is an advice: %v", row.mti, got)
		}
	}
}

func TestIdentity(t *testing.T) {
	m := request(t)
	if got, want := codec(t, "iso87-ascii").Identity(m), "010|1123120059|000042|TERM0001"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for name, same := range map[string]func(*messages.Message){
		"a repeat":               func(m *messages.Message) { m.MTI = "0101" },
		"DE 32 with zeros":       func(m *messages.Message) { m.Set(messages.AcquirerID, "00000012345") },
		"another acquirer":       func(m *messages.Message) { m.Set(messages.AcquirerID, "123450") },
		"another amount":         func(m *messages.Message) { m.Set(messages.Amount, "000000000001") },
		"another card":           func(m *messages.Message) { m.SetSensitive(messages.PAN, "4000000000000002") },
		"another RRN":            func(m *messages.Message) { m.Set(messages.RRN, "1") },
		"another PIN block":      func(m *messages.Message) { m.SetSensitive(messages.PINData, "12345678") },
		"without sensitive ones": func(m *messages.Message) { m.Clear() },
	} {
		if got := codec(t, "iso87-ascii").Identity(edited(t, same)); got != codec(t, "iso87-ascii").Identity(m) {
			t.Errorf("%s: got %s", name, got)
		}
	}
	for name, other := range map[string]func(*messages.Message){
		"an advice":        func(m *messages.Message) { m.MTI = "0120" },
		"another class":    func(m *messages.Message) { m.MTI = "0200" },
		"another version":  func(m *messages.Message) { m.MTI = "1100" },
		"another time":     func(m *messages.Message) { m.Set(messages.TransmissionTime, "1123120100") },
		"another STAN":     func(m *messages.Message) { m.Set(messages.STAN, "000043") },
		"another terminal": func(m *messages.Message) { m.Set(messages.Terminal, "TERM0002") },
		"no terminal":      func(m *messages.Message) { m.Delete(messages.Terminal) },
	} {
		if got := codec(t, "iso87-ascii").Identity(edited(t, other)); got == codec(t, "iso87-ascii").Identity(m) {
			t.Errorf("%s: got %s", name, got)
		}
	}
	if got := codec(t, "iso87-ascii").Identity(messages.New("")); got != "|||" {
		t.Errorf("of nothing: %s", got)
	}
	if strings.Contains(codec(t, "iso87-ascii").Identity(m), testPAN[:6]) {
		t.Error("it holds digits of the card")
	}
}

func TestAReversalHasTheIdentityOfItsOriginal(t *testing.T) {
	all := func(rest string) []string {
		return []string{"010|" + rest, "020|" + rest, "012|" + rest, "022|" + rest}
	}
	for _, row := range []struct {
		name     string
		data     string // DE 90
		acquirer string // DE 32 of the reversal
		want     []string
	}{
		{"by DE 90", "0100" + "000777" + "1122110000" + "00000012345" + "00000000000", "99", []string{"010|1122110000|000777|TERM0001"}},
		{"of a repeat", "0101" + "000777" + "1122110000" + "00000012345" + "00000000000", "", []string{"010|1122110000|000777|TERM0001"}},
		{"of an advice", "0220" + "000777" + "1122110000" + "12345678901" + "00000000001", "", []string{"022|1122110000|000777|TERM0001"}},
		{"without an acquirer anywhere", "0200" + "000777" + "1122110000" + "00000000000" + "00000000000", "", []string{"020|1122110000|000777|TERM0001"}},
		{"with an acquirer of its own alone", "0200" + "000777" + "1122110000" + "00000000000" + "00000000000", "0012345",
			[]string{"020|1122110000|000777|TERM0001"}},
		{"without DE 90", "", "12345", all("1123120059|000042|TERM0001")},
		{"without DE 90 and DE 32", "", "", all("1123120059|000042|TERM0001")},
		{"of a reversal", "0420" + "000777" + "1122110000" + "00000012345" + "00000000000", "12345", nil},
		{"of network management", "0800" + "000777" + "1122110000" + "00000012345" + "00000000000", "12345", nil},
		{"of an answer", "0110" + "000777" + "1122110000" + "00000012345" + "00000000000", "12345", nil},
		{"of zeros", strings.Repeat("0", 42), "12345", nil},
		{"too short", strings.Repeat("0100000777", 4) + "0", "12345", nil},
		{"too long", strings.Repeat("0100000777", 4) + "000", "12345", nil},
		{"with a letter", "0100" + "00077A" + "1122110000" + "00000012345" + "00000000000", "12345", nil},
		{"with a letter within", "0100" + "000777" + "11221X0000" + "00000012345" + "00000000000", "12345", nil},
		{"padded with spaces", "0100" + "000777" + "1122110000" + "      12345" + "           ", "12345", nil},
		{"with two-byte characters", "0100" + strings.Repeat("é", 19), "12345", nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			m := request(t)
			m.MTI = messages.ReversalAdvice
			m.Set(messages.OriginalData, row.data)
			m.Set(messages.AcquirerID, row.acquirer)
			if got := codec(t, "iso87-ascii").OriginalIdentities(m); strings.Join(got, " ") != strings.Join(row.want, " ") {
				t.Errorf("got %q, want %q", got, row.want)
			}
		})
	}
	for _, mti := range []messages.MTI{messages.AuthorizationRequest, messages.FinancialRequest, messages.AuthorizationAdvice, messages.FinancialAdvice, "0101", "0221"} {
		m := request(t)
		m.MTI = mti
		reversal := undo(t, codec(t, "iso87-ascii"), m.Original(), pan(t), "", "")
		if got := codec(t, "iso87-ascii").OriginalIdentities(reversal); len(got) != 1 || got[0] != codec(t, "iso87-ascii").Identity(m) {
			t.Errorf("our own reversal of %s: got %q, want %s", mti, got, codec(t, "iso87-ascii").Identity(m))
		}
	}
}

func TestSameRequest(t *testing.T) {
	m := request(t)
	for name, row := range map[string]struct {
		edit func(*messages.Message)
		want bool
	}{
		"as it was":           {func(*messages.Message) {}, true},
		"a repeat":            {func(m *messages.Message) { m.MTI = "0101" }, true},
		"another PIN block":   {func(m *messages.Message) { m.SetSensitive(messages.PINData, "87654321") }, true},
		"no PIN block":        {func(m *messages.Message) { m.Delete(messages.PINData) }, true},
		"a MAC":               {func(m *messages.Message) { m.SetSensitive(messages.MAC, "12345678") }, true},
		"another class":       {func(m *messages.Message) { m.MTI = "0200" }, false},
		"an advice":           {func(m *messages.Message) { m.MTI = "0120" }, false},
		"another amount":      {func(m *messages.Message) { m.Set(messages.Amount, "000000012346") }, false},
		"another card":        {func(m *messages.Message) { m.SetSensitive(messages.PAN, "4000000000000002") }, false},
		"the card by track 2": {func(m *messages.Message) { m.Delete(messages.PAN) }, true},
		"no card":             {func(m *messages.Message) { m.Delete(messages.PAN); m.Delete(messages.Track2) }, false},
		"another track":       {func(m *messages.Message) { m.SetSensitive(messages.Track2, testPAN+"=3012") }, true},
		"other numbers":       {func(m *messages.Message) { m.Set(messages.STAN, "000043") }, true},
		"other chip data":     {func(m *messages.Message) { m.SetSensitive(messages.ChipData, "\x9f\x26\x00") }, true},
		"an element more":     {func(m *messages.Message) { m.Set(messages.SettlementDate, "1124") }, false},
		"an element less":     {func(m *messages.Message) { m.Delete(messages.Currency) }, false},
		"one instead of both": {func(m *messages.Message) { m.Delete(messages.Currency); m.Set(messages.LocalTime, "120000") }, false},
	} {
		other := edited(t, row.edit)
		if m.SameRequest(other) != row.want || other.SameRequest(m) != row.want {
			t.Errorf("%s: %v and %v, want %v", name, m.SameRequest(other), other.SameRequest(m), row.want)
		}
	}
}

func TestSameContent(t *testing.T) {
	m := request(t)
	sent := forProcessor(t, m)
	if !m.Original().SameContent(sent.Original(), false) || !sent.Original().SameContent(m.Original(), false) {
		t.Error("what was sent is taken for another request than what came")
	}
	for name, row := range map[string]struct {
		edit func(*messages.Message)
		want bool
	}{
		"a repeat":                  {func(m *messages.Message) { m.MTI = "0101" }, true},
		"another RRN":               {func(m *messages.Message) { m.Set(messages.RRN, "1") }, true},
		"no RRN":                    {func(m *messages.Message) { m.Delete(messages.RRN) }, true},
		"another card":              {func(m *messages.Message) { m.SetSensitive(messages.PAN, "4000000000000002") }, true},
		"another amount":            {func(m *messages.Message) { m.Set(messages.Amount, "000000012346") }, false},
		"no amount":                 {func(m *messages.Message) { m.Delete(messages.Amount) }, false},
		"another currency":          {func(m *messages.Message) { m.Set(messages.Currency, "978") }, false},
		"another terminal":          {func(m *messages.Message) { m.Set(messages.Terminal, "TERM0002") }, false},
		"an element more":           {func(m *messages.Message) { m.Set(messages.MerchantType, "5411") }, false},
		"another type":              {func(m *messages.Message) { m.MTI = "0200" }, false},
		"one that is not reversed":  {func(m *messages.Message) { m.Set(messages.SettlementDate, "1124") }, false},
		"another one of an account": {func(m *messages.Message) { m.SetSensitive(messages.AdditionalData, "x") }, true},
	} {
		other := edited(t, row.edit).Original()
		if got := m.Original().SameContent(other, false); got != row.want || other.SameContent(m.Original(), false) != row.want {
			t.Errorf("%s: %v, want %v", name, got, row.want)
		}
	}
	more := edited(t, func(m *messages.Message) { m.Set(messages.SettlementDate, "1124") }).Original()
	if !m.Original().SameContent(more, true) || more.SameContent(m.Original(), true) {
		t.Error("of an older record, what it does not have is not compared")
	}
}

func TestReplacement(t *testing.T) {
	for _, row := range []struct{ name, amounts, amount, want, fault string }{
		{"a full reversal", "", "000000012345", "", ""},
		{"a partial one", "000000002345" + strings.Repeat("0", 30), "000000012345", "000000002345", ""},
		{"an amount alone", "000000002345", "000000012345", "000000002345", ""},
		{"zeros", strings.Repeat("0", 42), "000000012345", "", ""},
		{"a currency unit less", "000000012344" + strings.Repeat("0", 30), "000000012345", "000000012344", ""},
		{"as much as DE 4", "000000012345" + strings.Repeat("0", 30), "000000012345", "", "is not less than the original's"},
		{"more than DE 4", "000000012346" + strings.Repeat("0", 30), "000000012345", "", "is not less than the original's"},
		{"without DE 4", "000000002345" + strings.Repeat("0", 30), "", "", "is not less than the original's"},
		{"too short", "00000002345", "000000012345", "", "does not begin with an amount"},
		{"a sign", "D00000002345" + strings.Repeat("0", 30), "000000012345", "", "does not begin with an amount"},
		{"a letter within", "00000x002345" + strings.Repeat("0", 30), "000000012345", "", "does not begin with an amount"},
	} {
		m := messages.New(messages.ReversalAdvice)
		m.Set(messages.Amount, row.amount)
		m.Set(messages.ReplacementAmounts, row.amounts)
		_, got, err := codec(t, "iso87-ascii").Reversed(m)
		var format *messages.FormatError
		if got != row.want || (err != nil) != (row.fault != "") || err != nil && (!errors.As(err, &format) || format.Element != messages.ReplacementAmounts || format.Rule != row.fault) {
			t.Errorf("%s: got %q, %v", row.name, got, err)
		}
	}
	m := undo(t, codec(t, "iso87-ascii"), request(t).Original(), pan(t), "", "")
	m.Set(messages.ReplacementAmounts, "000000002345000000000000000000000000000000")
	if _, got, err := codec(t, "iso87-ascii").Reversed(m); got != "000000002345" || err != nil || len(m.Get(messages.ReplacementAmounts)) != 42 {
		t.Errorf("what was set: got %q, %v", got, err)
	}
	for _, name := range []string{"iso87-ascii", "iso87-binary"} {
		if _, err := codec(t, name).Encode(m); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAReplyIsTheAnswerOnceMore(t *testing.T) {
	m := request(t)
	m.Set(messages.LocalTime, "120059")
	answer := messages.NewAnswer(m, "10")
	answer.Set(messages.AuthorizationID, "A1B2C3")
	answer.Set(messages.Amount, "000000010000")
	answer.Set(messages.SettlementDate, "1124")
	answer.Set(messages.MerchantName, "SHOP "+testPAN)
	answer.Set(messages.AdditionalResponse, "CALL 4000000000000002 NOW")
	answer.SetSensitive(messages.ChipData, "\x91\x0a0123456789")
	answer.SetSensitive(messages.AdditionalData, "CVV2=123")
	answer.SetSensitive(messages.MAC, "12345678")

	text := toJSON(t, answer.Reply(m))
	for _, secret := range []string{testPAN, "4000000000000002", "CVV2", "0123456789", "12345678\"", "2912"} {
		if strings.Contains(text, secret) {
			t.Errorf("%s is kept: %s", secret, text)
		}
	}
	for _, own := range []string{`"stan"`, `"terminal"`, `"transmission_time"`, `"currency"`} {
		if strings.Contains(text, own) {
			t.Errorf("the request's own %s is kept: %s", own, text)
		}
	}
	var reply messages.Reply
	if err := json.Unmarshal([]byte(text), &reply); err != nil || toJSON(t, reply) != text {
		t.Fatalf("read again: %s, %v", toJSON(t, reply), err)
	}
	repeat := m.Clone()
	repeat.MTI = "0101"
	for name, again := range map[string]*messages.Message{"the request": m, "its repeat": repeat} {
		got := reply.To(again)
		want := answer.Clone()
		want.Delete(messages.ChipData)
		want.Delete(messages.AdditionalData)
		want.Delete(messages.MAC)
		want.Set(messages.MerchantName, "SHOP 411111******1111")
		want.Set(messages.AdditionalResponse, "CALL 400000******0002 NOW")
		if got.MTI != "0110" || strings.Join(lines(got), "\n") != strings.Join(lines(want), "\n") {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
	if (messages.Reply{}).Get(messages.ResponseCode) != "" || !(messages.Reply{}).IsZero() || reply.IsZero() {
		t.Error("the zero reply is not zero")
	}
}

func lines(m *messages.Message) (list []string) {
	for _, line := range m.DescribeUnsafe() {
		list = append(list, line.Name+"="+line.Value)
	}
	return list
}

func TestCardNumbersInTextAreMasked(t *testing.T) {
	m := request(t)
	m.Set(messages.Merchant, testPAN[:15])
	short, err := card.ParsePAN(testPAN[:15])
	if err != nil {
		t.Fatal(err)
	}
	m.Delete(messages.Track2)
	m.SetPAN(short)
	m.Set(messages.MerchantName, "4000000000000002 AND "+testPAN)
	for name, text := range map[string]string{"original": toJSON(t, m.Original()), "plain": toJSON(t, m.Original()),
		"reply": toJSON(t, m.Reply(messages.New("0100")))} {
		for _, digits := range []string{testPAN[:15], "4000000000000002"} {
			if strings.Contains(text, digits) {
				t.Errorf("%s: %s is kept in %s", name, digits, text)
			}
		}
	}
}

// storable are the elements that the advices of these tests may have stored.
var storable = []int{14, 34, 48, 55}

func TestAnAdviceWithWhatMayNotBeStoredIsRefused(t *testing.T) {
	for _, e := range []messages.Element{messages.AdditionalData, 62, 96, 127} {
		m := messages.New(messages.FinancialAdvice)
		m.SetSensitive(messages.Expiry, "2912")
		m.SetSensitive(e, "CVV2 123")
		rest, err := m.Rest([]int{14, 55})
		var format *messages.FormatError
		if !errors.As(err, &format) || format.Element != e || rest != nil || strings.Contains(err.Error(), "123") {
			t.Errorf("%s: %q, %v", e, rest, err)
		}
	}
}

// advice is one with all that may come with it.
func advice(t testing.TB) *messages.Message {
	m := request(t)
	m.MTI = "0221"
	for e, value := range map[messages.Element]string{
		messages.Expiry: "2912", messages.Track1: "B" + testPAN + "^X^2912", messages.Track3: "track three", messages.ExtendedPAN: "59" + testPAN,
		messages.SecurityControl: "2001010100000000", messages.MAC: "MACMACMA", messages.MAC2: "MAC2MAC2", messages.AdditionalData: "private",
		messages.ChipData: string(unhex(t, "9F2608DEADBEEF01020304"+"5A084111111111111111"+"57114111111111111111D29122011234567890"+"9F1F0430303030"+"9F2004AABBCCDD"+
			"E11C"+"5A084111111111111111"+"E210"+"9F6B084111111111111111"+"820259C0"+"00"+"8A023030"+"5600")),
	} {
		m.SetSensitive(e, value)
	}
	m.Set(messages.ResponseCode, "00")
	m.Set(messages.AuthorizationID, "A1B2C3")
	m.Set(messages.Element(98), "PAYEE "+testPAN)
	return m
}

func TestAnAdviceIsBuiltAgainWithoutWhatMayNotBeStored(t *testing.T) {
	m := advice(t)
	before := strings.Join(lines(m), "\n")
	rest, err := m.Rest(storable)
	if err != nil {
		t.Fatal(err)
	}
	var plain messages.Original
	if err := json.Unmarshal([]byte(toJSON(t, m.Original())), &plain); err != nil {
		t.Fatal(err)
	}
	again, err := codec(t, "iso87-ascii").NewAdvice(plain, pan(t), rest)
	if err != nil {
		t.Fatal(err)
	}
	want := m.Clone()
	for _, e := range []messages.Element{messages.Track1, messages.Track2, messages.Track3, messages.PINData, messages.SecurityControl, messages.MAC, messages.MAC2} {
		want.Delete(e)
	}
	want.SetSensitive(messages.ChipData, string(unhex(t, "9F2608DEADBEEF01020304"+"E106"+"E204"+"820259C0"+"8A023030")))

	if again.MTI != "0220" || strings.Join(lines(again), "\n") != strings.Join(lines(want), "\n") {
		t.Errorf("got  %v\nwant %v", strings.Join(lines(again), "\n     "), strings.Join(lines(want), "\n     "))
	}
	if after := strings.Join(lines(m), "\n"); before != after {
		t.Errorf("the advice itself was changed: %s", after)
	}
	sealed := string(rest)
	clear(rest)
	if strings.Join(lines(again), "\n") != strings.Join(lines(want), "\n") {
		t.Error("the advice lives in the rest, which its holder has cleared")
	}
	for name, text := range map[string]string{"plain": toJSON(t, plain), "rest": sealed} {
		for _, secret := range []string{testPAN, "PINBLCK!", "MACMACMA", "UElOQkxDSyE="} {
			if strings.Contains(text, secret) {
				t.Errorf("%s: %s is kept in %s", name, secret, text)
			}
		}
	}
}

func TestWhatMayNeverBeStoredLeavesTheChipDataInAnyNesting(t *testing.T) {
	for _, tag := range []string{"56", "57", "5A", "9F1F", "9F20", "9F6B", "99"} {
		secret := tag + "04DEADBEEF"
		long := tag + "8104DEADBEEF" // its length in the long form
		wrap := func(outer, inner string) string { return outer + hexByte(len(inner)/2) + inner }
		for name, data := range map[string]string{
			"alone": secret, "first": secret + "8A023030", "last": "8A023030" + secret, "twice": secret + "8A023030" + secret, "long": long + "8A023030",
			"after padding": "0000" + secret + "00", "in a template": wrap("E1", secret+"8A023030"), "alone in a template": wrap("70", secret) + "8A023030",
			"in two": wrap("E1", wrap("77", secret)), "in a template of two bytes": wrap("FF01", wrap("BF0C", "8A023030"+secret)),
			"deep": func() string {
				inner := secret
				for range 40 {
					inner = wrap("E1", inner)
				}
				return inner
			}(),
		} {
			m := messages.New(messages.FinancialAdvice)
			m.SetSensitive(messages.ChipData, string(unhex(t, data)))
			rest, err := m.Rest(storable)
			if err != nil {
				t.Errorf("%s %s: %v", tag, name, err)
				continue
			}
			again, err := codec(t, "iso87-ascii").NewAdvice(m.Original(), card.PAN{}, rest)
			if err != nil || strings.Contains(again.Reveal(messages.ChipData), "\xde\xad\xbe\xef") {
				t.Errorf("%s %s: %X is kept, %v", tag, name, again.Reveal(messages.ChipData), err)
			}
			if strings.Contains(data, "8A023030") && !strings.Contains(again.Reveal(messages.ChipData), "\x8a\x0200") {
				t.Errorf("%s %s: the rest is lost: %X", tag, name, again.Reveal(messages.ChipData))
			}
		}
	}
}

func hexByte(n int) string {
	return string("0123456789ABCDEF"[n>>4]) + string("0123456789ABCDEF"[n&15])
}

func TestChipDataThatCannotBeReadIsNotKept(t *testing.T) {
	for name, data := range map[string]string{
		"a tag without a length": "9F26", "half a tag": "9F", "a value that is cut": "5A0841111111", "a length that is cut": "5A8201",
		"a length without an end": "5A80", "a template that is cut": "E1059F2608DEAD", "a negative length": "5A88FFFFFFFFFFFFFFFF41",
		"a huge length": "5A84FFFFFFFF41", "text": "4E4F5420544C56",
	} {
		m := messages.New(messages.FinancialAdvice)
		m.SetSensitive(messages.ChipData, string(unhex(t, data)))
		rest, err := m.Rest(storable)
		var format *messages.FormatError
		if name == "a length without an end" && err == nil { // read as a length of zero
			continue
		}
		if !errors.As(err, &format) || format.Element != messages.ChipData || rest != nil {
			t.Errorf("%s: %q, %v", name, rest, err)
		}
	}
}

func TestAnAdviceWithoutARest(t *testing.T) {
	m := messages.New(messages.FinancialAdvice)
	m.Set(messages.STAN, "000042")
	m.SetPAN(pan(t))
	m.SetSensitive(messages.MAC, "12345678")
	m.SetSensitive(messages.ChipData, string(unhex(t, "5A084111111111111111")))
	rest, err := m.Rest(storable)
	if err != nil || rest != nil {
		t.Fatalf("rest %q, %v", rest, err)
	}
	for _, empty := range [][]byte{nil, {}} {
		again, err := codec(t, "iso87-ascii").NewAdvice(m.Original(), card.PAN{}, empty)
		if err != nil || len(again.Elements()) != 1 || again.Get(messages.STAN) != "000042" {
			t.Errorf("got %v, %v", again, err)
		}
	}
}

func TestARestThatWasNotSealedIsRefused(t *testing.T) {
	for name, rest := range map[string]string{
		"text": "secret", "zeros": "\x00\x00\x00", "a list": `["secret"]`, "a name": `{"stan":"c2VjcmV0"}`, "not base64": `{"14":"secret!"}`,
		"a PAN": `{"2":"NDExMQ=="}`, "a track": `{"35":"NDExMQ=="}`, "a PIN block": `{"52":"NDExMQ=="}`, "a MAC": `{"128":"NDExMQ=="}`,
	} {
		if m, err := codec(t, "iso87-ascii").NewAdvice(request(t).Original(), pan(t), []byte(rest)); err == nil || m != nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, %v", name, m, err)
		}
	}
}

func FuzzRest(f *testing.F) {
	f.Add([]byte{}, []byte{})
	f.Add([]byte(advice(f).Reveal(messages.ChipData)), []byte("private"))
	f.Add(unhex(f, "E1059F2608DEAD"), []byte{0})
	f.Add(unhex(f, "5A88FFFFFFFFFFFFFFFF41"), []byte("{}"))
	f.Fuzz(func(t *testing.T, chip, private []byte) {
		m := messages.New(messages.FinancialAdvice)
		m.SetSensitive(messages.ChipData, string(chip))
		m.SetSensitive(messages.AdditionalData, string(private))
		rest, err := m.Rest(storable)
		if err != nil {
			var format *messages.FormatError
			if !errors.As(err, &format) || format.Element != messages.ChipData || rest != nil {
				t.Fatalf("got %q, %v", rest, err)
			}
			return
		}
		again, err := codec(t, "iso87-ascii").NewAdvice(m.Original(), card.PAN{}, rest)
		if err != nil || again.Reveal(messages.AdditionalData) != string(private) {
			t.Fatalf("got %v, %v", again, err)
		}
		// What may be stored once may be stored again: nothing is left in it.
		twice, err := again.Rest(storable)
		if err != nil || string(twice) != string(rest) {
			t.Fatalf("%s and then %s, %v", rest, twice, err)
		}
	})
}

func FuzzNewAdvice(f *testing.F) {
	rest, err := advice(f).Rest(storable)
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{string(rest), "", "null", "{}", `{"-1":"AA=="}`, `{"2":"AA=="}`, `{"14":null}`, `{"4711":"AA=="}`, `{"11":null}`, `{"4":"MDAw"}`} {
		f.Add([]byte(seed))
	}
	plain, number := request(f).Original(), pan(f)
	f.Fuzz(func(t *testing.T, rest []byte) {
		m, err := codec(t, "iso87-ascii").NewAdvice(plain, number, rest)
		if err != nil {
			return
		}
		if m.Has(messages.Track2) || m.Has(messages.PINData) || !m.PAN().Equal(number) || m.Get(messages.STAN) != "000042" {
			t.Errorf("got %v", m)
		}
		_, _ = codec(t, "iso87-ascii").Encode(m)
	})
}

func FuzzKept(f *testing.F) {
	for _, seed := range []string{toJSON(f, request(f).Original()), toJSON(f, messages.NewAnswer(request(f), "00").Reply(request(f))), "null", "{}", `{"mti":"0110"}`,
		`{"mti":"0110","pan":"4111111111111111"}`, `{"mti":"0110","de65":"x","de130":"y"}`, `{"mti":"0110","de090":"x"}`, `{"mti":"0110","stan":7}`} {
		f.Add(seed)
	}
	again := request(f)
	f.Fuzz(func(t *testing.T, text string) {
		var reply messages.Reply
		if err := json.Unmarshal([]byte(text), &reply); err != nil {
			return
		}
		if once := toJSON(t, reply); json.Unmarshal([]byte(once), &reply) != nil || toJSON(t, reply) != once {
			t.Errorf("%s and then %s", once, toJSON(t, reply))
		}
		if m := reply.To(again); m.MTI != "0110" || m.Has(messages.PINData) {
			t.Errorf("got %v", m)
		}
		var original messages.Original
		if err := json.Unmarshal([]byte(text), &original); err != nil {
			t.Errorf("a reply that is no original: %v", err)
		}
		_ = undo(t, codec(t, "iso87-ascii"), original, card.PAN{}, "", "")
		_, _ = codec(t, "iso87-ascii").NewAdvice(original, card.PAN{}, nil)
	})
}

// Text of a host that does not write UTF-8 is the same bytes when it comes back: a reversal that repeats others would not match.
func TestKeptBytesThatAreNotUTF8ComeBack(t *testing.T) {
	m := request(t)
	m.Set(messages.Merchant, "CAF\xe9 \xff       ")
	text, err := json.Marshal(m.Original())
	var original messages.Original
	if err != nil || json.Unmarshal(text, &original) != nil || original.Get(messages.Merchant) != m.Get(messages.Merchant) {
		t.Errorf("got %q of %s, %v", original.Get(messages.Merchant), text, err)
	}
	for _, wrong := range []string{`{"mti":"0100","merchant.hex":"4"}`, `{"mti":"0100","pan.hex":"34"}`} {
		if err := json.Unmarshal([]byte(wrong), &original); err == nil {
			t.Errorf("%s is read", wrong)
		}
	}
}

// Where a dialect has text of its own in an element, somebody may have written a card number there: DE 95 of ISO 8583:1993 is reference data,
// and DE 31 of the acquirer. What is read again, and what 1987 says of the same number, stays as it is.
func TestACardNumberInADialectsOwnTextIsMasked(t *testing.T) {
	const text, hidden = "RETRIEVAL OF 5555555555554444", "RETRIEVAL OF 555555******4444"
	m := messages.New("0624")
	for _, e := range []messages.Element{31, messages.ReplacementAmounts} {
		m.Set(e, text)
	}
	m.Set(30, "555555555555444400000000")
	m.Set(messages.STAN, "000042")
	m.Set(messages.TransmissionTime, "1124101112")
	m.Set(messages.LocalTime, "261124101112")
	c := codec(t, "iso93-binary")
	wire, err := c.Encode(m)
	if err != nil {
		t.Fatal(err)
	}
	read, err := c.Decode(wire)
	if err != nil {
		t.Fatal(err)
	}
	kept := read.Original()
	for _, e := range []messages.Element{31, messages.ReplacementAmounts} {
		if got := kept.Get(e); got != hidden {
			t.Errorf("%v is kept as %q", e, got)
		}
	}
	if got := kept.Get(30); got != "555555555555444400000000" {
		t.Errorf("amounts are kept as %q", got)
	}
	if shown := read.LogValue().String(); strings.Contains(shown, "5555555555554444\"") || strings.Count(shown, "555555******4444") != 2 {
		t.Errorf("shown as %s", shown)
	}
	// The text itself is kept sealed, where the message is to go on.
	rest, err := read.Rest(nil)
	if err != nil || !strings.Contains(string(rest), `"95"`) {
		t.Errorf("sealed is %s, %v", rest, err)
	}
	amounts := messages.New("0420")
	amounts.Set(messages.ReplacementAmounts, "C55555555555544440000000000000000000000000")
	amounts.Set(messages.STAN, "000042")
	c = codec(t, "iso87-ascii")
	if wire, err = c.Encode(amounts); err != nil {
		t.Fatal(err)
	}
	if read, err = c.Decode(wire); err != nil || read.Original().Get(messages.ReplacementAmounts) != amounts.Get(messages.ReplacementAmounts) {
		t.Errorf("kept as %q, %v", read.Original().Get(messages.ReplacementAmounts), err)
	}
}
