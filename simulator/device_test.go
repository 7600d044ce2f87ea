package simulator

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"acquirerd/card"
	"acquirerd/messages"
	"acquirerd/specs"
)

func deviceOf(t *testing.T, bdk, ksn string, format PINFormat) (*Device, error) {
	t.Helper()
	value, err := hex.DecodeString(bdk)
	if err != nil {
		t.Fatal(err)
	}
	first, err := card.ParseKSN(ksn)
	if err != nil {
		t.Fatal(err)
	}
	return NewDevice(value, first, format)
}

const (
	deviceTDES = "0123456789ABCDEFFEDCBA9876543210" // X9.24-1:2009, A.4
	deviceAES  = "FEDCBA9876543210F1F1F1F1F1F1F1F1" // X9.24-3:2017, supplement
)

// The blocks that X9.24-1 prints for its device, one after the other.
func TestADeviceMakesTheBlocksOfTheStandard(t *testing.T) {
	d, err := deviceOf(t, deviceTDES, "FFFF9876543210E00001", ISO0)
	if err != nil {
		t.Fatal(err)
	}
	pin, errPIN := ParsePIN("1234")
	pan, errPAN := card.ParsePAN("4012345678909")
	if errPIN != nil || errPAN != nil {
		t.Fatal(errPIN, errPAN)
	}
	for i, want := range []string{"1B9C1845EB993A7A", "10A01C8D02C69107", "18DC07B94797B466", "0BC79509D5645DF7", "5BC0AF22AD87B327",
		"A16DF70AE36158D8", "27711C16CB257F8E", "50E55547A5027551", "536CF7F678ACFC8D", "EDABBA23221833FE"} {
		block, ksn, err := d.PINBlock(pin, pan)
		if got := fmt.Sprintf("%X", block.Reveal()); err != nil || got != want || ksn.String() != fmt.Sprintf("FFFF9876543210E000%02X", i+1) {
			t.Errorf("block %d: got %s by %v, %v, want %s", i+1, got, ksn, err, want)
		}
	}
	if text := fmt.Sprintf("%+v %s", d, deviceTDES); strings.Contains(strings.TrimSuffix(text, deviceTDES), "6AC2") || !strings.Contains(text, "FFFF9876543210E0000B") {
		t.Errorf("it prints itself as %s", text)
	}
}

func TestADeviceOfAESHasTheKeysOfTheStandard(t *testing.T) {
	pin, errPIN := ParsePIN("1234")
	pan, errPAN := card.ParsePAN("4111111111111111")
	if errPIN != nil || errPAN != nil {
		t.Fatal(errPIN, errPAN)
	}
	for _, row := range []struct {
		bdk    string
		format PINFormat
		key    string
	}{
		{deviceAES, ISO4, "AF8CB133A78F8DC2D1359F18527593FB"},
		{deviceAES, ISO0, "630C706D9546E47D4449313F61C4D4AB"},
		{deviceAES + deviceAES, ISO4, "8C1AB7BEE973829E30242E0BBBDD4946D540C98FC1B5BDCF94790001A23FD502"},
	} {
		d, err := deviceOf(t, row.bdk, "123456789012345600000001", row.format)
		if err != nil {
			t.Fatal(err)
		}
		parse := ParseKey
		if row.format == ISO4 {
			parse = ParseAESKey
		}
		key, err := parse([]byte(row.key))
		if err != nil {
			t.Fatal(err)
		}
		block, _, err := d.PINBlock(pin, pan)
		if err != nil || key.verify(block, pin, pan) != pinRight {
			t.Errorf("%s of %d bits: %v", row.format, 4*len(row.bdk), err)
		}
	}
}

func TestADevicePassesOverCountersThatItHasNoKeyFor(t *testing.T) {
	for first, want := range map[string][]string{
		"FFFF9876543210E003FE":     {"FFFF9876543210E003FF", "FFFF9876543210E00400"},
		"FFFF9876543210E007FD":     {"FFFF9876543210E007FE", "FFFF9876543210E00800"},
		"FFFF9876543210FFF400":     {"FFFF9876543210FFF800", ""},
		"12345678901234560001FFFE": {"123456789012345600020000"},
		"1234567890123456FFFE8000": {"1234567890123456FFFF0000", ""},
	} {
		isAES := len(first) == 24
		bdk := deviceTDES
		if isAES {
			bdk = deviceAES
		}
		d, err := deviceOf(t, bdk, first, ISO0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.take(); err != nil {
			t.Fatal(err)
		}
		got := []string{}
		for range want {
			ksn, err := d.take()
			if err != nil && !errors.Is(err, errUsedUp) {
				t.Fatal(err)
			}
			got = append(got, ksn.String())
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("after %s: got %v, want %v", first, got, want)
		}
	}
}

func TestNoDeviceOfAnotherKey(t *testing.T) {
	for name, row := range map[string]struct {
		bdk, ksn string
		format   PINFormat
	}{
		"TDES of triple length": {deviceTDES + "0011223344556677", "FFFF9876543210E00001", ISO0},
		"TDES of equal halves":  {"01234567890123450123456789012345", "FFFF9876543210E00001", ISO0},
		"AES of 192 bits":       {deviceAES + "0011223344556677", "123456789012345600000001", ISO4},
		"TDES in format 4":      {deviceTDES, "FFFF9876543210E00001", ISO4},
		"no counter":            {deviceTDES, "FFFF9876543210E00000", ISO0},
		"no format":             {deviceTDES, "FFFF9876543210E00001", "iso-2"},
	} {
		if d, err := deviceOf(t, row.bdk, row.ksn, row.format); err == nil || d != nil || strings.Contains(err.Error(), row.bdk) {
			t.Errorf("%s: got %v, %v", name, d, err)
		}
	}
}

func TestAnUpstreamWithADevice(t *testing.T) {
	dialect, err := specs.Load("iso87-binary")
	if err != nil {
		t.Fatal(err)
	}
	device, err := deviceOf(t, deviceTDES, "FFFF9876543210E00001", ISO0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewUpstream(UpstreamConfig{Codec: messages.NewCodec(dialect), Address: "127.0.0.1:1", Device: device}); err == nil {
		t.Error("a dialect without key serial numbers is taken")
	}
	own := *dialect
	own.KeySerialNumber = specs.KeySerialNumber{Element: 62, Form: specs.KeySerialNumberHex}
	u, err := NewUpstream(UpstreamConfig{Codec: messages.NewCodec(&own), Address: "127.0.0.1:1", Device: device})
	if err != nil {
		t.Fatal(err)
	}
	pin, errPIN := ParsePIN("1234")
	pan, errPAN := card.ParsePAN("4012345678909")
	if errPIN != nil || errPAN != nil {
		t.Fatal(errPIN, errPAN)
	}
	for _, want := range []string{"FFFF9876543210E00001", "FFFF9876543210E00002"} {
		m, err := u.build(Request{PAN: pan, PIN: pin, Amount: 100})
		if err != nil || m.Reveal(62) != want || !m.Has(messages.PINData) {
			t.Errorf("got %v, %v, want the number %s", m, err, want)
		}
	}
	if m, err := u.build(Request{PAN: pan, Amount: 100}); err != nil || m.Has(62) || m.Has(messages.PINData) {
		t.Errorf("without a PIN: got %v, %v", m, err)
	}
}
