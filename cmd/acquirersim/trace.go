package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"acquirerd/messages"
	"acquirerd/simulator"
)

// A tracer prints messages, masked: a block of lines each, or a JSON object on a line.
type tracer struct {
	mu     sync.Mutex
	w      io.Writer
	asJSON bool
}

func (t *tracer) trace(e simulator.TraceEvent) {
	var text strings.Builder
	if t.asJSON {
		line, err := json.Marshal(struct {
			Time      time.Time           `json:"time"`
			Link      string              `json:"link"`
			Direction simulator.Direction `json:"direction"`
			Bytes     int                 `json:"bytes"`
			Note      string              `json:"note,omitempty"`
			Message   *messages.Message   `json:"message"`
		}{e.Time.UTC(), e.Link, e.Direction, e.Bytes, e.Note, e.Message})
		if err != nil {
			return
		}
		text.Write(append(line, '\n'))
	} else {
		note := ""
		if e.Note != "" {
			note = ": " + e.Note
		}
		_, _ = fmt.Fprintf(&text, "%s %s %s %s, %d bytes%s\n", e.Time.UTC().Format("15:04:05.000"), e.Link, e.Direction, e.Message.MTI, e.Bytes, note)
		for _, line := range e.Message.Describe() {
			_, _ = fmt.Fprintf(&text, "  %3d %-22s %q\n", line.Element, line.Name, line.Value)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	_, _ = io.WriteString(t.w, text.String())
}
