package simulator_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/card"
	"acquirerd/messages"
	"acquirerd/simulator"
)

// run keeps an upstream's connections to a listener until stop is called, which waits for its end.
func run(t testing.TB, cfg simulator.UpstreamConfig, listener *simulator.PipeListener) (u *simulator.Upstream, stop func()) {
	t.Helper()
	if cfg.Codec == nil {
		cfg.Codec = codec(t, "iso87-ascii")
	}
	cfg.Dial = listener.Dial
	u, err := simulator.NewUpstream(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- u.Run(ctx) }()
	return u, func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func ready(t testing.TB, u *simulator.Upstream) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := u.Ready(ctx); err != nil {
		t.Fatal(err)
	}
}

func do(t testing.TB, u *simulator.Upstream, r simulator.Request) simulator.Entry {
	t.Helper()
	entry, err := u.Do(context.Background(), r)
	if err != nil {
		t.Fatal(err)
	}
	return entry
}

func TestAnUpstreamKeepsABook(t *testing.T) {
	bubble(t, func(t *testing.T) {
		zpk := key(t, zpkHex)
		p, listener, stopProcessor := serve(t, simulator.ProcessorConfig{ZPK: zpk})
		defer stopProcessor()
		u, stop := run(t, simulator.UpstreamConfig{ZPK: zpk, ReplyTimeout: 10 * time.Second, FirstSTAN: 999_998}, listener)
		defer stop()
		ready(t, u)

		track, err := card.ParseTrack2(mastercard + "=30121010000000000")
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			name     string
			request  simulator.Request
			outcome  simulator.Outcome
			code     string
			approved int64
		}{
			{"approved", simulator.Request{PAN: pan(t, visa), Amount: 1250}, simulator.Answered, "00", 1250},
			{"financial", simulator.Request{MTI: messages.FinancialRequest, PAN: pan(t, visa), Amount: 1250, Currency: "392"}, simulator.Answered, "00", 1250},
			{"by track 2 with a PIN", simulator.Request{Track2: track, PIN: pin(t, "1234"), Amount: 1250}, simulator.Answered, "00", 1250},
			{"with a wrong PIN", simulator.Request{PAN: pan(t, visa), PIN: pin(t, "4321"), Amount: 1250}, simulator.Answered, "55", 0},
			{"with chip data", simulator.Request{PAN: pan(t, visa), Chip: []byte{0x9F, 0x26, 0x01, 0x00}, Amount: 1250}, simulator.Answered, "00", 1250},
			{"declined", simulator.Request{PAN: pan(t, visa), Amount: 9051}, simulator.Answered, "51", 0},
			{"approved partially", simulator.Request{PAN: pan(t, visa), Amount: 9010}, simulator.Answered, "10", 4505},
			{"answered for another amount", simulator.Request{PAN: pan(t, visa), Amount: 9404}, simulator.Mismatch, "00", 0},
			{"answered garbled", simulator.Request{PAN: pan(t, visa), Amount: 9401}, simulator.ConnectionLost, "", 0},
		} {
			ready(t, u)
			entry := do(t, u, c.request)
			if entry.Outcome != c.outcome || entry.ResponseCode != c.code || entry.ApprovedAmount != c.approved || entry.Approved != (c.approved > 0) {
				t.Errorf("%s: %+v", c.name, entry)
			}
		}
		ready(t, u)
		if entry := do(t, u, simulator.Request{PAN: pan(t, visa), Amount: 9200}); entry.Outcome != simulator.TimedOut || entry.Elapsed != 10*time.Second {
			t.Errorf("not answered: %+v", entry)
		}
		if entry := do(t, u, simulator.Request{PAN: pan(t, visa), Amount: 9300}); entry.Outcome != simulator.ConnectionLost {
			t.Errorf("link dropped: %+v", entry)
		}

		var text strings.Builder
		if err := u.Book().WriteJSON(&text); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(text.String(), "11111111") || strings.Contains(text.String(), "55555555") {
			t.Error("the book holds a card number")
		}
		var read simulator.BookSnapshot
		if err := json.Unmarshal([]byte(text.String()), &read); err != nil {
			t.Fatal(err)
		}
		counts := read.Counts
		if counts.Requests != 11 || counts.Approved != 5 || counts.Outcomes[simulator.TimedOut] != 1 || counts.Outcomes[simulator.ConnectionLost] != 2 ||
			counts.Undecodable != 1 || counts.Codes["00"] != 4 || len(read.Entries) != 11 {
			t.Errorf("counted %+v", counts)
		}
		// The sign-on took 999998.
		if first, second := read.Entries[0].STAN, read.Entries[1].STAN; first != "999999" || second != "000001" {
			t.Errorf("numbers %s, %s", first, second)
		}
		if h := p.Ledger().Snapshot().Holds[1]; h.MTI != "0200" || h.Currency != "392" {
			t.Errorf("held %+v", h)
		}
	})
}

