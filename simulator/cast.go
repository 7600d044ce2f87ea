package simulator

import (
	"context"
	"errors"
	"net"
	"sync"

	"acquirerd/messages"
	"acquirerd/specs"
)

// A Cast is a whole play on a stage: the real daemon between a simulated processor with two links and a simulated upstream. The daemon
// converts every transaction: the upstream speaks iso87-binary, the processor iso87-ascii.
type Cast struct {
	Stage     *Stage
	Processor *Processor
	Upstream  *Upstream
	Links     []string // addresses of the processor

	stop    context.CancelFunc
	playing sync.WaitGroup
}

// NewCast makes the stage and starts processor, daemon and upstream. It returns when both links and the upstream have signed on. Codecs,
// keys and addresses of the configurations are filled in.
func NewCast(ctx context.Context, stage StageConfig, processor ProcessorConfig, upstream UpstreamConfig) (*Cast, error) {
	c := &Cast{}
	if err := c.begin(ctx, stage, processor, upstream); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *Cast) begin(ctx context.Context, stage StageConfig, processor ProcessorConfig, upstream UpstreamConfig) error {
	// It outlives ctx: when the user interrupts, the daemon signs off while the processor still listens.
	playing, stop := context.WithCancel(context.WithoutCancel(ctx))
	c.stop = stop
	listeners, err := listenOnLinks(ctx)
	if err != nil {
		return err
	}
	for _, listener := range listeners {
		context.AfterFunc(playing, func() { _ = listener.Close() })
		stage.Links = append(stage.Links, listener.Addr().String())
	}
	c.Links = stage.Links
	if c.Stage, err = NewStage(ctx, stage); err != nil {
		return err
	}
	if processor.Codec, err = builtinCodec("iso87-ascii"); err != nil {
		return err
	}
	processor.ZPK = c.Stage.EndpointZPK
	if c.Processor, err = NewProcessor(processor); err != nil {
		return err
	}
	if upstream.Codec, err = builtinCodec("iso87-binary"); err != nil {
		return err
	}
	upstream.Address, upstream.ZPK = c.Stage.Upstream, c.Stage.UpstreamZPK
	if c.Upstream, err = NewUpstream(upstream); err != nil {
		return err
	}
	c.playing.Go(func() { _ = c.Processor.Serve(playing, listeners...) })
	if err := c.Stage.Start(ctx, true); err != nil {
		return err
	}
	c.playing.Go(func() { _ = c.Upstream.Run(playing) })
	return c.Upstream.Ready(ctx)
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

// listenOnLinks opens the processor's two ports: the usual ones, or others where somebody has those.
func listenOnLinks(ctx context.Context) (listeners []net.Listener, err error) {
	var config net.ListenConfig
	for _, wanted := range []string{"127.0.0.1:9001", "127.0.0.1:9002"} {
		listener, err := config.Listen(ctx, "tcp", wanted)
		if err != nil {
			listener, err = config.Listen(ctx, "tcp", "127.0.0.1:0")
		}
		if err != nil {
			return nil, err
		}
		listeners = append(listeners, listener)
	}
	return listeners, nil
}

func builtinCodec(name string) (*messages.Codec, error) {
	dialect, err := specs.Load(name)
	if err != nil {
		return nil, err
	}
	return messages.NewCodec(dialect), nil
}
