package acquirer

import (
	"fmt"
	"testing"

	"acquirerd/card"
)

func ksnOf(t *testing.T, device, counter uint32) card.KSN {
	t.Helper()
	ksn, err := card.ParseKSN(fmt.Sprintf("12345678%08X%08X", device, counter))
	if err != nil {
		t.Fatal(err)
	}
	return ksn
}

func TestACounterRises(t *testing.T) {
	d := newDevices()
	for i, row := range []struct {
		bdk     string
		device  uint32
		counter uint32
		request string
		want    bool
	}{
		{"bdk-1", 1, 7, "a", true},  // the first is believed
		{"bdk-1", 1, 7, "a", true},  // its repeat
		{"bdk-1", 1, 7, "b", false}, // the same block in another request
		{"bdk-1", 1, 6, "a", false},
		{"bdk-1", 1, 8, "c", true},
		{"bdk-1", 1, 7, "a", false}, // the highest stays
		{"bdk-1", 1, 6, "d", false},
		{"bdk-1", 1, 8, "c", true},
		{"bdk-1", 1, 1 << 20, "e", true}, // some do not arrive
		{"bdk-1", 2, 1, "f", true},       // another device
		{"bdk-2", 1, 1, "g", true},       // under another key
	} {
		if got := d.rises(row.bdk, ksnOf(t, row.device, row.counter), asking{"pos", row.request}); got != row.want {
			t.Errorf("row %d: got %v", i, got)
		}
	}
	if d.rises("bdk-1", ksnOf(t, 1, 1<<20), asking{"web", "e"}) {
		t.Error("another upstream's request of the same name is the same request")
	}
}

func TestOnlySoManyDevicesAreRemembered(t *testing.T) {
	d := newDevices()
	d.most = 3
	enter := func(device, counter uint32) bool {
		return d.rises("bdk", ksnOf(t, device, counter), asking{"pos", fmt.Sprint(device, counter)})
	}
	for device := range uint32(3) {
		enter(device, 9)
	}
	enter(0, 10) // heard of again: 1 is the oldest now
	enter(3, 9)
	if len(d.known) != 3 || d.order.Len() != 3 {
		t.Errorf("%d and %d are remembered", len(d.known), d.order.Len())
	}
	for device, want := range map[uint32]bool{0: false, 2: false, 3: false} {
		if got := enter(device, 1); got != want {
			t.Errorf("device %d: got %v", device, got)
		}
	}
	if !enter(1, 1) {
		t.Error("the oldest was not forgotten")
	}
}