func TestAnswersFindTheirRequestsInAnyOrder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, listener, stopProcessor := serve(t, simulator.ProcessorConfig{Rules: rules(t, "amount=1-100 delay=amount")})
		defer stopProcessor()
		u, stop := run(t, simulator.UpstreamConfig{Connections: 3, Codec: codec(t, "iso87-ascii")}, listener)
		defer stop()
		ready(t, u)
		started := time.Now()
		var asking sync.WaitGroup
		for amount := range int64(50) {
			asking.Go(func() {
				entry := do(t, u, simulator.Request{PAN: pan(t, visa), Amount: 50 - amount})
				if want := time.Duration(50-amount) * 100 * time.Millisecond; !entry.Approved || entry.Elapsed != want || entry.Amount != 50-amount {
					t.Errorf("%+v, want after %v", entry, want)
				}
			})
		}
		asking.Wait()
		if waited := time.Since(started); waited != 5*time.Second {
			t.Errorf("all took %v", waited)
		}
	})
}

func TestALateAnswerIsNoted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, listener, stopProcessor := serve(t, simulator.ProcessorConfig{Rules: rules(t, "amount=1 delay=2s", "amount=2 delay=3s duplicate")})
		defer stopProcessor()
		u, stop := run(t, simulator.UpstreamConfig{ReplyTimeout: time.Second}, listener)
		defer stop()
		ready(t, u)
		for amount := range int64(2) {
			if entry := do(t, u, simulator.Request{PAN: pan(t, visa), Amount: amount + 1}); entry.Outcome != simulator.TimedOut || entry.LateCode != "" {
				t.Errorf("%+v", entry)
			}
		}
		<-time.After(time.Minute)
		s := u.Book().Snapshot()
		if s.Entries[0].LateCode != "00" || s.Entries[0].Approved || s.Entries[1].LateCode != "00" || s.Counts.LateAnswers != 2 || s.Counts.Unmatched != 1 {
			t.Errorf("%+v", s)
		}
	})
}

func TestARequestCanBeSentAgainAndReversed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p, listener, stopProcessor := serve(t, simulator.ProcessorConfig{})
		defer stopProcessor()
		u, stop := run(t, simulator.UpstreamConfig{}, listener)
		defer stop()
		ready(t, u)
		request := simulator.Request{PAN: pan(t, visa), Amount: 1250}
		first := do(t, u, request)
		again := request.Again(first)
		again.MTI = "0101"
		if entry := do(t, u, again); entry.ResponseCode != "00" || entry.STAN != first.STAN || entry.AuthorizationID != first.AuthorizationID {
			t.Errorf("again: %+v", entry)
		}
		reversal := request.Again(first)
		reversal.MTI = messages.ReversalAdvice
		if entry := do(t, u, reversal); entry.ResponseCode != "00" || p.Ledger().Counts().Reversed != 1 {
			t.Errorf("reversed: %+v", entry)
		}
		if n := p.Ledger().Counts().DisagreeingReversals; n != 0 {
			t.Errorf("%d reversals disagree", n)
		}
	})
}

func TestAnUpstreamConnectsAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p, listener, stopProcessor := serve(t, simulator.ProcessorConfig{})
		u, stop := run(t, simulator.UpstreamConfig{Connections: 2}, listener)
		defer stop()
		ready(t, u)
		if err := u.Echo(context.Background()); err != nil {
			t.Error(err)
		}
		if err := u.SignOn(context.Background()); err != nil {
			t.Error(err)
		}
		p.DropLinks()
		synctest.Wait()
		if entry := do(t, u, simulator.Request{PAN: pan(t, visa), Amount: 100}); entry.Outcome != simulator.NotSent {
			t.Errorf("without a connection: %+v", entry)
		}
		if err := u.Echo(context.Background()); err == nil {
			t.Error("an echo without a connection is sent")
		}
		ready(t, u)
		if entry := do(t, u, simulator.Request{PAN: pan(t, visa), Amount: 100}); !entry.Approved {
			t.Errorf("connected again: %+v", entry)
		}
		stopProcessor()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := u.Ready(ctx); !errors.Is(err, net.ErrClosed) {
			t.Errorf("without a listener: %v", err)
		}
	})
}

