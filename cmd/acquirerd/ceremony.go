package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"acquirerd/hsm"
	"acquirerd/journal"
)

// What custodians bring, and how keys come and go. A component is in locked memory from the moment it is read until the token has it.

// mostComponent bounds the file of one component, in bytes: 64 digits and a check value, with room for spaces and comments.
const mostComponent = 4 << 10

// A brought is a component with who brought it.
type brought struct {
	custodian string
	hsm.Component
	free func()
}

func freeAll(components []brought) {
	for _, b := range components {
		b.free()
	}
}

func values(components []brought) []hsm.Component {
	var all []hsm.Component
	for _, b := range components {
		all = append(all, b.Component)
	}
	return all
}

// readComponent reads a file with a component: hexadecimal digits, whatever the space between them; on a line of its own "kcv" and the check value; and comments, lines that
// begin with #. A word "component" may stand before the digits. Its errors quote nothing of the file.
func readComponent(file string) (b brought, err error) {
	memory, free, err := hsm.Lock(mostComponent + 1)
	if err != nil {
		return b, fmt.Errorf("reading component: %w", err)
	}
	defer func() {
		if err != nil {
			free()
		}
	}()
	n, err := readInto(file, memory)
	if err != nil {
		return b, fmt.Errorf("reading component: %w", err)
	}
	digits := 0 // compacted at the beginning of the memory
	for rest := memory[:n]; len(rest) > 0; {
		line := rest
		if end := bytes.IndexByte(rest, '\n'); end >= 0 {
			line, rest = rest[:end], rest[end+1:]
		} else {
			rest = nil
		}
		line = bytes.TrimSpace(line)
		if kcv, isKCV := bytes.CutPrefix(line, []byte("kcv")); isKCV {
			if kcv = bytes.TrimSpace(kcv); b.KCV != "" || len(kcv) != 6 || !sixHex.Match(kcv) {
				return b, fmt.Errorf("reading component: %s has no line \"kcv\" with six hexadecimal digits, or more than one", file)
			}
			b.KCV = string(kcv)
			continue
		}
		if bytes.HasPrefix(line, []byte("#")) {
			continue
		}
		line = bytes.TrimPrefix(line, []byte("component"))
		for _, c := range line {
			if c != ' ' && c != '\t' {
				memory[digits] = c
				digits++
			}
		}
	}
	if b.Value, err = decodeInPlace(memory[:n], digits); err != nil {
		return b, fmt.Errorf("reading component: %s does not hold hexadecimal digits", file)
	}
	b.free = free
	return b, nil
}

// decodeInPlace turns the hexadecimal digits at the beginning of a memory into bytes, and clears the rest of it.
func decodeInPlace(memory []byte, digits int) ([]byte, error) {
	n, err := hex.Decode(memory, memory[:digits])
	if err != nil || n == 0 {
		clear(memory)
		return nil, errors.New("no hexadecimal digits")
	}
	clear(memory[n:])
	return memory[:n], nil
}

// readInto reads a file into memory that is a byte larger than it may be.
func readInto(path string, memory []byte) (int, error) {
	file, err := os.Open(filepath.Clean(path))
	if err != nil {
		return 0, err
	}
	defer func() { _ = file.Close() }() // only read
	switch n, err := io.ReadFull(file, memory); {
	case err == nil:
		return 0, fmt.Errorf("%s is larger than %d bytes", path, len(memory)-1)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return n, nil
	default:
		return 0, err
	}
}

// componentFiles reads the components of custodians, none of whom may be the same as another, as far as a computer can tell.
func componentFiles(files, custodians []string) (all []brought, err error) {
	if err := checkCustodians(custodians, len(files)); err != nil {
		return nil, err
	}
	if err := differentOwners(files); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			freeAll(all)
			all = nil
		}
	}()
	for i, file := range files {
		b, err := readComponent(file)
		if err != nil {
			return all, err
		}
		b.custodian = custodians[i]
		all = append(all, b)
		if b.KCV == "" {
			return all, fmt.Errorf("reading component: %s has no line \"kcv\" with its check value", file)
		}
	}
	return all, nil
}

// fewestCustodians and mostCustodians of a key.
const (
	fewestCustodians = 2
	mostCustodians   = 3
)

// checkCustodians refuses a number or a name that cannot be, and one that is there twice, whatever its capitals.
func checkCustodians(custodians []string, components int) error {
	if n := len(custodians); n < fewestCustodians || n > mostCustodians {
		return usagef("--custodian is given %d times, not 2 or 3 times", n)
	}
	if components > 0 && components != len(custodians) {
		return usagef("--component is given %d times, and --custodian %d times", components, len(custodians))
	}
	for i, name := range custodians {
		if !plainLabel.MatchString(name) {
			return usagef("--custodian %q %s", name, labelRule)
		}
		if slices.ContainsFunc(custodians[:i], func(other string) bool { return strings.EqualFold(other, name) }) {
			return usagef("--custodian %s is given twice: each component has a custodian of its own", name)
		}
	}
	return nil
}

// differentOwners refuses files that show that one person had both: the same file, or two of one owner who is not the user of this command. (What belongs to that user was
// copied here, by whom nobody can tell.) It refuses a file that others can read, too.
func differentOwners(files []string) error {
	owners := map[uint32]string{}
	var seen []os.FileInfo
	for i, file := range files {
		about, err := os.Stat(file)
		if err != nil {
			return fmt.Errorf("reading component: %w", err)
		}
		for j, other := range seen {
			if os.SameFile(about, other) {
				return fmt.Errorf("reading component: %s and %s are one file", files[j], files[i])
			}
		}
		seen = append(seen, about)
		if about.Mode().IsRegular() && about.Mode().Perm()&0o077 != 0 {
			return fmt.Errorf("reading component: %s is open to others than its owner: take away their rights", file)
		}
		owner, known := about.Sys().(*syscall.Stat_t)
		if !known || int(owner.Uid) == os.Geteuid() {
			continue
		}
		if other, twice := owners[owner.Uid]; twice {
			return fmt.Errorf("reading component: %s and %s belong to one user: each component has a custodian of its own", other, file)
		}
		owners[owner.Uid] = file
	}
	return nil
}

// attempts is how often a custodian may type a component and its check value until they fit.
const attempts = 3

// typedComponents asks each custodian in turn at the terminal. Neither component nor check value is shown; the token computes what the component has.
func (c *cli) typedComponents(ctx context.Context, cfg hsm.Config, algorithm hsm.Algorithm, custodians []string) (all []brought, err error) {
	if err := checkCustodians(custodians, 0); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			freeAll(all)
			all = nil
		}
	}()
	for i, name := range custodians {
		b, err := c.typedComponent(ctx, cfg, algorithm, fmt.Sprintf("component %d of %d, of %s", i+1, len(custodians), name))
		if err != nil {
			return all, err
		}
		b.custodian = name
		all = append(all, b)
	}
	return all, nil
}

func (c *cli) typedComponent(ctx context.Context, cfg hsm.Config, algorithm hsm.Algorithm, which string) (b brought, err error) {
	locked, free, err := hsm.Lock(2 * mostSecret)
	if err != nil {
		return b, err
	}
	memory, kcv := locked[:mostSecret], locked[mostSecret:] // people type a component where its check value is asked for
	defer func() {
		if err != nil {
			free()
		}
	}()
	for range attempts {
		clear(memory)
		n, err := c.readSecretInto(ctx, which+" (hexadecimal digits, not shown): ", memory)
		if err != nil {
			return b, err
		}
		digits := 0
		for _, d := range memory[:n] {
			if d != ' ' {
				memory[digits] = d
				digits++
			}
		}
		if b.Value, err = decodeInPlace(memory, digits); err != nil {
			_, _ = fmt.Fprintf(c.err, "that is not hexadecimal digits\n")
			continue
		}
		if n, err = c.readSecretInto(ctx, "its check value: ", kcv); err != nil {
			return b, err
		}
		typed := bytes.TrimSpace(kcv[:n])
		isKCV := sixHex.Match(typed)
		if isKCV {
			b.KCV = string(typed)
		}
		clear(kcv)
		if !isKCV {
			_, _ = fmt.Fprintf(c.err, "that is not six hexadecimal digits\n")
			continue
		}
		found, err := hsm.ComponentKCV(cfg, algorithm, b.Value)
		switch {
		case errors.Is(err, hsm.ErrComponents):
			_, _ = fmt.Fprintf(c.err, "%s\n", oneLine(err))
		case err != nil:
			return b, err
		case !strings.EqualFold(found, b.KCV):
			_, _ = fmt.Fprintf(c.err, "it has the check value %s, and not the one that was typed\n", found)
		default:
			_, _ = fmt.Fprintf(c.err, "%s: check value %s, right\n", which, found)
			b.free = free
			return b, nil
		}
	}
	return b, fmt.Errorf("%s was typed wrongly %d times", which, attempts)
}

// A bringing is how a key is brought to keys import.
type bringing struct {
	components, custodians  []string
	keyBlock, kbpk, kbpkKCV string
	legacy, cbc             bool
	cryptogram, zmk         string
}

// check refuses flags that do not go together.
func (b bringing) check(n newKey) error {
	byComponents := len(b.components) > 0 || len(b.custodians) > 0
	switch {
	case b.keyBlock != "" && b.cryptogram != "":
		return usagef("--key-block and --cryptogram exclude each other")
	case b.keyBlock == "" && (b.kbpk != "" || b.legacy || b.kbpkKCV != ""):
		return usagef("--kbpk, --kbpk-kcv and --legacy-key-block are of --key-block")
	case b.cryptogram == "" && (b.zmk != "" || b.cbc):
		return usagef("--zmk and --cbc are of --cryptogram")
	case b.keyBlock != "" && !b.legacy && b.kbpkKCV != "":
		return usagef("--kbpk-kcv is of --legacy-key-block")
	case b.keyBlock != "" && !b.legacy && b.kbpk == "":
		return usagef("--kbpk is missing")
	case b.legacy && b.kbpk != "":
		return usagef("a block of version A or C takes no --kbpk in the token, but its components")
	case b.legacy && b.kbpkKCV == "":
		return usagef("--kbpk-kcv is missing: six hexadecimal digits")
	case b.legacy && !sixHex.MatchString(b.kbpkKCV):
		return usagef("--kbpk-kcv is not six hexadecimal digits")
	case byComponents && (b.cryptogram != "" || b.keyBlock != "" && !b.legacy):
		return usagef("--component and --custodian are of a key that comes in components, or of --legacy-key-block")
	case b.cryptogram != "" && b.zmk == "":
		return usagef("--zmk is missing")
	case n.kcv == "" && b.keyBlock == "":
		return usagef("--kcv is missing: six hexadecimal digits")
	case b.cryptogram != "" || b.keyBlock != "" && !b.legacy:
		return nil
	}
	return checkCustodians(b.custodians, len(b.components))
}

// keysImport gives what was brought to the token, which finds the check value: a key that is not what its custodians meant is never there.
func (c *cli) keysImport(ctx context.Context, n newKey, from bringing) error {
	if err := n.check(); err != nil {
		return err
	}
	if err := from.check(n); err != nil {
		return err
	}
	config, cfg, err := c.token()
	if err != nil {
		return err
	}
	e := hsm.Event{What: hsm.KeyImported, Key: n.label, KCV: strings.ToUpper(n.kcv), Detail: from.detail()}
	key, err := c.audited(ctx, e, func() (hsm.KeyInfo, error) { return c.bring(ctx, config, cfg, n, from) })
	if err != nil {
		return err
	}
	return c.printKeys(key, key)
}

// detail is what the record says of where a key came from.
func (b bringing) detail() string {
	custodians := "components of " + strings.Join(b.custodians, ", ")
	switch {
	case b.cryptogram != "":
		return "cryptogram under " + b.zmk
	case b.legacy:
		return "legacy key block, protection key by " + custodians
	case b.keyBlock != "":
		return "key block under " + b.kbpk
	}
	return custodians
}

// mostKeyBlock bounds the file of a key block, in bytes: 9,999 characters and white space round them.
const mostKeyBlock = 16 << 10

func (c *cli) bring(ctx context.Context, config *Config, cfg hsm.Config, n newKey, from bringing) (hsm.KeyInfo, error) {
	if from.cryptogram != "" {
		if !config.HSM.LegacyCryptogram {
			return hsm.KeyInfo{}, errors.New("hsm.legacy_cryptogram is not true: a raw cryptogram does not say what its key is for, and can be changed unseen (PCI PIN 18-3); ask for a key block")
		}
		cryptogram, err := hex.DecodeString(from.cryptogram)
		if err != nil {
			return hsm.KeyInfo{}, usagef("--cryptogram is not hexadecimal digits")
		}
		return hsm.ImportCryptogram(cfg, n.forHSM(), cryptogram, from.zmk, from.cbc)
	}
	var block []byte
	if from.keyBlock != "" {
		text, err := readFile(from.keyBlock, mostKeyBlock)
		if err != nil {
			return hsm.KeyInfo{}, fmt.Errorf("reading key block: %w", err)
		}
		block = bytes.TrimSpace(text)
	}
	if from.keyBlock != "" && !from.legacy {
		return hsm.ImportKeyBlock(cfg, n.forHSM(), block, from.kbpk)
	}
	algorithm := n.forHSM().KeyAlgorithm()
	if from.legacy {
		algorithm = hsm.TDES
	}
	var components []brought
	var err error
	if len(from.components) > 0 {
		components, err = componentFiles(from.components, from.custodians)
	} else {
		components, err = c.typedComponents(ctx, cfg, algorithm, from.custodians)
	}
	if err != nil {
		return hsm.KeyInfo{}, err
	}
	defer freeAll(components)
	if from.legacy {
		return hsm.ImportLegacyKeyBlock(cfg, n.forHSM(), block, values(components), from.kbpkKCV)
	}
	return hsm.ImportComponents(cfg, n.forHSM(), values(components))
}

// A madeComponent is one of keys components.
type madeComponent struct {
	File string `json:"file"`
	KCV  string `json:"kcv"`
}

// keysComponents writes each component to a file of its own. If one cannot be written, those before it are of no key, and their files are removed.
func (c *cli) keysComponents(ctx context.Context, n newKey, files []string) (err error) {
	if err := n.checkKind(); err != nil {
		return err
	}
	if len(files) < fewestCustodians || len(files) > mostCustodians {
		return usagef("--file is given %d times, not 2 or 3 times", len(files))
	}
	_, cfg, err := c.token()
	if err != nil {
		return err
	}
	var made []madeComponent
	key, err := c.audited(ctx, hsm.Event{What: hsm.KeyComponents, Detail: fmt.Sprintf("%d components of a %s key", len(files), n.use)}, func() (hsm.KeyInfo, error) {
		kcv, err := hsm.MakeComponents(cfg, n.forHSM(), len(files), func(number int, component []byte, kcv string) error {
			if err := writeComponent(files[number-1], fmt.Sprintf("# component %d of %d of a %s key\n", number, len(files), n.use), component, kcv); err != nil {
				return err
			}
			made = append(made, madeComponent{files[number-1], kcv})
			return nil
		})
		return hsm.KeyInfo{KCV: kcv}, err
	})
	if err != nil {
		for _, m := range made {
			err = errors.Join(err, os.Remove(m.File))
		}
		return err
	}
	if c.output == "json" {
		return c.printJSON(map[string]any{"components": made, "kcv": key.KCV})
	}
	table := c.table("FILE", "KCV")
	for _, m := range made {
		table.row(m.File, m.KCV)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.out, "\nthe key that they make has the check value %s\n", key.KCV)
	return err
}

// writeComponent makes a file that readComponent reads and a person can: digits in groups of four.
func writeComponent(path, comment string, component []byte, kcv string) (err error) {
	memory, free, err := hsm.Lock(mostComponent)
	if err != nil {
		return fmt.Errorf("writing component: %w", err)
	}
	defer free()
	const digits, group = "0123456789ABCDEF", 2
	text := append(append(memory[:0], comment...), "component"...)
	for i, b := range component {
		if i%group == 0 {
			text = append(text, ' ')
		}
		text = append(text, digits[b>>4], digits[b&0xF])
	}
	text = append(text, "\nkcv "+kcv+"\n"...)
	file, err := os.OpenFile(filepath.Clean(path), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("writing component: %w", err)
	}
	if _, err = file.Write(text); err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return errors.Join(fmt.Errorf("writing component: %w", err), os.Remove(path))
	}
	return nil
}

// keysExport makes the file of a key block before the key, so that no key is made that its other side cannot get.
func (c *cli) keysExport(ctx context.Context, n newKey, kbpk, file, exportability string) error {
	if err := n.check(); err != nil {
		return err
	}
	switch {
	case kbpk == "":
		return usagef("--kbpk is missing")
	case file == "":
		return usagef("--file is missing")
	case exportability != "N" && exportability != "E" && exportability != "S":
		return usagef("--exportability %q is not N, E or S", exportability)
	}
	_, cfg, err := c.token()
	if err != nil {
		return err
	}
	out := c.out
	discard := func() error { return nil }
	if file != "-" {
		made, err := os.OpenFile(filepath.Clean(file), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return fmt.Errorf("writing key block: %w", err)
		}
		defer func() { _ = made.Close() }() // Sync tells
		out, discard = made, func() error { return os.Remove(file) }
	}
	var block []byte
	key, err := c.audited(ctx, hsm.Event{What: hsm.KeyExported, Key: n.label, Detail: "key block under " + kbpk}, func() (key hsm.KeyInfo, err error) {
		key, block, err = hsm.ExportKey(cfg, n.forHSM(), hsm.Export{KBPK: kbpk, Exportability: exportability[0]})
		return key, err
	})
	if block == nil {
		return errors.Join(err, discard())
	}
	// The key is there: its block is written whatever else went wrong, because nothing can make it again.
	_, written := fmt.Fprintf(out, "%s\n", block)
	if made, isFile := out.(*os.File); isFile && written == nil && file != "-" {
		written = made.Sync()
	}
	if written != nil {
		written = fmt.Errorf("writing key block: %w: the key %s is in the token, and its other side cannot get it: destroy it", written, n.label)
	}
	if err := errors.Join(err, written); err != nil {
		return err
	}
	if file == "-" {
		return nil // nothing but the block
	}
	return c.printKeys(key, key)
}

