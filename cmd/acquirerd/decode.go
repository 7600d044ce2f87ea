package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"acquirerd/messages"
	"acquirerd/specs"
)

// mostDecodeText bounds what is read as one message: the longest frame of any dialect in hexadecimal digits, with room for spaces.
const mostDecodeText = 1 << 20

func (c *cli) decodeCommand() *cobra.Command {
	var d decoding
	command := c.command("decode HEX|-|FILE", "Show one message, masked",
		"acquirerd decode --dialect iso87-binary 08008220000000000000040000000000000011231200590000420301\n"+
			"acquirerd decode --check message.hex\nxxd -p -c0 message.bin | acquirerd decode --dialect iso87-ascii --frame --output json -",
		func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("decode takes one message: its hexadecimal digits, a file with them, or - for standard input")
			}
			return nil
		},
		func(_ context.Context, args []string) error { return c.decode(d, args[0]) })
	command.Long = "Decode reads one message in hexadecimal digits and shows its elements, with those masked that may not be shown. Without\n" +
		"--dialect it tries the built-in ones and says which of them encode it back to the same bytes."
	command.Flags().StringVar(&d.dialect, "dialect", "", "dialect of the message, by name or path")
	command.Flags().BoolVar(&d.frame, "frame", false, "the message has its length header before it")
	command.Flags().BoolVar(&d.check, "check", false, "exit with 0 only if the message encodes back to the same bytes")
	command.Flags().BoolVar(&d.unsafe, "unsafe", false, "show everything in clear: for test data only")
	return withoutConfig(command)
}

// A decoding is how a message is to be shown.
type decoding struct {
	dialect              string
	frame, check, unsafe bool
}

// A decoded is a message as one dialect reads it.
type decoded struct {
	Dialect    string          `json:"dialect"`
	RoundTrips bool            `json:"round_trips"` // it encodes back to the same bytes
	MTI        messages.MTI    `json:"mti,omitempty"`
	Elements   []messages.Line `json:"elements,omitempty"` // those before the fault, if there is one
	Fault      string          `json:"fault,omitempty"`
}

func (c *cli) decode(d decoding, source string) error {
	raw, err := c.readHex(source)
	if err != nil {
		return err
	}
	names := specs.Names()
	if d.dialect != "" {
		names = []string{d.dialect}
	}
	if d.unsafe {
		_, _ = fmt.Fprintln(c.err, "acquirerd: --unsafe shows card data in clear: for test data only")
	}
	var readings []decoded
	readable, same := 0, 0
	for _, name := range names {
		dialect, err := specs.Load(name)
		if err != nil {
			return err
		}
		reading := d.read(messages.NewCodec(dialect), raw)
		if reading.Fault == "" {
			readable++
		}
		if reading.RoundTrips {
			same++
		}
		readings = append(readings, reading)
	}
	if err := c.printDecoded(readings, d.dialect != ""); err != nil {
		return err
	}
	switch {
	case readable == 0 && d.dialect != "":
		return fmt.Errorf("decoding in %s: %s", d.dialect, readings[0].Fault)
	case readable == 0:
		return errors.New("decoding: no dialect can read it")
	case d.check && same == 0:
		return errors.New("decoding: it does not encode back to the same bytes")
	}
	return nil
}

// read decodes a message, and encodes it again.
func (d decoding) read(codec *messages.Codec, raw []byte) decoded {
	reading := decoded{Dialect: codec.Dialect().Name}
	body := raw
	if d.frame {
		stream := bytes.NewReader(raw)
		var err error
		if body, err = codec.ReadFrame(stream); err == nil && stream.Len() > 0 {
			err = fmt.Errorf("%d bytes follow the frame", stream.Len())
		}
		if err != nil {
			reading.Fault = oneLine(err)
			return reading
		}
	}
	message, err := codec.Decode(bytes.Clone(body))
	if message != nil {
		reading.MTI, reading.Elements = message.MTI, message.Describe()
		if d.unsafe {
			reading.Elements = message.DescribeUnsafe()
		}
		defer message.Clear()
	}
	if err != nil {
		reading.Fault = oneLine(err)
		return reading
	}
	encode := codec.Encode
	if d.frame {
		encode = codec.EncodeFrame
	}
	again, err := encode(message)
	reading.RoundTrips = err == nil && bytes.Equal(again, raw)
	return reading
}