func TestARefusedSignOnIsSaid(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, listener, stopProcessor := serve(t, simulator.ProcessorConfig{Rules: rules(t, "mti=0800 answer=91 times=1", "mti=0800 silence times=1",
			"mti=0800 drop times=1")})
		defer stopProcessor()
		u, stop := run(t, simulator.UpstreamConfig{RetryDelay: 10 * time.Second, ConnectTimeout: 10 * time.Second}, listener)
		defer stop()
		// It signs on at 0, 10 (until 20), 30 and 40 seconds.
		for _, c := range []struct {
			wait time.Duration
			want string
		}{{5 * time.Second, "answered 91"}, {20 * time.Second, "deadline exceeded"}, {10 * time.Second, "connection was closed"}} {
			ctx, cancel := context.WithTimeout(context.Background(), c.wait)
			if err := u.Ready(ctx); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
			cancel()
		}
		ready(t, u)
	})
}

func TestARequestThatCannotBeMadeIsRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, listener, stopProcessor := serve(t, simulator.ProcessorConfig{})
		defer stopProcessor()
		u, stop := run(t, simulator.UpstreamConfig{}, listener)
		defer stop()
		ready(t, u)
		for name, r := range map[string]simulator.Request{
			"no card":          {Amount: 100},
			"an answer":        {MTI: "0110", PAN: pan(t, visa), Amount: 100},
			"an 0800":          {MTI: "0800", PAN: pan(t, visa), Amount: 100},
			"a negative sum":   {PAN: pan(t, visa), Amount: -1},
			"a PIN and no key": {PAN: pan(t, visa), PIN: pin(t, "1234")},
			"a long terminal":  {PAN: pan(t, visa), Terminal: "123456789"},
			"a currency":       {PAN: pan(t, visa), Currency: "EUR"},
		} {
			if entry, err := u.Do(context.Background(), r); err == nil || strings.Contains(err.Error(), "1111") {
				t.Errorf("%s: %+v, %v", name, entry, err)
			}
		}
		if n := u.Book().Counts().Requests; n != 0 {
			t.Errorf("%d requests are in the book", n)
		}
	})
}

func TestABadUpstreamIsRefused(t *testing.T) {
	c := codec(t, "iso87-ascii")
	for name, cfg := range map[string]simulator.UpstreamConfig{
		"no codec":           {Address: "127.0.0.1:1"},
		"no address":         {Codec: c},
		"two addresses":      {Codec: c, Address: "127.0.0.1:1", Dial: simulator.NewPipeListener().Dial},
		"a negative timeout": {Codec: c, Address: "127.0.0.1:1", ReplyTimeout: -1},
		"no connections":     {Codec: c, Address: "127.0.0.1:1", Connections: -1},
		"a long STAN":        {Codec: c, Address: "127.0.0.1:1", FirstSTAN: 1_000_000},
	} {
		if _, err := simulator.NewUpstream(cfg); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

func TestABookWithALimitCountsTheRest(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, listener, stopProcessor := serve(t, simulator.ProcessorConfig{})
		defer stopProcessor()
		u, stop := run(t, simulator.UpstreamConfig{Book: simulator.NewBook(1)}, listener)
		defer stop()
		ready(t, u)
		for range 3 {
			do(t, u, simulator.Request{PAN: pan(t, visa), Amount: 100})
		}
		if s := u.Book().Snapshot(); len(s.Entries) != 1 || s.Counts.Unlisted != 2 || s.Counts.Approved != 3 {
			t.Errorf("%+v", s)
		}
	})
}

