package simulator_test

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"acquirerd/messages"
	"acquirerd/simulator"
	"acquirerd/specs"
)

// Published examples: ISO/IEC 9797-1 annex B.4 and NIST SP 800-38B (vectors.json has their sources). What the simulator finds right is right.
func TestMACsAreThoseOfTheStandards(t *testing.T) {
	for _, v := range []struct {
		name           string
		algorithm      simulator.MACAlgorithm
		padding        int
		key, data, mac string
	}{
		{"retail_mac/iso9797-alg3-s1-m1", simulator.MACX919, 1, "0123456789ABCDEFFEDCBA9876543210", "4E6F77206973207468652074696D6520666F7220616C6C20", "A1C72E74EA3FA9B6"},
		{"retail_mac/iso9797-alg3-s2-m1", simulator.MACX919, 1, "0123456789ABCDEFFEDCBA9876543210", "4E6F77206973207468652074696D6520666F72206974", "2E2B1428CC78254F"},
		{"retail_mac/iso9797-alg3-s1-m2", simulator.MACX919, 2, "0123456789ABCDEFFEDCBA9876543210", "4E6F77206973207468652074696D6520666F7220616C6C20", "E9086230CA3BE796"},
		{"retail_mac/iso9797-alg3-s1-m3", simulator.MACX919, 3, "0123456789ABCDEFFEDCBA9876543210", "4E6F77206973207468652074696D6520666F7220616C6C20", "AB059463D7A7D170"},
		{"retail_mac/x919-2", simulator.MACX919, 1, "76850752AD7307ADE554D06D3BA73279", "8155ADCC76B2FB0064F2C40037710477CE13C4BF75FD3DADF13B6D137AC1B915", "B2A45602664C486F"},
		{"retail_mac/psec-m1", simulator.MACX919, 1, "41414141414141414242424242424242", "68656C6C6F20776F726C64", "3DDE5C5511661CBF"},
		{"retail_mac/psec-m2", simulator.MACX919, 2, "41414141414141414242424242424242", "68656C6C6F20776F726C64", "E16941032C3BC7D4"},
		{"retail_mac/psec-m3", simulator.MACX919, 3, "41414141414141414242424242424242", "68656C6C6F20776F726C64", "BA90F750EF43F668"},
		{"cmac/tdea2-0", simulator.MACCMACTDES, 0, "4CF15134A2850DD58A3D10BA80570D38", "", "BD2EBF9A3BA00361"},
		{"cmac/tdea2-20", simulator.MACCMACTDES, 0, "4CF15134A2850DD58A3D10BA80570D38", "6BC1BEE22E409F96E93D7E117393172AAE2D8A57", "62DD1B471902BD4E"},
		{"cmac/tdea3-0", simulator.MACCMACTDES, 0, "8AA83BF8CBDA10620BC1BF19FBB6CD58BC313D4A371CA8B5", "", "B7A688E122FFAF95"},
		{"cmac/tdea3-20", simulator.MACCMACTDES, 0, "8AA83BF8CBDA10620BC1BF19FBB6CD58BC313D4A371CA8B5", "6BC1BEE22E409F96E93D7E117393172AAE2D8A57", "743DDBE0CE2DC2ED"},
		{"cmac/aes128-0", simulator.MACCMACAES, 0, "2B7E151628AED2A6ABF7158809CF4F3C", "", "BB1D6929E9593728"},
		{"cmac/aes128-40", simulator.MACCMACAES, 0, "2B7E151628AED2A6ABF7158809CF4F3C", "6BC1BEE22E409F96E93D7E117393172AAE2D8A571E03AC9C9EB76FAC45AF8E5130C81C46A35CE411", "DFA66747DE9AE630"},
		{"cmac/aes256-0", simulator.MACCMACAES, 0, "603DEB1015CA71BE2B73AEF0857D77811F352C073B6108D72D9810A30914DFF4", "", "028962F61B7BF89E"},
		{"cmac/aes256-40", simulator.MACCMACAES, 0, "603DEB1015CA71BE2B73AEF0857D77811F352C073B6108D72D9810A30914DFF4", "6BC1BEE22E409F96E93D7E117393172AAE2D8A571E03AC9C9EB76FAC45AF8E5130C81C46A35CE411", "AAF3D8F1DE5640C2"},
	} {
		value, err := hex.DecodeString(v.key)
		if err != nil {
			t.Fatal(err)
		}
		data, err := hex.DecodeString(v.data)
		if err != nil {
			t.Fatal(err)
		}
		key, err := simulator.NewMACKey(v.algorithm, v.padding, value)
		if err != nil {
			t.Fatalf("%s: %v", v.name, err)
		}
		if got, err := key.MAC(t.Context(), data); err != nil || fmt.Sprintf("%X", got) != v.mac {
			t.Errorf("%s: got %X, %v; want %s", v.name, got, err, v.mac)
		}
	}
}

func TestAMACKeyOfAFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "mac.key")
	if err := os.WriteFile(path, []byte("000102030405060708090A0B0C0D0E0F\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	key, err := simulator.ReadMACKeyFile(path, simulator.MACX919, 1)
	if err != nil {
		t.Fatal(err)
	}
	if shown := fmt.Sprintf("%v %+v %#v %s", key, key, key, key.LogValue()); strings.Contains(shown, "01") || !strings.Contains(shown, "x919") {
		t.Errorf("it shows itself as %s", shown)
	}
	mac, err := key.MAC(t.Context(), []byte("text"))
	if err != nil || key.VerifyMAC(t.Context(), []byte("text"), mac[:4]) != nil {
		t.Errorf("got %X, %v", mac, err)
	}
	for _, wrong := range [][]byte{nil, mac[:3], append(mac, 0), {1, 2, 3, 4}} {
		if err := key.VerifyMAC(t.Context(), []byte("text"), wrong); !errors.Is(err, messages.ErrMAC) {
			t.Errorf("%X: got %v", wrong, err)
		}
	}
	if _, err := simulator.ReadMACKeyFile(path, simulator.MACHMAC, 0); !errors.Is(err, simulator.ErrMACKey) {
		t.Errorf("got %v", err)
	}
	if _, err := simulator.ReadMACKeyFile(path, "md5", 0); err == nil {
		t.Error("an algorithm that is none is taken")
	}
}

// An answer whose MAC is wrong or missing may be anybody's, a refusal as well as an approval: the wait ends with it, and it decides nothing.
func TestAnAnswerThatIsNotProvenDecidesNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		mac, err := simulator.NewMACKey(simulator.MACHMAC, 0, make([]byte, 32))
		if err != nil {
			t.Fatal(err)
		}
		withMAC := codec(t, "iso87-ascii")
		withMAC.Dialect().MAC.Place = specs.MACLast
		p, listener, stopProcessor := serve(t, simulator.ProcessorConfig{Codec: withMAC, MAC: mac,
			Rules: rules(t, "amount=1 bad-mac attempt=1", "amount=2 no-mac decline=51 attempt=1", "amount=3 no-mac", "mti=04 amount=3 bad-mac attempt=1")})
		defer stopProcessor()
		u, stop := run(t, simulator.UpstreamConfig{Codec: withMAC, MAC: mac, ReplyTimeout: 10 * time.Second}, listener)
		defer stop()
		ready(t, u)
		for amount, code := range map[int64]string{1: "00", 2: "51"} {
			request := simulator.Request{PAN: pan(t, visa), Amount: amount}
			got := do(t, u, request)
			if got.Outcome != simulator.Unproven || got.UnprovenCode != code || got.ResponseCode != "" || got.Approved || got.Elapsed != 0 {
				t.Errorf("%d: got %+v", amount, got)
			}
			if again := do(t, u, request.Again(got)); again.Outcome != simulator.Answered {
				t.Errorf("%d again: got %+v", amount, again)
			}
		}
		duty, err := simulator.NewDuty(simulator.DutyConfig{Upstream: u})
		if err != nil {
			t.Fatal(err)
		}
		got, err := duty.Do(t.Context(), simulator.Request{PAN: pan(t, visa), Amount: 3})
		if err != nil || got.Outcome != simulator.Unproven || got.Belief != simulator.BelievesNone || got.Open ||
			got.Reversal.State != simulator.DebtAcknowledged || got.Reversal.Tries != 2 || len(got.Faults) > 0 {
			t.Errorf("got %+v, %v", got, err)
		}
		if counts := p.Ledger().Counts(); counts.Reversed != 1 || counts.WrongMACs != 0 {
			t.Errorf("the ledger has %+v", counts)
		}
		if counts := u.Book().Counts(); counts.WrongMACs != 4 || counts.Outcomes[simulator.Unproven] != 3 || counts.LateAnswers != 0 {
			t.Errorf("the book has %+v", counts)
		}
	})
}

// A right answer behind a spoiled copy of itself is a late one.
func TestTheRightAnswerMayComeAfterAnUnprovenOne(t *testing.T) {
	bubble(t, func(t *testing.T) {
		mac, err := simulator.NewMACKey(simulator.MACHMAC, 0, make([]byte, 32))
		if err != nil {
			t.Fatal(err)
		}
		withMAC := codec(t, "iso87-ascii")
		withMAC.Dialect().MAC.Place = specs.MACLast
		listener := simulator.NewPipeListener()
		u, stop := run(t, simulator.UpstreamConfig{Codec: withMAC, MAC: mac, NoSignOn: true}, listener)
		defer stop()
		conn, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		ready(t, u)
		asked := make(chan simulator.Entry, 1)
		go func() {
			entry, err := u.Do(t.Context(), simulator.Request{PAN: pan(t, visa), Amount: 1})
			if err != nil {
				t.Error(err)
			}
			asked <- entry
		}()
		body, err := withMAC.ReadFrame(newReader(conn))
		if err != nil {
			t.Fatal(err)
		}
		request, err := withMAC.Decode(body)
		if err != nil {
			t.Fatal(err)
		}
		bare, err := withMAC.EncodeFrame(messages.NewAnswer(request, "97"))
		if err != nil {
			t.Fatal(err)
		}
		right, err := withMAC.EncodeFrameWithMAC(t.Context(), mac, messages.NewAnswer(request, "51"))
		if err != nil {
			t.Fatal(err)
		}
		for _, frame := range [][]byte{bare, bare, right} {
			if _, err := conn.Write(frame); err != nil {
				t.Fatal(err)
			}
		}
		if got := <-asked; got.Outcome != simulator.Unproven || got.UnprovenCode != "97" {
			t.Errorf("got %+v", got)
		}
		synctest.Wait()
		if s := u.Book().Snapshot(); s.Entries[0].LateCode != "51" || s.Counts.WrongMACs != 2 || s.Counts.Unmatched != 0 {
			t.Errorf("the book has %+v", s)
		}
	})
}