// readHex reads a message from hexadecimal digits, standard input or a file. Its errors quote nothing of it.
func (c *cli) readHex(source string) ([]byte, error) {
	raw, err := unhex([]byte(source))
	if err == nil {
		return raw, nil
	}
	if errors.Is(err, hex.ErrLength) { // digits, but for their number
		return nil, usagef("decode: the number of hexadecimal digits is odd")
	}
	if source == "" {
		return nil, usagef("decode: no message was given")
	}
	in := c.in
	if source != "-" {
		file, err := os.Open(filepath.Clean(source))
		if err != nil {
			return nil, usagef("decode: what was given is neither hexadecimal digits nor the name of a file that can be read")
		}
		defer func() { _ = file.Close() }() // only read
		in = file
	}
	text, err := io.ReadAll(io.LimitReader(in, mostDecodeText+1))
	if err != nil {
		return nil, fmt.Errorf("reading message: %w", err)
	}
	if len(text) > mostDecodeText {
		return nil, fmt.Errorf("reading message: it is longer than %d characters", mostDecodeText)
	}
	if raw, err = unhex(text); errors.Is(err, hex.ErrLength) {
		return nil, errors.New("reading message: the number of its hexadecimal digits is odd")
	} else if err != nil {
		return nil, errors.New("reading message: it is not hexadecimal digits")
	}
	return raw, nil
}

func unhex(text []byte) ([]byte, error) {
	digits := bytes.Join(bytes.Fields(text), nil)
	if len(digits) == 0 {
		return nil, errors.New("no digits")
	}
	raw := make([]byte, hex.DecodedLen(len(digits)))
	_, err := hex.Decode(raw, digits)
	return raw, err
}

// printDecoded prints what was read: one object if the dialect was named, else one for each.
func (c *cli) printDecoded(readings []decoded, named bool) error {
	if c.output == "json" && named {
		return c.printJSON(readings[0])
	}
	if c.output == "json" {
		return c.printJSON(readings)
	}
	for _, r := range readings {
		verdict := "encodes back to the same bytes"
		if r.Fault != "" {
			verdict = "cannot read it: " + r.Fault
		} else if !r.RoundTrips {
			verdict = "reads it, and encodes it to other bytes"
		}
		if _, err := fmt.Fprintf(c.out, "%s %s\n", r.Dialect, verdict); err != nil {
			return err
		}
		if r.MTI == "" || r.Fault != "" && !named {
			continue
		}
		table := c.table("DE", "NAME", "VALUE")
		table.row(0, "mti", r.MTI)
		for _, line := range r.Elements {
			table.row(int(line.Element), line.Name, line.Value)
		}
		if err := table.Flush(); err != nil {
			return err
		}
	}
	return nil
}

func (c *cli) dialectCommands() *cobra.Command {
	one := func(what string) cobra.PositionalArgs {
		return func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("it takes one argument: %s", what)
			}
			return nil
		}
	}
	group := c.group("dialect", "Check and show dialects", "acquirerd dialect lint our-processor.yaml\nacquirerd dialect show iso87-binary",
		c.command("lint FILE", "Name every fault of a dialect file", "acquirerd dialect lint our-processor.yaml", one("a file"), c.dialectLint),
		c.command("show NAME", "Print a dialect: "+strings.Join(specs.Names(), ", ")+", or the path of a file",
			"acquirerd dialect show iso87-binary", one("the name of a dialect, or the path of its file"), c.dialectShow))
	return withoutConfig(group)
}

// dialectLint prints "ok", or returns a fault for each line.
func (c *cli) dialectLint(_ context.Context, args []string) error {
	text, err := readFile(args[0], specs.MaxText)
	if err != nil {
		return fmt.Errorf("reading dialect: %w", err)
	}
	_, err = specs.Parse(text)
	found := &configError{}
	if err != nil {
		for line := range strings.Lines(err.Error()) {
			found.faults = append(found.faults, fault{text: strings.TrimSpace(line)})
		}
	}
	if c.output == "json" {
		lines := []string{}
		for _, f := range found.faults {
			lines = append(lines, f.text)
		}
		if err := c.printJSON(map[string]any{"ok": len(lines) == 0, "faults": lines}); err != nil {
			return err
		}
	}
	if len(found.faults) > 0 {
		return found
	}
	if c.output == "text" {
		_, err = fmt.Fprintln(c.out, "ok")
	}
	return err
}

func (c *cli) dialectShow(_ context.Context, args []string) error {
	dialect, err := specs.Load(args[0])
	if err != nil {
		return err
	}
	var node yaml.Node
	if err := node.Encode(dialect); err != nil {
		return fmt.Errorf("writing dialect: %w", err)
	}
	return c.printYAML(&node)
}