func TestALoadEndsByItself(t *testing.T) {
	for _, c := range []struct {
		name    string
		cfg     simulator.LoadConfig
		want    int64
		elapsed time.Duration
	}{
		{"at a rate, by count", simulator.LoadConfig{Rate: 100, Count: 250}, 250, 2490 * time.Millisecond},
		{"at a rate, by time", simulator.LoadConfig{Rate: 100, Duration: 3 * time.Second}, 300, 2990 * time.Millisecond},
		{"in flight, by count", simulator.LoadConfig{InFlight: 8, Count: 100}, 100, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				_, listener, stopProcessor := serve(t, simulator.ProcessorConfig{})
				defer stopProcessor()
				u, stop := run(t, simulator.UpstreamConfig{Connections: 4}, listener)
				defer stop()
				ready(t, u)
				c.cfg.Upstream = u
				result := load(t, c.cfg)
				if result.Requests != c.want || result.Outcomes[simulator.Answered] != c.want || result.Codes["00"] != c.want || result.Elapsed != c.elapsed || result.Shed != 0 {
					t.Errorf("%+v", result)
				}
			})
		})
	}
	t.Run("in flight, by time", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			_, listener, stopProcessor := serve(t, simulator.ProcessorConfig{Rules: rules(t, "delay=100ms")})
			defer stopProcessor()
			u, stop := run(t, simulator.UpstreamConfig{}, listener)
			defer stop()
			ready(t, u)
			result := load(t, simulator.LoadConfig{Upstream: u, InFlight: 5, Duration: 2 * time.Second})
			if result.Requests != 100 || result.Throughput != 50 || result.Latency.P50.Round(time.Millisecond) != 100*time.Millisecond {
				t.Errorf("%+v", result)
			}
		})
	})
}

func load(t testing.TB, cfg simulator.LoadConfig) simulator.LoadResult {
	t.Helper()
	l, err := simulator.NewLoad(cfg)
	if err != nil {
		t.Fatal(err)
	}
	result, err := l.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func TestALoadMeasuresAStall(t *testing.T) {
	bubble(t, func(t *testing.T) {
		// A processor that answers nothing for ten seconds, then everything.
		_, listener, stopProcessor := serve(t, simulator.ProcessorConfig{Rules: rules(t, "delay=10s times=1", "times=99 delay=10s")})
		defer stopProcessor()
		u, stop := run(t, simulator.UpstreamConfig{}, listener)
		defer stop()
		ready(t, u)
		result := load(t, simulator.LoadConfig{Upstream: u, Rate: 100, Count: 200})
		if result.Requests != 200 || result.Latency.P90 < 9*time.Second || result.Latency.Max < 9*time.Second || result.Elapsed >= 12*time.Second {
			t.Errorf("%+v", result)
		}
	})
}

func TestALoadHasALimitOfWaitingRequests(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, listener, stopProcessor := serve(t, simulator.ProcessorConfig{Rules: rules(t, "silence")})
		defer stopProcessor()
		u, stop := run(t, simulator.UpstreamConfig{ReplyTimeout: time.Minute}, listener)
		defer stop()
		ready(t, u)
		result := load(t, simulator.LoadConfig{Upstream: u, Rate: 100, Count: 100, MaxOutstanding: 30})
		if result.Requests != 30 || result.Shed != 70 || result.Outcomes[simulator.TimedOut] != 30 || result.Latency.P50 < 59*time.Second {
			t.Errorf("%+v", result)
		}
	})
}

func TestALoadIsAMix(t *testing.T) {
	bubble(t, func(t *testing.T) {
		zpk := key(t, zpkHex)
		p, listener, stopProcessor := serve(t, simulator.ProcessorConfig{ZPK: zpk})
		defer stopProcessor()
		u, stop := run(t, simulator.UpstreamConfig{ZPK: zpk, ReplyTimeout: time.Second}, listener)
		defer stop()
		ready(t, u)
		result := load(t, simulator.LoadConfig{Upstream: u, Rate: 1000, Count: 2000, PINShare: 0.5, DeclineShare: 0.2, SilentShare: 0.1})
		within := func(name string, got, want int64) {
			if got < want*8/10 || got > want*12/10 {
				t.Errorf("%s: %d of 2000, want about %d", name, got, want)
			}
		}
		counts := p.Ledger().Counts()
		within("approved", result.Codes["00"], 1400)
		within("declined", result.Codes["51"], 400)
		within("silent", result.Outcomes[simulator.TimedOut], 200)
		within("with a PIN", counts.RightPINs, 800)
		if counts.WrongPINs+counts.MalformedPINBlocks+counts.DuplicateRequests != 0 {
			t.Errorf("counted %+v", counts)
		}
	})
}

