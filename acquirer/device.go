package acquirer

import (
	"container/list"
	"hash/maphash"
	"sync"

	"acquirerd/card"
	"acquirerd/messages"
)

// devicesRemembered bounds the devices whose counters are remembered: some 20 MB. Over it, the one that was not heard of for the longest time is
// forgotten.
const devicesRemembered = 100_000

// devices remember the highest counter that each device has used under DUKPT (PCI PIN 20). A device never uses a key twice, so that a counter
// that does not rise is of a PIN block that was played again, or of two devices with one initial key.
//
// They are lost with the process, and what is forgotten is believed once: the first counter of a device, whatever it is. What is on record is
// safe without them: a request that is played again as it was is its own repeat, and is answered from there.
type devices struct {
	most int
	seed maphash.Seed

	mu    sync.Mutex
	known map[device]*list.Element
	order list.List // of *lastHeard; the one heard of last is in front
}

// A device is named by its key serial number without the counter, within a base derivation key: it may move from one upstream to another.
type device struct {
	bdk string
	ksn card.KSN
}

// A lastHeard is a device with its highest counter and the request that came with it.
type lastHeard struct {
	device
	counter uint32
	request uint64 // hash of its name
}

func newDevices() *devices {
	return &devices{most: devicesRemembered, seed: maphash.MakeSeed(), known: map[device]*list.Element{}}
}

// rises enters a counter. It is false if it is not higher than the last one, unless the request is the same once more. The highest stays.
func (d *devices) rises(bdk string, ksn card.KSN, request asking) bool {
	of, counter, name := device{bdk, ksn.Device()}, ksn.Counter(), maphash.Comparable(d.seed, request)
	d.mu.Lock()
	defer d.mu.Unlock()
	at, isKnown := d.known[of]
	if !isKnown {
		d.known[of] = d.order.PushFront(&lastHeard{of, counter, name})
		if d.order.Len() > d.most {
			oldest := d.order.Remove(d.order.Back()).(*lastHeard)
			delete(d.known, oldest.device)
		}
		return true
	}
	d.order.MoveToFront(at)
	last := at.Value.(*lastHeard)
	if counter <= last.counter {
		return counter == last.counter && name == last.request
	}
	last.counter, last.request = counter, name
	return true
}

// rises reports whether the key serial number of a request rises for its device, and raises the alarm if not. One without is fine.
func (s *Switch) rises(req Request, ksn card.KSN) bool {
	if ksn.IsZero() {
		return true
	}
	regressions := s.metrics.regressions.WithLabelValues(req.Upstream.Name) // there from the first block on, so that the first event is a step
	if s.devices.rises(req.Upstream.BDKKey, ksn, asking{req.Upstream.Name, req.Key}) {
		return true
	}
	regressions.Inc()
	s.sometimes.Do(func() {
		s.log.Warn("key serial number does not rise: a PIN block that was played again, or two devices with one key", "audit", true,
			"upstream", req.Upstream.Name, "key", req.Upstream.BDKKey, "ksn", ksn.String(), "terminal", req.Message.Get(messages.Terminal),
			"upstream_stan", req.Message.Get(messages.STAN), "refused", req.Upstream.RefuseRegression)
	})
	return false
}

// keySerialNumber reads the key serial number of a request's PIN block, zero if it has none or is not under DUKPT. Its error is a
// *messages.FormatError: without a sound one nobody can read the block.
func keySerialNumber(req Request) (card.KSN, error) {
	if req.Upstream.BDKKey == "" || !req.Message.Has(messages.PINData) {
		return card.KSN{}, nil
	}
	ksn, err := req.Upstream.Codec.KSN(req.Message)
	if err == nil && ksn.IsZero() {
		err = ofKSN(req, "is missing beside a PIN block under DUKPT")
	}
	return ksn, err
}

// ofKSN is a fault of the element with the key serial number.
func ofKSN(req Request, rule string) error {
	return &messages.FormatError{Element: req.Upstream.Codec.KeySerialNumberElement(), Rule: rule}
}
