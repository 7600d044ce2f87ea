package messages_test

import (
	"testing"

	"acquirerd/messages"
)

// BenchmarkPassage carries a request to the processor and its answer back, as each transaction does once.
func BenchmarkPassage(b *testing.B) {
	for _, pair := range [][2]string{{"iso87-binary", "iso87-ascii"}, {"iso87-binary", "iso93-binary"}} {
		b.Run(pair[0]+" to "+pair[1], func(b *testing.B) {
			there, back := passage(b, pair[0], pair[1]), passage(b, pair[1], pair[0])
			asked := asked(b, codec(b, pair[0]))
			b.ReportAllocs()
			for b.Loop() {
				sent, err := there.ForProcessor(asked, numbers, noon)
				if err != nil {
					b.Fatal(err)
				}
				answer := messages.NewAnswer(sent, codec(b, pair[1]).Dialect().Approving[0])
				back.ForUpstream(asked, answer, noon)
			}
		})
	}
}
