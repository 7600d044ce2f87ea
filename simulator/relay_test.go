package simulator_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"acquirerd/messages"
	"acquirerd/simulator"
)

// A relay is a tiny daemon made of the simulator's own parts, without a disk: it gives each message of the upstream numbers of its own,
// stores what became of it, and answers repeats from there. It loses some of its answers, and connections.
type relay struct {
	codec    *messages.Codec
	listener *simulator.PipeListener
	link     *simulator.Upstream // to the processor
	duty     *simulator.Duty     // that owes what the processor did not answer
	answers  atomic.Int64
	forgets  bool // it stores nothing: a repeat is a new request

	mu    sync.Mutex
	known map[string]*carried
	order []*carried
}

// A carried is one message of the upstream at the processor.
type carried struct {
	done     chan struct{} // the processor's answer is known
	request  simulator.Request
	code     string
	id       string
	approved string

	reversing chan struct{} // holds one while a reversal is under way; a mutex would stop a bubble's clock
	account   simulator.Account
}

func (r *relay) serve(ctx context.Context, conn net.Conn, serving *sync.WaitGroup) {
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	var writing sync.Mutex
	reader := bufio.NewReader(conn)
	for {
		body, err := r.codec.ReadFrame(reader)
		if err != nil {
			_ = conn.Close()
			return
		}
		m, err := r.codec.Decode(body)
		if err != nil {
			_ = conn.Close()
			return
		}
		serving.Go(func() {
			answer := messages.NewAnswer(m, "00")
			if m.MTI.Class() != messages.Network {
				switch n := r.answers.Add(1); {
				case n%5 == 0:
					r.handle(ctx, m)
					return
				case n%17 == 0:
					r.handle(ctx, m)
					_ = conn.Close()
					return
				}
				answer = r.handle(ctx, m)
			}
			frame, err := r.codec.EncodeFrame(answer)
			if err != nil {
				panic(err)
			}
			writing.Lock()
			defer writing.Unlock()
			_, _ = conn.Write(frame)
		})
	}
}

func (r *relay) handle(ctx context.Context, m *messages.Message) *messages.Message {
	if m.MTI.Class() == messages.Reversal {
		return messages.NewAnswer(m, r.reverse(ctx, m))
	}
	key := strings.Join([]string{string(m.MTI[:3]), m.Get(messages.TransmissionTime), m.Get(messages.STAN), m.Get(messages.Terminal)}, "|")
	c, first := r.find(key, m.Get(messages.STAN))
	if first || r.forgets {
		r.carry(ctx, c, m)
	}
	<-c.done
	answer := messages.NewAnswer(m, c.code)
	answer.Set(messages.AuthorizationID, c.id)
	if c.approved != "" {
		answer.Set(messages.Amount, c.approved)
	}
	return answer
}

// find returns what was carried under a key; first says that nothing was.
func (r *relay) find(key, stan string) (c *carried, first bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c = r.known[key]; c != nil && !r.forgets {
		return c, false
	}
	c = &carried{done: make(chan struct{}), reversing: make(chan struct{}, 1), account: simulator.Account{ID: int64(len(r.order) + 1),
		MTI: messages.MTI(key[:3] + "0"), UpstreamKey: key, UpstreamSTAN: stan}}
	r.known[key], r.order = c, append(r.order, c)
	return c, true
}

// carry takes a request or an advice to the processor.
func (r *relay) carry(ctx context.Context, c *carried, m *messages.Message) {
	defer close(c.done)
	c.request = simulator.Request{MTI: c.account.MTI, PAN: m.PAN(), Amount: amount(m), Terminal: strings.TrimSpace(m.Get(messages.Terminal))}
	a := &c.account
	a.Terminal, a.Amount = m.Get(messages.Terminal), m.Get(messages.Amount)
	if c.account.MTI[2] == '2' {
		c.code = "00"
		c.request.AuthorizationID = m.Get(messages.AuthorizationID)
		r.insist(ctx, &c.request, "00")
		a.STAN, a.TransmissionTime, a.Outcome, a.Advice = c.request.STAN, c.request.TransmissionTime, "accepted", "acknowledged"
		return
	}
	e, err := r.duty.Do(ctx, c.request)
	if err != nil {
		c.code, a.Outcome = "91", "not_sent"
		return
	}
	c.request, c.code, c.id = c.request.Again(e), e.ResponseCode, e.AuthorizationID
	a.STAN, a.TransmissionTime, a.ResponseCode = e.STAN, e.TransmissionTime, e.ResponseCode
	switch {
	case e.Outcome == simulator.NotSent:
		c.code, a.Outcome = "91", "not_sent"
	case e.Outcome != simulator.Answered:
		c.code, a.Outcome, a.Owed = "91", "unknown", "acknowledged"
	case !e.Approved:
		a.Outcome = "declined"
	default:
		if a.Outcome = "approved"; e.ApprovedAmount != e.Amount {
			c.approved = fmt.Sprintf("%012d", e.ApprovedAmount)
			a.ApprovedAmount = c.approved
		}
	}
}

// insist sends until one of the codes comes.
func (r *relay) insist(ctx context.Context, request *simulator.Request, codes ...string) {
	for ctx.Err() == nil {
		e, err := r.link.Do(ctx, *request)
		if err != nil {
			panic(err)
		}
		*request = request.Again(e)
		for _, code := range codes {
			if e.ResponseCode == code {
				return
			}
		}
		if e.Outcome != simulator.NotSent {
			request.MTI = request.MTI.Repeat()
		}
		<-time.After(time.Second)
	}
}

func (r *relay) reverse(ctx context.Context, m *messages.Message) string {
	original := m.Get(messages.OriginalData)
	stan := original[4:10]
	key := strings.Join([]string{original[:3], original[10:20], stan, m.Get(messages.Terminal)}, "|")
	c, first := r.find(key, stan)
	if first {
		c.account.Outcome, c.account.Reason, c.code = "not_sent", "reversed_first", "21"
		close(c.done)
		return "25"
	}
	<-c.done
	c.reversing <- struct{}{}
	defer func() { <-c.reversing }()
	a := &c.account
	switch {
	case a.Reason == "reversed_first":
		return "25"
	case a.Outcome != "approved" || a.Owed != "":
		return "00"
	}
	reversal := c.request
	reversal.MTI, reversal.OriginalMTI = messages.ReversalAdvice, c.request.MTI
	if replacement := m.Get(messages.ReplacementAmounts); replacement != "" {
		a.ReplacementAmount = replacement[:12]
		_, _ = fmt.Sscanf(a.ReplacementAmount, "%d", &reversal.Replacement)
	}
	r.insist(ctx, &reversal, "00", "25")
	a.Owed = "acknowledged"
	return "00"
}

func amount(m *messages.Message) int64 {
	var n int64
	_, _ = fmt.Sscanf(m.Get(messages.Amount), "%d", &n)
	return n
}

// relayed sends a hundred transactions of a Duty through a relay and compares at rest.
func relayed(t *testing.T, seed uint64, forgets bool) simulator.Verdict {
	t.Helper()
	var verdict simulator.Verdict
	bubble(t, func(t *testing.T) {
		p, links, stopProcessor := serve(t, simulator.ProcessorConfig{Codec: codec(t, "iso87-ascii"), AcceptBeforeSignOn: true,
			Faults: simulator.Faults{Seed: seed, MaxDelay: 8 * time.Second, Lost: .03, Late: .03, Delay: .1, Silence: .05, Drop: .01, Close: .01,
				Duplicate: .03, Reorder: .03, Garble: .01, OtherLink: .03, CutAnswer: .01, Stall: .01}})
		defer stopProcessor()
		link, stopLink := run(t, simulator.UpstreamConfig{ReplyTimeout: 5 * time.Second, Connections: 2, FirstSTAN: 600_000}, links)
		defer stopLink()
		r := &relay{codec: codec(t, "iso87-binary"), listener: simulator.NewPipeListener(), link: link, forgets: forgets,
			duty: newDuty(t, simulator.DutyConfig{Upstream: link}), known: map[string]*carried{}}
		ctx, cancel := context.WithCancel(t.Context())
		var serving sync.WaitGroup
		defer cancel()
		serving.Go(func() {
			for {
				conn, err := r.listener.Accept()
				if err != nil {
					return
				}
				serving.Go(func() { r.serve(ctx, conn, &serving) })
			}
		})
		u, stop := run(t, simulator.UpstreamConfig{Codec: r.codec, ReplyTimeout: 12 * time.Second, Connections: 3, AcquirerID: "12345"}, r.listener)
		defer stop()
		ready(t, u)
		ready(t, link)
		d := newDuty(t, simulator.DutyConfig{Upstream: u, Seed: seed, RepeatShare: .6, CancelShare: .2, PartialShare: .2, AdviceShare: .2,
			RequestShare: .3, ResendShare: .3})
		var asking sync.WaitGroup
		for n := range 100 {
			<-time.After(200 * time.Millisecond)
			request := simulator.Request{PAN: pan(t, visa), Amount: int64(1000 + n), Terminal: fmt.Sprintf("SIM%05d", n)}
			switch n % 10 {
			case 1:
				request.Amount = 9051
			case 2:
				request.Amount = 9010
			case 3:
				request.MTI = messages.FinancialRequest
			}
			asking.Go(func() {
				if entry, err := d.Do(ctx, request); err != nil || entry.Open {
					t.Errorf("%+v, %v", entry, err)
				}
			})
		}
		asking.Wait()
		<-time.After(5 * time.Minute) // for what is decided late, and what the relay still owes
		cancel()
		_ = r.listener.Close()
		serving.Wait()
		var accounts []simulator.Account
		for _, c := range r.order {
			accounts = append(accounts, c.account)
		}
		verdict = simulator.Compare(accounts, p.Ledger().Snapshot(), u.Book().Snapshot())
	})
	return verdict
}

func TestADutyAndALedgerAgreeThroughARelay(t *testing.T) {
	for seed := range uint64(10) {
		verdict := relayed(t, seed, false)
		if verdict.Mismatches > 0 {
			t.Errorf("seed %d: %q\n%s", seed, verdict.Disagreements, strings.Join(verdict.Transcript(), "\n"))
		}
		if verdict.Reversed == 0 || verdict.Partial == 0 || verdict.Advices == 0 || verdict.Unknown == 0 || verdict.DuplicatesAnswered < 5 {
			t.Errorf("seed %d did not meet what it is for: %+v", seed, verdict)
		}
	}
}

func TestARelayThatForgetsIsFoundOut(t *testing.T) {
	if verdict := relayed(t, 1, true); verdict.Mismatches == 0 {
		t.Errorf("%+v", verdict)
	}
}