func TestALoadEndsWithItsContext(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, listener, stopProcessor := serve(t, simulator.ProcessorConfig{})
		defer stopProcessor()
		u, stop := run(t, simulator.UpstreamConfig{}, listener)
		defer stop()
		ready(t, u)
		for _, cfg := range []simulator.LoadConfig{{Rate: 10, Duration: time.Hour}, {InFlight: 1, Duration: time.Hour, Cards: slowCard(t)}} {
			cfg.Upstream = u
			l, err := simulator.NewLoad(cfg)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 950*time.Millisecond)
			result, err := l.Run(ctx)
			cancel()
			if err != nil || result.Requests == 0 || result.Elapsed > time.Minute {
				t.Errorf("%+v, %v", result, err)
			}
		}
	})
}

// slowCard is one that is never answered.
func slowCard(t testing.TB) []simulator.Card {
	return []simulator.Card{{PAN: pan(t, "4000000000000135")}}
}

func TestABadLoadIsRefused(t *testing.T) {
	u, err := simulator.NewUpstream(simulator.UpstreamConfig{Codec: codec(t, "iso87-ascii"), Address: "127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	for name, cfg := range map[string]simulator.LoadConfig{
		"no upstream":            {Rate: 1, Count: 1},
		"neither rate nor count": {Upstream: u, Count: 1},
		"both":                   {Upstream: u, Rate: 1, InFlight: 1, Count: 1},
		"no end":                 {Upstream: u, Rate: 1},
		"a share over 1":         {Upstream: u, Rate: 1, Count: 1, DeclineShare: 0.6, SilentShare: 0.6},
		"PINs without a key":     {Upstream: u, Rate: 1, Count: 1, PINShare: 0.5},
		"no cards":               {Upstream: u, Rate: 1, Count: 1, Cards: []simulator.Card{}},
		"a negative limit":       {Upstream: u, Rate: 1, Count: 1, MaxOutstanding: -1},
	} {
		if _, err := simulator.NewLoad(cfg); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

func TestKeysAndPINsDoNotPrint(t *testing.T) {
	k := key(t, zpkHex)
	if got := fmt.Sprintf("%v %s %+v %#v %x", k, k, struct{ K *simulator.Key }{k}, k, k); strings.Contains(got, "0123") || strings.Contains(strings.ToLower(got), "fedc") {
		t.Errorf("key prints %q", got)
	}
	if got := fmt.Sprint((*simulator.Key)(nil), k.LogValue(), pin(t, "1234").LogValue()); got != "no key key 08D7B4 ****" {
		t.Errorf("prints %q", got)
	}
	if k.KCV() != "08D7B4" { // the check value of this often used test key
		t.Errorf("KCV %s", k.KCV())
	}
	p := pin(t, "1234")
	held := simulator.Request{PAN: pan(t, visa), PIN: p}
	text, err := json.Marshal(held)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%v %+v %#v %s %x", p, held, p, p, p) + string(text); strings.Contains(got, "1234") || strings.Contains(got, "11111111") {
		t.Errorf("prints %q", got)
	}
	for _, bad := range []string{"123", "1234567890123", "12a4"} {
		if _, err := simulator.ParsePIN(bad); !errors.Is(err, simulator.ErrPIN) || strings.Contains(err.Error(), bad) {
			t.Errorf("PIN %q: %v", bad, err)
		}
	}
	for _, bad := range []string{"", "0123", "0123456789ABCDEF0123456789ABCDEF", zpkHex + "00", "x" + zpkHex[1:]} {
		if _, err := simulator.ParseKey([]byte(bad)); !errors.Is(err, simulator.ErrKey) {
			t.Errorf("key %q: %v", bad, err)
		}
	}
	for _, bad := range []string{"", "0123", zpkHex + "0123456789ABCDEF", zpkHex + "00", "x" + zpkHex[1:]} {
		if _, err := simulator.ParseAESKey([]byte(bad)); !errors.Is(err, simulator.ErrAESKey) {
			t.Errorf("AES key %q: %v", bad, err)
		}
	}
	// kcv/aes-cmac0-… of vectors.json
	for text, want := range map[string]string{"3F419E1CB7079442AA37474C2EFBF8B8": "08793E", "FA36E44278DB3AB5F298F9F7DA8F1F88": "D77F00",
		"88E1AB2A2E3DD38C1FA039A536500CC8A87AB9D62DC92C01058FA79F44657DE6": "233155"} {
		if k, err := simulator.ParseAESKey([]byte(text)); err != nil || k.KCV() != want {
			t.Errorf("AES key of %d digits: got %v, %v, want %s", len(text), k, err, want)
		}
	}
}

func TestAPINBlockIsTheStandards(t *testing.T) {
	// ISO 9564-1 format 0: PIN field 041234FFFFFFFFFF, account number field 0000111111111111, so 041225EEEEEEEEEE, here enciphered
	// with OpenSSL's des-ede-ecb.
	block, err := key(t, zpkHex).PINBlock(pin(t, "1234"), pan(t, visa))
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%X", block.Reveal()); got != "2A3D408A1977DDE9" {
		t.Errorf("got %s", got)
	}
	if block, err := key(t, zpkHex).PINBlock(pin(t, ""), pan(t, visa)); err != nil || !block.IsZero() {
		t.Errorf("without a PIN: %v, %v", block.IsZero(), err)
	}
	if _, err := key(t, zpkHex).PINBlock(pin(t, "1234"), card.PAN{}); err == nil {
		t.Error("a block without a card is made")
	}
}

func TestAnAESZoneIsAKeyAndItsComponents(t *testing.T) {
	zone, err := simulator.WriteAESZone(t.TempDir(), "kiosk")
	if err != nil {
		t.Fatal(err)
	}
	k, err := simulator.ReadKeyFile(zone.KeyFile, simulator.ISO4)
	if err != nil || k.KCV() != zone.KCV {
		t.Fatalf("key %v, %v, want %s", k, err, zone.KCV)
	}
	var sum [32]byte
	for _, path := range zone.Components {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var part []byte
		var kcv string
		if _, err := fmt.Sscanf(string(text), "%X\nkcv %6s\n", &part, &kcv); err != nil || len(part) != len(sum) {
			t.Fatalf("%s: %d bytes, %v", path, len(part), err)
		}
		if key, err := simulator.ParseAESKey(fmt.Appendf(nil, "%X", part)); err != nil || key.KCV() != kcv {
			t.Errorf("%s: the check value is not that of the component", path)
		}
		for i := range sum {
			sum[i] ^= part[i]
		}
	}
	if key, err := simulator.ParseAESKey(fmt.Appendf(nil, "%X", sum)); err != nil || key.KCV() != zone.KCV {
		t.Error("the components do not make the key")
	}
}

func TestAZoneIsAKeyAndItsComponents(t *testing.T) {
	dir := t.TempDir()
	zone, err := simulator.WriteZone(dir, "pos-switch")
	if err != nil {
		t.Fatal(err)
	}
	k, err := simulator.ReadKeyFile(zone.KeyFile, simulator.ISO0)
	if err != nil {
		t.Fatal(err)
	}
	if k.KCV() != zone.KCV {
		t.Errorf("KCV %s, want %s", k.KCV(), zone.KCV)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "pos-switch.kcv")); err != nil || string(text) != zone.KCV+"\n" {
		t.Errorf("KCV in its file %q, %v", text, err)
	}
	var sum [16]byte
	for _, path := range zone.Components {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var part []byte
		var kcv string
		if _, err := fmt.Sscanf(string(text), "%X\nkcv %6s\n", &part, &kcv); err != nil || len(text) != 33+11 {
			t.Fatalf("%s: %v", path, err)
		}
		if key, err := simulator.ParseKey([]byte(fmt.Sprintf("%X", part))); err != nil || key.KCV() != kcv {
			t.Errorf("%s: the check value is not that of the component", path)
		}
		for i := range sum {
			sum[i] ^= part[i]
		}
	}
	for _, b := range sum {
		ones := 0
		for ; b != 0; b >>= 1 {
			ones += int(b & 1)
		}
		if ones%2 != 1 {
			t.Error("the key's parity is not odd")
		}
	}
	if text, err := os.ReadFile(zone.KeyFile); err != nil || strings.TrimSpace(string(text)) != fmt.Sprintf("%X", sum) {
		t.Errorf("the components do not make the key: %v", err)
	}
	if _, err := simulator.WriteZone(dir, "pos-switch"); err == nil {
		t.Error("a key is overwritten")
	}
	for _, name := range []string{"", "..", "a/b"} {
		if _, err := simulator.WriteZone(dir, name); err == nil {
			t.Errorf("a zone of the name %q is written", name)
		}
	}
	if _, err := simulator.ReadKeyFile(filepath.Join(dir, "none"), simulator.ISO0); err == nil {
		t.Error("a file that is not there is read")
	}
}

func TestWritersThatFailAreReported(t *testing.T) {
	if err := simulator.NewLedger(0).WriteJSON(brokenWriter{}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("ledger: %v", err)
	}
	if err := simulator.NewBook(0).WriteJSON(brokenWriter{}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("book: %v", err)
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }
