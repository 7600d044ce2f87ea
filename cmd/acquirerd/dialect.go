package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"acquirerd/messages"
	"acquirerd/specs"
)

func (c *cli) dialectCommands() *cobra.Command {
	arguments := func(what string, count int) cobra.PositionalArgs {
		return func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) == count:
				return nil
			case count == 1:
				return usagef("it takes one argument: %s", what)
			}
			return usagef("it takes %d arguments: %s", count, what)
		}
	}
	var inYAML bool
	show := c.command("show NAME|FILE", "Print a dialect: "+strings.Join(specs.Names(), ", ")+", or the path of a file",
		"acquirerd dialect show iso87-binary\nacquirerd dialect show --yaml iso87-binary > our-processor.yaml",
		arguments("the name of a dialect, or the path of its file", 1), func(_ context.Context, args []string) error { return c.dialectShow(args[0], inYAML) })
	show.Long = "Show prints a dialect as tables: its keys, its message types with what they must carry, and its fields. --yaml prints it as a file,\n" +
		"with defaults put in, from which to make one of your own."
	show.Flags().BoolVar(&inYAML, "yaml", false, "print it as a dialect file")

	diff := c.command("diff A B", "Say what two dialects cannot carry to each other, and where they differ",
		"acquirerd dialect diff iso87-binary our-processor.yaml\nacquirerd dialect diff --output json iso87-ascii iso87-binary",
		arguments("two dialects, each by its name or the path of its file", 2), c.dialectDiff)
	diff.Long = "Diff says what of one party's messages cannot be carried to the other, in both directions, as the conversion between them does it:\n" +
		"elements that have no field there or mean something else, lengths and characters that do not fit, message types, rules, response\n" +
		"codes without a word for the same. After that, it lists the keys in which the two differ. Elements that a dialect lists as dropped\n" +
		"are named, and are no loss.\n\nExit code 0 if nothing is lost in either direction, 1 if something is, 2 if a dialect cannot be read."

	var e explaining
	explain := c.command("explain HEX|-|FILE", "Say for what a message would be refused",
		"acquirerd dialect explain --dialect our-processor.yaml message.hex\nxxd -p -c0 frame.bin | acquirerd dialect explain --dialect iso87-ascii --frame -",
		oneMessage("dialect explain"), func(_ context.Context, args []string) error { return c.dialectExplain(e, args[0]) })
	explain.Long = "Explain reads one message in hexadecimal digits and names every rule of the dialect that it breaks: the element, the byte (counted from\n" +
		"0, with framing and header), the rule, and what was expected there; then what could be read, masked. After the first fault of the form\n" +
		"nobody knows what the bytes are: what is missing is told by the bit map. Without --dialect it says one line for each built-in one.\n\n" +
		"Exit code 0 if the message would be taken (by one of them), 1 if not."
	explain.Flags().StringVar(&e.dialect, "dialect", "", "dialect of the message, by name or path")
	explain.Flags().BoolVar(&e.frame, "frame", false, "the message has its framing: length before it, trailer behind it")

	return withoutConfig(c.group("dialect", "Check, show and compare dialects",
		"acquirerd dialect lint our-processor.yaml\nacquirerd dialect show iso87-binary\nacquirerd dialect diff iso87-binary our-processor.yaml",
		c.command("lint FILE", "Name every fault of a dialect file", "acquirerd dialect lint our-processor.yaml", arguments("a file", 1), c.dialectLint),
		show, diff, explain))
}

// dialectLint prints "ok", or returns a fault for each line.
func (c *cli) dialectLint(_ context.Context, args []string) error {
	text, err := readFile(args[0], specs.MaxText)
	if err != nil {
		return fmt.Errorf("reading dialect: %w", err)
	}
	_, err = specs.Parse(text)
	found := &configError{}
	type faultJSON struct {
		Path string `json:"path"`
		Text string `json:"fault"`
	}
	list := []faultJSON{}
	for _, f := range specs.Faults(err) {
		found.faults = append(found.faults, fault{plain(f.Path), plain(f.Text)})
		list = append(list, faultJSON(*f))
	}
	if c.output == "json" {
		if err := c.printJSON(map[string]any{"ok": len(list) == 0, "faults": list}); err != nil {
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

func (c *cli) dialectShow(name string, inYAML bool) error {
	dialect, err := specs.Load(name)
	if err != nil {
		return err
	}
	if inYAML || c.output == "json" {
		var node yaml.Node
		if err := node.Encode(dialect); err != nil {
			return fmt.Errorf("writing dialect: %w", err)
		}
		return c.printYAML(&node)
	}
	settings, err := dialect.Settings()
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(c.out, "%s, version %s\n\n", plain(dialect.Name), plain(dialect.Version)); err != nil {
		return err
	}
	keys := c.table("KEY", "VALUE")
	keys.row("standard", dialect.Standard)
	keys.row("framing", dialect.Framing.Describe())
	keys.row("header", dialect.Header.Describe())
	for _, s := range settings {
		switch root, _, _ := strings.Cut(s.Path, "."); root {
		case "standard", "framing", "header", "messages", "fields":
		default:
			keys.row(s.Path, plain(s.Value))
		}
	}
	return errors.Join(keys.Flush(), c.printTypes(dialect), c.printFields(dialect))
}

// printTypes prints the message types with what they must carry.
func (c *cli) printTypes(dialect *specs.Dialect) error {
	_, _ = fmt.Fprintln(c.out) // Flush tells
	types := c.table("MTI", "MANDATORY", "ONE OF", "CONDITIONAL", "FORBIDDEN", "FIELDS OF ITS OWN")
	for _, mti := range dialect.MTIs() {
		presence := dialect.Messages[mti]
		var conditions []string
		for _, condition := range presence.When {
			text := numbers(condition.Then) + " if " + strconv.Itoa(condition.If)
			if len(condition.Begins) > 0 {
				text += " begins " + strings.Join(condition.Begins, " or ")
			}
			conditions = append(conditions, plain(text))
		}
		types.row(mti, numbers(presence.Mandatory), numbers(presence.OneOf), strings.Join(conditions, "; "), numbers(presence.Forbidden),
			numbers(slices.Sorted(maps.Keys(presence.Fields))))
	}
	return types.Flush()
}

// printFields prints the fields, and those of message types with fields of their own.
func (c *cli) printFields(dialect *specs.Dialect) error {
	_, _ = fmt.Fprintln(c.out) // Flush tells
	table := c.table("DE", "DESCRIPTION", "KIND", "LENGTH", "WIRE FORM", "SHOWN")
	row := func(de string, number int, f specs.Field) {
		kind := string(f.Characters())
		if f.Type == "Bitmap" {
			kind = "bit map"
		} else if f.Binary() {
			kind = "bytes"
		}
		masking := messages.Masking(dialect, messages.Element(number))
		if masking == "" {
			masking = "as it is"
		}
		table.row(de, plain(f.Description), kind, f.Extents(), f.Wire(), masking)
	}
	for _, number := range slices.Sorted(maps.Keys(dialect.Fields)) {
		row(strconv.Itoa(number), number, dialect.Fields[number])
	}
	for _, mti := range dialect.MTIs() {
		own := dialect.Messages[mti].Fields
		for _, number := range slices.Sorted(maps.Keys(own)) {
			row(fmt.Sprintf("%d in %s", number, mti), number, own[number])
		}
	}
	return table.Flush()
}

// numbers lists elements for a person: "3, 4, 7".
func numbers[T ~int](list []T) string {
	texts := make([]string, len(list))
	for i, number := range list {
		texts[i] = strconv.Itoa(int(number))
	}
	return strings.Join(texts, ", ")
}

// A direction is what one party's messages lose on their way to the other.
type direction struct {
	From             string                `json:"from"`
	To               string                `json:"to"`
	Lossless         bool                  `json:"lossless"`
	Elements         []lostElement         `json:"elements"`
	Messages         []string              `json:"messages"` // types that only from has
	Rules            []brokenRule          `json:"rules"`    // of to that no message of from keeps
	ResponseCodes    []messages.Substitute `json:"response_codes"`
	PartialReversals bool                  `json:"partial_reversals"` // from sends them, and to takes none
	Dropped          []messages.Element    `json:"dropped"`
	MadeAnew         []messages.Element    `json:"made_anew"`
}

type lostElement struct {
	Element     messages.Element `json:"element"`
	Description string           `json:"description"`
	Messages    []string         `json:"messages,omitempty"` // all if none
	Always      bool             `json:"always"`
	Why         string           `json:"why"`
}

// follows reports whether the same is said of an element as of the one before it.
func (l lostElement) follows(before lostElement) bool {
	return l.Element == before.Element+1 && l.Always == before.Always && l.Why == before.Why && slices.Equal(l.Messages, before.Messages)
}

type brokenRule struct {
	Message string           `json:"message"`
	Element messages.Element `json:"element"`
	Rule    string           `json:"rule"`
}

func directionOf(from, to *specs.Dialect) direction {
	losses := messages.NewPassage(messages.NewCodec(from), messages.NewCodec(to)).Losses()
	onWire := func(types []messages.MTI) []string {
		texts := make([]string, len(types))
		for i, mti := range types {
			texts[i] = from.WireMTI(string(mti))
		}
		return texts
	}
	d := direction{From: from.Name, To: to.Name, Lossless: !losses.Any(), Elements: []lostElement{}, Messages: onWire(losses.Types), Rules: []brokenRule{},
		ResponseCodes: slices.Concat([]messages.Substitute{}, losses.Codes), PartialReversals: losses.Parts,
		Dropped: slices.Concat([]messages.Element{}, losses.Dropped), MadeAnew: slices.Concat([]messages.Element{}, losses.Anew)}
	for _, loss := range losses.Elements {
		d.Elements = append(d.Elements, lostElement{loss.Element, from.Fields[int(loss.Element)].Description, onWire(loss.Types), loss.Always, loss.String()})
	}
	for _, broken := range losses.Broken {
		d.Rules = append(d.Rules, brokenRule{from.WireMTI(string(broken.MTI)), broken.Element, broken.Rule})
	}
	return d
}

func (c *cli) dialectDiff(_ context.Context, args []string) error {
	var dialects []*specs.Dialect
	for _, name := range args {
		dialect, err := specs.Load(name)
		if err != nil {
			return usagef("dialect diff: %s", oneLine(err))
		}
		dialects = append(dialects, dialect)
	}
	a, b := dialects[0], dialects[1]
	differences, err := specs.Differences(a, b)
	if err != nil {
		return err
	}
	directions := []direction{directionOf(a, b), directionOf(b, a)}
	if c.output == "json" {
		type differenceJSON struct {
			Path string `json:"key"`
			A    string `json:"a"`
			B    string `json:"b"`
		}
		keys := []differenceJSON{}
		for _, d := range differences {
			keys = append(keys, differenceJSON(d))
		}
		err = c.printJSON(map[string]any{"a": a.Name, "b": b.Name, "differences": keys, "directions": directions})
	} else {
		err = c.printDiff(a, b, differences, directions)
	}
	if err != nil {
		return err
	}
	if !directions[0].Lossless || !directions[1].Lossless {
		return fmt.Errorf("%s and %s cannot carry everything to each other", plain(a.Name), plain(b.Name))
	}
	return nil
}

func (c *cli) printDiff(a, b *specs.Dialect, differences []specs.Difference, directions []direction) error {
	for _, d := range directions {
		if err := c.printDirection(d); err != nil {
			return err
		}
	}
	if len(differences) == 0 {
		return nil
	}
	table := c.table("KEY", plain(a.Name), plain(b.Name))
	for _, d := range differences {
		table.row(d.Path, plain(d.A), plain(d.B))
	}
	return table.Flush()
}

func (c *cli) printDirection(d direction) error {
	verdict := "something cannot be carried"
	if d.Lossless {
		verdict = "nothing is lost"
	}
	if _, err := fmt.Fprintf(c.out, "%s to %s: %s\n", plain(d.From), plain(d.To), verdict); err != nil {
		return err
	}
	table := c.table("WHAT", "IN", "LOST", "WHY")
	rows := 0
	row := func(cells ...any) { rows++; table.row(cells...) }
	for i := 0; i < len(d.Elements); {
		lost, end := d.Elements[i], i+1
		for end < len(d.Elements) && d.Elements[end].follows(d.Elements[end-1]) {
			end++
		}
		what := fmt.Sprintf("DE %d %s", lost.Element, plain(lost.Description))
		if end-i >= 3 {
			what, i = fmt.Sprintf("DE %d to %d", lost.Element, d.Elements[end-1].Element), end-1
		}
		i++
		when := "maybe"
		if lost.Always {
			when = "always"
		}
		row(what, strings.Join(lost.Messages, ", "), when, lost.Why)
	}
	for _, mti := range d.Messages {
		row("message "+mti, "", "always", "its type is not known there")
	}
	for _, rule := range d.Rules {
		row(rule.Element, rule.Message, "always", "it "+rule.Rule)
	}
	become := map[string][]string{}
	for _, code := range d.ResponseCodes {
		become[code.Becomes] = append(become[code.Becomes], code.Code)
	}
	for _, becomes := range slices.Sorted(maps.Keys(become)) {
		for codes := range slices.Chunk(become[becomes], 12) { // so that a row is not too long
			row("response code "+strings.Join(codes, ", "), "", "always", "it has no word there, and becomes "+becomes)
		}
	}
	if d.PartialReversals {
		row("partial reversals", "", "always", "they are not taken there: the whole is reversed or refused")
	}
	if rows > 0 {
		if err := table.Flush(); err != nil {
			return err
		}
	}
	for _, line := range []struct {
		text     string
		elements []messages.Element
	}{{"left out, as their dialects say: ", d.Dropped}, {"of one hop, so that a PIN block is made anew and the others are left out: ", d.MadeAnew}} {
		if len(line.elements) > 0 {
			_, _ = fmt.Fprintf(c.out, "%s%s\n", line.text, numbers(line.elements)) // the last line tells
		}
	}
	_, err := fmt.Fprintln(c.out)
	return err
}

// An explaining is how a message is to be explained.
type explaining struct {
	dialect string
	frame   bool
}

// An explained is what one dialect says about a message.
type explained struct {
	Taken  bool             `json:"taken"`
	Faults []explainedFault `json:"faults"`
	decoded
}

type explainedFault struct {
	Element  messages.Element `json:"element"`
	Byte     *int             `json:"byte,omitempty"` // none if it is about no byte
	Rule     string           `json:"rule"`
	Expected string           `json:"expected,omitempty"`
	text     string
}

func (c *cli) dialectExplain(e explaining, source string) error {
	raw, err := c.readHex("dialect explain", source)
	if err != nil {
		return err
	}
	var list []explained
	taken := 0
	for _, name := range namedOrAll(e.dialect) {
		dialect, err := specs.Load(name)
		if err != nil {
			return err
		}
		list = append(list, e.explain(messages.NewCodec(dialect), raw))
		if list[len(list)-1].Taken {
			taken++
		}
	}
	switch {
	case c.output == "json" && e.dialect != "":
		err = c.printJSON(list[0])
	case c.output == "json":
		err = c.printJSON(list)
	case e.dialect != "":
		err = c.printExplained(list[0])
	default:
		err = c.printVerdicts(list)
	}
	switch {
	case err != nil:
		return err
	case taken > 0:
		return nil
	case e.dialect != "":
		return fmt.Errorf("explaining: %s would refuse it: %s", plain(list[0].Dialect), list[0].Faults[0].text)
	}
	return errors.New("explaining: every dialect would refuse it")
}

func (e explaining) explain(codec *messages.Codec, raw []byte) explained {
	explain := codec.Explain
	x := explained{decoded: decoded{Dialect: codec.Dialect().Name}, Faults: []explainedFault{}}
	if e.frame {
		explain = codec.ExplainFrame
		x.Framing = codec.Dialect().Framing.Describe()
	}
	found := explain(raw)
	for _, fault := range found.Faults {
		one := explainedFault{fault.Element, nil, fault.Rule, fault.Expected, fault.Error()}
		if fault.Offset >= 0 {
			at := fault.Offset
			one.Byte = &at
		}
		x.Faults = append(x.Faults, one)
	}
	x.Taken = len(x.Faults) == 0
	x.RoundTrips = x.Taken // which is a rule, too
	if found.Message != nil {
		x.show(codec, found.Message, false)
		found.Message.Clear()
	}
	return x
}

// printVerdicts prints a line for each dialect.
func (c *cli) printVerdicts(list []explained) error {
	for _, x := range list {
		verdict := "would take it"
		if !x.Taken {
			verdict = "would refuse it: " + x.Faults[0].text
			if more := len(x.Faults) - 1; more > 0 {
				verdict += fmt.Sprintf(", and %d more", more)
			}
		}
		if _, err := fmt.Fprintf(c.out, "%s %s\n", plain(x.Dialect), verdict); err != nil {
			return err
		}
	}
	return nil
}

// printExplained prints every fault, and what could be read.
func (c *cli) printExplained(x explained) error {
	verdict := "would take it"
	if !x.Taken {
		verdict = "would refuse it"
	}
	if _, err := fmt.Fprintf(c.out, "%s %s\n", plain(x.Dialect), verdict); err != nil {
		return err
	}
	if !x.Taken {
		faults := c.table("BYTE", "WHERE", "RULE", "EXPECTED")
		for _, fault := range x.Faults {
			at := ""
			if fault.Byte != nil {
				at = strconv.Itoa(*fault.Byte)
			}
			faults.row(at, fault.Element, fault.Rule, fault.Expected)
		}
		if err := faults.Flush(); err != nil {
			return err
		}
	}
	if x.MTI == "" {
		return nil
	}
	return c.printMessage(x.decoded)
}
