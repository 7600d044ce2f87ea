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
	"strconv"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"acquirerd/card"
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
		oneMessage("decode"),
		func(_ context.Context, args []string) error { return c.decode(d, args[0]) })
	command.Long = "Decode reads one message in hexadecimal digits and shows its header and its elements, with those masked that may not be shown.\n" +
		"Bytes stand as x'0A1B', an element without a character as (empty), a text that begins or ends with a space in quotes. Without\n" +
		"--dialect it tries the built-in ones and says which of them encode it back to the same bytes; with --frame, then also frames\n" +
		"other than the dialect's own."
	command.Flags().StringVar(&d.dialect, "dialect", "", "dialect of the message, by name or path")
	command.Flags().BoolVar(&d.frame, "frame", false, "the message has its framing: length before it, trailer behind it")
	command.Flags().BoolVar(&d.check, "check", false, "exit with 0 only if the message encodes back to the same bytes")
	command.Flags().BoolVar(&d.unsafe, "unsafe", false, "show everything in clear: for test data only")
	return withoutConfig(command)
}

func oneMessage(command string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != 1 {
			return usagef("%s takes one message: its hexadecimal digits, a file with them, or - for standard input", command)
		}
		return nil
	}
}

// A decoding is how a message is to be shown.
type decoding struct {
	dialect              string
	frame, check, unsafe bool
}

// A decoded is a message as one dialect reads it.
type decoded struct {
	Dialect    string          `json:"dialect"`
	Framing    string          `json:"framing,omitempty"` // that it was read with, if it has one
	RoundTrips bool            `json:"round_trips"`       // it encodes back to the same bytes
	Header     []headerPart    `json:"header,omitempty"`
	Rejected   string          `json:"rejected,omitempty"` // the code with which a network returned it
	MTI        string          `json:"mti,omitempty"`      // as it stands on the wire
	Elements   []messages.Line `json:"elements,omitempty"` // those before the fault, if there is one
	Fault      string          `json:"fault,omitempty"`
}

// A headerPart is a stretch of the header, in hexadecimal digits.
type headerPart struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

