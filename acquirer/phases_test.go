package acquirer

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"acquirerd/conn"
)

// sums of the histogram by phase, in milliseconds; none for a phase that was not observed.
func sums(t *testing.T, p *phases) map[string]int {
	t.Helper()
	registry := prometheus.NewRegistry()
	p.observe(newMetrics(registry).phases, "bank")
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]int{}
	for _, family := range families {
		if family.GetName() == "acquirerd_transaction_phase_seconds" {
			for _, m := range family.GetMetric() {
				for _, label := range m.GetLabel() {
					if label.GetName() == "phase" {
						found[label.GetValue()] = int(m.GetHistogram().GetSampleSum()*1000 + 0.5)
					}
				}
			}
		}
	}
	return found
}

func TestPhasesAreTheWholeOfATransaction(t *testing.T) {
	for _, c := range []struct {
		name  string
		trace conn.Trace
		want  map[string]int
	}{
		{"answered", conn.Trace{Link: 1, Queued: 7 * time.Millisecond, Written: 3 * time.Millisecond, Answered: 90 * time.Millisecond},
			map[string]int{"queue": 8, "journal": 2 + 8 + 16, "hsm": 4, "write": 3, "processor": 90}},
		{"not answered", conn.Trace{Link: 0, Queued: 7 * time.Millisecond, Written: 3 * time.Millisecond},
			map[string]int{"queue": 8, "journal": 2 + 8 + 16, "hsm": 4, "write": 3, "processor": 90}},
		{"never sent", conn.Trace{Link: -1}, map[string]int{"queue": 101, "journal": 2 + 8 + 16, "hsm": 4}},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := &phases{since: time.Now()}
			pass := func(ms int) { <-time.After(time.Duration(ms) * time.Millisecond) }
			pass(1)
			p.on(phaseQueue)
			pass(2)
			p.on(phaseJournal)
			pass(4)
			p.on(phaseHSM)
			pass(8)
			p.on(phaseJournal)
			pass(100)
			p.onExchange(c.trace)
			pass(16)
			p.on(phaseJournal)
			got := sums(t, p)
			for phase, want := range c.want {
				if got[phase] != want {
					t.Errorf("%s: %s took %d ms, want %d", c.name, phase, got[phase], want)
				}
			}
			if len(got) != len(c.want) {
				t.Errorf("%s: got %v, want %v", c.name, got, c.want)
			}
		})
	}
}
