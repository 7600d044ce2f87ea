package simulator

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"acquirerd/messages"
	"acquirerd/specs"
)

// A Cast is a whole play on a stage: the real daemon between a simulated processor with two links and a simulated upstream. The daemon
// converts every transaction: unless the configuration has other dialects, the upstream speaks iso87-binary, the processor iso87-ascii.
type Cast struct {
	Stage     *Stage
	Processor *Processor
	Upstream  *Upstream
	Links     []string // addresses of the processor, or of the proxies before it

	// Where the play is proxied, else nil:
	LinkProxies []*Proxy // between the daemon and the processor, one for each link
	DoorProxy   *Proxy   // between the upstream and the daemon

	playing sync.WaitGroup
	play    context.Context // of all but the daemon
	stop    context.CancelFunc
	recall  func() // ends the processor's service; owned by begin and RestartProcessor

	mu       sync.Mutex
	backends []string // addresses of the processor; guarded by mu
}

// CastConfig says who plays. Codecs, keys and addresses are filled in.
type CastConfig struct {
	Stage     StageConfig
	Processor ProcessorConfig
	Upstream  UpstreamConfig

	UpstreamDialect, ProcessorDialect string // built-in ones or paths

	Proxied bool   // with proxies before the processor's links and the daemon's door
	Seed    uint64 // of the proxies
}

// NewCast makes the stage and starts processor, daemon and upstream. It returns when both links and the upstream have signed on.
func NewCast(ctx context.Context, cfg CastConfig) (*Cast, error) {
	c := &Cast{}
	// It outlives ctx: when the user interrupts, the daemon signs off while the processor still listens.
	c.play, c.stop = context.WithCancel(context.WithoutCancel(ctx))
	if err := c.begin(ctx, cfg); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *Cast) begin(ctx context.Context, cfg CastConfig) (err error) {
	wanted := []string{anyPort, anyPort}
	if cfg.Stage.KnownPorts {
		wanted = []string{"127.0.0.1:9001", "127.0.0.1:9002"}
	}
	links, err := c.listen(ctx, wanted...)
	if err != nil {
		return err
	}
	c.Links = addressesOf(links)
	cfg.Stage.Links, cfg.Stage.UpstreamDialect, cfg.Stage.ProcessorDialect = c.Links, cfg.UpstreamDialect, cfg.ProcessorDialect
	if c.Stage, err = NewStage(ctx, cfg.Stage); err != nil {
		return err
	}
	if cfg.Processor.Codec, err = loadedCodec(byDefault(cfg.ProcessorDialect, linkDialect)); err != nil {
		return err
	}
	cfg.Processor.ZPK, cfg.Processor.ZMK = c.Stage.EndpointZPK, c.Stage.EndpointZMK
	if c.Processor, err = NewProcessor(cfg.Processor); err != nil {
		return err
	}
	if cfg.Upstream.Codec, err = loadedCodec(byDefault(cfg.UpstreamDialect, doorDialect)); err != nil {
		return err
	}
	cfg.Upstream.Address, cfg.Upstream.ZPK = c.Stage.Upstream, c.Stage.UpstreamZPK
	if cfg.Proxied {
		if links, err = c.proxyLinks(ctx, links, cfg.Seed); err != nil {
			return err
		}
		if cfg.Upstream.Address, err = c.proxyDoor(ctx, cfg.Seed+uint64(len(links))); err != nil {
			return err
		}
	}
	if c.Upstream, err = NewUpstream(cfg.Upstream); err != nil {
		return err
	}
	c.serve(links)
	if err := c.Stage.Start(ctx, true); err != nil {
		return err
	}
	c.playing.Go(func() { _ = c.Upstream.Run(c.play) })
	return c.Upstream.Ready(ctx)
}