func (c *cli) decode(d decoding, source string) error {
	raw, err := c.readHex("decode", source)
	if err != nil {
		return err
	}
	if d.unsafe {
		_, _ = fmt.Fprintln(c.err, "acquirerd: --unsafe shows card data in clear: for test data only")
	}
	var readings []decoded
	readable, same := 0, 0
	for _, name := range namedOrAll(d.dialect) {
		dialect, err := specs.Load(name)
		if err != nil {
			return err
		}
		for _, reading := range d.readings(dialect, raw) {
			if reading.Fault == "" {
				readable++
			}
			if reading.RoundTrips {
				same++
			}
			readings = append(readings, reading)
		}
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

// namedOrAll are the dialects to try: the one that was named, or the built-in ones.
func namedOrAll(name string) []string {
	if name != "" {
		return []string{name}
	}
	return specs.Names()
}

// readings are those of one dialect: one, or if no dialect was named and its own framing is not the message's, one for each framing with which
// the message encodes back to the same bytes.
func (d decoding) readings(dialect *specs.Dialect, raw []byte) []decoded {
	own := d.read(messages.NewCodec(dialect), raw)
	if !d.frame || d.dialect != "" || own.Fault == "" {
		return []decoded{own}
	}
	var others []decoded
	for _, framing := range framings(dialect.Framing) {
		framed := *dialect
		framed.Framing = framing
		if reading := d.read(messages.NewCodec(&framed), raw); reading.Fault == "" && reading.RoundTrips {
			others = append(others, reading)
		}
	}
	if len(others) == 0 {
		return []decoded{own}
	}
	return others
}

// framings are those that have a length, without a trailer.
func framings(own specs.Framing) []specs.Framing {
	var list []specs.Framing
	for _, length := range specs.LengthHeaders {
		for _, inclusive := range []bool{false, true} {
			if length == specs.LengthNone {
				continue
			}
			framing := specs.Framing{Length: length, Inclusive: inclusive, Max: own.Max}
			list = append(list, framing)
			if length == specs.LengthBinary2 || length == specs.LengthBinary4 {
				framing.LittleEndian = true
				list = append(list, framing)
			}
		}
	}
	return list
}

// read decodes a message, and encodes it again.
func (d decoding) read(codec *messages.Codec, raw []byte) decoded {
	dialect := codec.Dialect()
	reading := decoded{Dialect: dialect.Name}
	body := raw
	if d.frame {
		reading.Framing = dialect.Framing.Describe()
		stream := bytes.NewReader(raw)
		var err error
		if body, err = codec.ReadFrame(stream); err == nil && stream.Len() > 0 {
			err = fmt.Errorf("%d bytes follow the frame", stream.Len())
		} else if err == nil && len(body) == 0 {
			err = errors.New("the frame has no message: it only shows that the peer is there")
		}
		if err != nil {
			reading.Fault = oneLine(err)
			return reading
		}
	}
	message, err := codec.Decode(bytes.Clone(body))
	if message != nil {
		defer message.Clear()
		reading.show(codec, message, d.unsafe)
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

// show takes what may be shown of a message.
func (r *decoded) show(codec *messages.Codec, m *messages.Message, unsafe bool) {
	r.MTI, r.Elements, r.Rejected = codec.Dialect().WireMTI(string(m.MTI)), m.Describe(), m.Rejected()
	if unsafe {
		r.Elements = m.DescribeUnsafe()
	}
	for _, part := range codec.Header(m) {
		value := strings.ToUpper(hex.EncodeToString(part.Bytes))
		if !unsafe { // a header has none, but who knows what stands where one was expected
			value = card.HidePANs(value)
		}
		r.Header = append(r.Header, headerPart{part.Name, value})
	}
}

// readHex reads a message from hexadecimal digits, standard input or a file. Its errors quote nothing of it.
func (c *cli) readHex(command, source string) ([]byte, error) {
	raw, err := unhex([]byte(source))
	if err == nil {
		return raw, nil
	}
	if errors.Is(err, hex.ErrLength) { // digits, but for their number
		return nil, usagef("%s: the number of hexadecimal digits is odd", command)
	}
	if source == "" {
		return nil, usagef("%s: no message was given", command)
	}
	in := c.in
	if source != "-" {
		file, err := os.Open(filepath.Clean(source))
		if err != nil {
			return nil, usagef("%s: what was given is neither hexadecimal digits nor the name of a file that can be read", command)
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
		if r.Framing != "" && r.Fault == "" && !named {
			verdict += " (" + r.Framing + ")"
		}
		if _, err := fmt.Fprintf(c.out, "%s %s\n", plain(r.Dialect), verdict); err != nil {
			return err
		}
		if r.MTI == "" || r.Fault != "" && !named {
			continue
		}
		if err := c.printMessage(r); err != nil {
			return err
		}
	}
	return nil
}

// printMessage prints header and elements.
func (c *cli) printMessage(r decoded) error {
	table := c.table("DE", "NAME", "VALUE")
	for _, part := range r.Header {
		table.row("", "header "+part.Name, "x'"+part.Value+"'")
	}
	table.row(0, "mti", r.MTI)
	for _, line := range r.Elements {
		table.row(int(line.Element), line.Name, shown(line))
	}
	return table.Flush()
}

// shown is a value as a table has it, so that what it is can be told from how it stands there.
func shown(line messages.Line) string {
	value := line.Value
	switch {
	case value == "":
		return "(empty)"
	case line.Hex:
		return "x'" + value + "'"
	case value == "-", strings.HasPrefix(value, "x'"), strings.TrimSpace(value) != value, value[0] == '(', value[0] == '"':
		return strconv.Quote(value)
	}
	return value
}

// plain is a text of a file, with what a terminal may not be given escaped.
func plain(text string) string {
	var b strings.Builder
	for _, r := range text {
		if unicode.IsPrint(r) {
			_, _ = b.WriteRune(r)
			continue
		}
		quoted := strconv.QuoteRune(r)
		_, _ = b.WriteString(quoted[1 : len(quoted)-1])
	}
	return b.String()
}