func (c *cli) keysKCV(ctx context.Context, label, file, algorithm string) error {
	switch {
	case (label == "") == (file == ""):
		return usagef("kcv: name a key by --label, or a file by --component")
	case !slices.Contains(hsm.Algorithms, hsm.Algorithm(algorithm)):
		return usagef("--algorithm %q is not one of %s", algorithm, oneOf(hsm.Algorithms))
	}
	_, cfg, err := c.token()
	if err != nil {
		return err
	}
	e := hsm.Event{What: hsm.KeyShown, Key: label}
	if file != "" {
		e.Detail = "of a component"
	}
	key, err := c.looked(ctx, e, func() (hsm.KeyInfo, error) {
		if label != "" {
			return keyOf(cfg, label)
		}
		component, err := readComponent(file)
		if err != nil {
			return hsm.KeyInfo{}, err
		}
		defer component.free()
		kcv, err := hsm.ComponentKCV(cfg, hsm.Algorithm(algorithm), component.Value)
		if err == nil && component.KCV != "" && !strings.EqualFold(kcv, component.KCV) {
			err = fmt.Errorf("%s has the check value %s, and says %s", file, kcv, component.KCV)
		}
		return hsm.KeyInfo{KCV: kcv}, err
	})
	if err != nil {
		return err
	}
	if c.output == "json" {
		return c.printJSON(map[string]string{"label": label, "component": file, "kcv": key.KCV})
	}
	_, err = fmt.Fprintln(c.out, key.KCV)
	return err
}

// keyOf finds the one secret key of a label that shows a check value.
func keyOf(cfg hsm.Config, label string) (hsm.KeyInfo, error) {
	keys, err := hsm.List(cfg)
	if err != nil {
		return hsm.KeyInfo{}, err
	}
	keys = slices.DeleteFunc(keys, func(k hsm.KeyInfo) bool { return k.Label != label })
	switch {
	case len(keys) != 1:
		return hsm.KeyInfo{}, fmt.Errorf("the token has %d keys with the label %s", len(keys), label)
	case keys[0].Use == hsm.TLSKey:
		return hsm.KeyInfo{}, fmt.Errorf("key %s is a key pair for TLS: only secret keys have a check value", label)
	case keys[0].KCV == "":
		return hsm.KeyInfo{}, fmt.Errorf("key %s shows no check value: it is not as any use demands", label)
	}
	return keys[0], nil
}

// An inventoried key is one of keys inventory.
type inventoried struct {
	hsm.KeyInfo
	InConfig bool   `json:"in_config"`
	Rows     *int64 `json:"sealed_rows"` // of a pan-seal key: what in the journal only it opens; null if the journal cannot be read
}

// An inventory is of one token.
type inventory struct {
	hsm.TokenInfo
	Keys []inventoried `json:"keys"`
}

func (c *cli) keysInventory(ctx context.Context, _ []string) error {
	config, cfg, err := c.token()
	if err != nil {
		return err
	}
	about, keys, err := hsm.Inventory(cfg)
	if err != nil {
		return err
	}
	rows, unread := c.sealedRows(ctx)
	all := inventory{TokenInfo: about, Keys: []inventoried{}}
	for _, key := range keys {
		k := inventoried{KeyInfo: key, InConfig: inConfig(config, key.Label)}
		if key.Use == hsm.PANSeal && unread == nil {
			count := rows[key.Label]
			k.Rows = &count
		}
		all.Keys = append(all.Keys, k)
	}
	if c.output == "json" {
		return c.printJSON(all)
	}
	if _, err := fmt.Fprintf(c.out, "token   %s\nserial  %s\nmodel   %s %s\n\n", about.Token, about.Serial, about.Manufacturer, about.Model); err != nil {
		return err
	}
	table := c.table("LABEL", "USE", "ALGORITHM", "BITS", "KCV", "VERSION", "CONFIG", "ROWS", "MECHANISMS", "FLAGS")
	for _, k := range all.Keys {
		count := ""
		if k.Rows != nil {
			count = fmt.Sprint(*k.Rows)
		}
		table.row(k.Label, k.Use, k.Algorithm, k.Bits, k.KCV, k.Version, k.InConfig, count, strings.Join(k.Mechanisms, ","), strings.Join(k.Flags, ","))
	}
	return table.Flush()
}