// serve has the processor serve links until recall is called or the play ends.
func (c *Cast) serve(listeners []net.Listener) {
	ctx, stop := context.WithCancel(c.play)
	ended := make(chan struct{})
	c.playing.Go(func() {
		defer close(ended)
		_ = c.Processor.Serve(ctx, listeners...)
	})
	c.recall = func() {
		stop()
		<-ended
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.backends = addressesOf(listeners)
}

// RestartProcessor takes the processor away, its listeners and its links, and after a while lets it serve again, with the ledger that it
// had. What it was doing is lost. It is for one goroutine at a time.
func (c *Cast) RestartProcessor(ctx context.Context, away time.Duration) error {
	c.recall()
	pause(ctx, away)
	wanted := c.Links
	if len(c.LinkProxies) > 0 {
		// The proxies ask where it is. A port that the system chose may be somebody else's by now.
		wanted = slices.Repeat([]string{anyPort}, len(c.Links))
	}
	listeners, err := c.listen(c.play, wanted...)
	if err != nil {
		return fmt.Errorf("restarting processor: %w", err)
	}
	c.serve(listeners)
	return nil
}

// proxyLinks puts a proxy behind each listener, and returns listeners for the processor.
func (c *Cast) proxyLinks(ctx context.Context, links []net.Listener, seed uint64) ([]net.Listener, error) {
	backends, err := c.listen(ctx, slices.Repeat([]string{anyPort}, len(links))...)
	if err != nil {
		return nil, err
	}
	c.backends = addressesOf(backends) // before anyone dials
	for i, link := range links {
		proxy, err := NewProxy(ProxyConfig{Seed: seed + uint64(i), Dial: func(ctx context.Context) (net.Conn, error) { return c.dialProcessor(ctx, i) }})
		if err != nil {
			return nil, err
		}
		c.LinkProxies = append(c.LinkProxies, proxy)
		c.playing.Go(func() { _ = proxy.Serve(c.play, link) })
	}
	return backends, nil
}

func (c *Cast) dialProcessor(ctx context.Context, link int) (net.Conn, error) {
	c.mu.Lock()
	address := c.backends[link]
	c.mu.Unlock()
	return (&net.Dialer{}).DialContext(ctx, "tcp", address)
}

// proxyDoor puts a proxy before the daemon's door, and returns its address.
func (c *Cast) proxyDoor(ctx context.Context, seed uint64) (string, error) {
	listeners, err := c.listen(ctx, anyPort)
	if err != nil {
		return "", err
	}
	if c.DoorProxy, err = NewProxy(ProxyConfig{Seed: seed, Address: c.Stage.Upstream}); err != nil {
		return "", err
	}
	c.playing.Go(func() { _ = c.DoorProxy.Serve(c.play, listeners[0]) })
	return listeners[0].Addr().String(), nil
}

// Close ends the play: the daemon by SIGTERM, if it still runs, whose exit code must be 0; then the others.
func (c *Cast) Close() error {
	var err error
	if c.Stage != nil {
		err = c.Stage.Stop()
	}
	c.stop()
	c.playing.Wait()
	return err
}

const anyPort = "127.0.0.1:0"

// listen opens these ports, or others where somebody has those. They close with the play.
func (c *Cast) listen(ctx context.Context, wanted ...string) (listeners []net.Listener, err error) {
	var config net.ListenConfig
	for _, address := range wanted {
		listener, err := config.Listen(ctx, "tcp", address)
		if err != nil {
			listener, err = config.Listen(ctx, "tcp", anyPort)
		}
		if err != nil {
			return nil, err
		}
		context.AfterFunc(c.play, func() { _ = listener.Close() })
		listeners = append(listeners, listener)
	}
	return listeners, nil
}

func addressesOf(listeners []net.Listener) (addresses []string) {
	for _, listener := range listeners {
		addresses = append(addresses, listener.Addr().String())
	}
	return addresses
}

func loadedCodec(name string) (*messages.Codec, error) {
	dialect, err := specs.Load(name)
	if err != nil {
		return nil, err
	}
	return messages.NewCodec(dialect), nil
}
