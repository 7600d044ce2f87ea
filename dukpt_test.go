package acquirerd_test

import (
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"testing"

	"acquirerd/card"
	"acquirerd/hsm"
	"acquirerd/hsm/hsmtest"
	"acquirerd/simulator"
)

// The simulator's devices derive their keys by the standard library, the HSM in a token: two readings of the standards. Counters are drawn by a seed.
func TestDevicesAndTheTokenDeriveTheSameKeys(t *testing.T) {
	const pin, pan = "918273", "5555555555554444"
	token := hsmtest.Standard(t)
	bdks := []struct {
		label string
		value string
		isAES bool
	}{
		{"bdk-tdes", "1F2E3D4C5B6A79880112233445566778", false},
		{"bdk-128", "000102030405060708090A0B0C0D0E0F", true},
		{"bdk-256", "000102030405060708090A0B0C0D0E0FF0E0D0C0B0A090807060504030201000", true},
	}
	for _, bdk := range bdks {
		value, err := hex.DecodeString(bdk.value)
		if err != nil {
			t.Fatal(err)
		}
		if bdk.isAES {
			token.PutAES(bdk.label, hsm.BDK, value)
		} else {
			token.Put(bdk.label, hsm.BDK, value)
		}
	}
	h, err := hsm.New(token.Config(), slog.New(slog.DiscardHandler), nil)
	if err == nil {
		err = h.Open(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()

	theirPIN, errPIN := simulator.ParsePIN(pin)
	number, errPAN := card.ParsePAN(pan)
	if errPIN != nil || errPAN != nil {
		t.Fatal(errPIN, errPAN)
	}
	random := rand.New(rand.NewPCG(5, 24))
	for _, bdk := range bdks {
		checked := 0
		defer func() {
			if checked < 20 {
				t.Errorf("%s: %d blocks were checked", bdk.label, checked)
			}
		}()
		for range 40 {
			digits := fmt.Sprintf("%016X%08X", random.Uint64(), random.Uint32())
			if !bdk.isAES {
				digits = digits[:20]
			}
			first, err := card.ParseKSN(digits)
			if err != nil {
				t.Fatal(err)
			}
			if first.Check() != nil {
				continue
			}
			formats := []simulator.PINFormat{simulator.ISO0, simulator.ISO3}
			if bdk.isAES {
				formats = append(formats, simulator.ISO4)
			}
			value, _ := hex.DecodeString(bdk.value)
			for _, format := range formats {
				device, err := simulator.NewDevice(value, first, format)
				if err != nil {
					t.Fatal(err)
				}
				for range 2 {
					block, ksn, err := device.PINBlock(theirPIN, number)
					if err != nil {
						t.Fatal(err)
					}
					got, err := h.Protect(t.Context(), hsm.Card{PAN: number, PINBlock: block, KSN: ksn, From: bdk.label,
						FromFormat: hsm.Format(format), To: hsmtest.ProcessorKey})
					if err != nil {
						t.Errorf("%s, %s, %s: %v", bdk.label, ksn, format, err)
						continue
					}
					if read := hsmtest.DecipherPIN(hsmtest.ProcessorZPK, pan, got.PINBlock); read != pin {
						t.Errorf("%s, %s, %s: another PIN", bdk.label, ksn, format)
					}
					checked++
				}
			}
		}
	}
}