// inConfig reports whether the config names a key, or the one that this is a version of.
func inConfig(config *Config, label string) bool { return named(keyLabels(config), label) }

// keyLabels are those of hsm.keys.
func keyLabels(config *Config) (labels []string) {
	for _, k := range config.HSM.Keys {
		labels = append(labels, k.Label)
	}
	return labels
}

func named(labels []string, label string) bool {
	return slices.Contains(labels, label) || slices.Contains(labels, hsm.FirstVersion(label))
}

// refuseInUse refuses a key that the config names, or that a running daemon was started with: a file that does not name it any more says nothing of a
// daemon that has not been started again since, and that stops serving within seconds of the key's end. A daemon that does not say is taken for one that uses it.
func (c *cli) refuseInUse(ctx context.Context, config *Config, label string) error {
	if inConfig(config, label) {
		return fmt.Errorf("key %s is in the config: a daemon that uses it would stop serving (--force-in-use destroys it all the same)", label)
	}
	cfg, err := c.loadParts("station", "journal")
	var faulty *configError
	if errors.As(err, &faulty) {
		return nil // a config for ceremonies alone: no daemon was started with it
	}
	if err != nil {
		return err
	}
	daemon := newRemote(cfg)
	if !daemon.listens(ctx) {
		return nil
	}
	var served servedKeys
	if err := daemon.ask(ctx, http.MethodGet, "/keys", &served); err != nil {
		return fmt.Errorf("asking which keys the daemon uses: %w", err)
	}
	if named(served.Labels, label) {
		return fmt.Errorf("key %s is not in the config any more, but the running daemon uses it: restart it first (--force-in-use destroys the key all the same)", label)
	}
	return nil
}

// sealedRows counts what the journal has under each seal key.
func (c *cli) sealedRows(ctx context.Context) (rows map[string]int64, err error) {
	err = c.readJournal(func(r *journal.Reader) error {
		rows, err = r.SealedUnder(ctx)
		return err
	})
	return rows, err
}

// keysDestroy asks for the check value so that a label that was mistyped destroys nothing, and for the number of rows so that nobody destroys what still opens some unaware.
func (c *cli) keysDestroy(ctx context.Context, label, kcv string, inUse bool, unreadable int64) error {
	if err := checkLabel(label); err != nil {
		return err
	}
	if !sixHex.MatchString(kcv) {
		return usagef("--kcv is not six hexadecimal digits")
	}
	config, cfg, err := c.token()
	if err != nil {
		return err
	}
	key, err := c.audited(ctx, hsm.Event{What: hsm.KeyDestroyed, Key: label, KCV: strings.ToUpper(kcv)}, func() (hsm.KeyInfo, error) {
		if !inUse {
			if err := c.refuseInUse(ctx, config, label); err != nil {
				return hsm.KeyInfo{}, err
			}
		}
		key, err := keyOf(cfg, label)
		if err != nil {
			return hsm.KeyInfo{}, err
		}
		if _, missing := os.Stat(config.Journal.Path); key.Use == hsm.PANSeal && !errors.Is(missing, os.ErrNotExist) {
			rows, err := c.sealedRows(ctx)
			if err != nil {
				return hsm.KeyInfo{}, fmt.Errorf("counting what only this key opens: %w", err)
			}
			if n := rows[label]; n > unreadable {
				return hsm.KeyInfo{}, fmt.Errorf("key %s is all that opens %d rows of the journal: reseal them first (--unreadable %d destroys it all the same)", label, n, n)
			}
		}
		return hsm.Destroy(cfg, label, kcv)
	})
	if err != nil {
		return err
	}
	if c.output == "json" {
		return c.printJSON(key)
	}
	_, err = fmt.Fprintf(c.out, "destroyed %s, %s, check value %s\n", key.Label, key.Use, key.KCV)
	return err
}
