package hsm

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Key blocks of ANS X9.143:2021 (before that ASC X9 TR-31:2018): the text in which a key travels, enciphered, with what it may be used for and
// a MAC over both. This file reads and writes the text and knows what the letters mean. It holds no key: keyblock.go does that part in the token.

// ErrKeyBlock: a key block is refused. Its text never says more of the key than the header does.
var ErrKeyBlock = errors.New("key block refused")

func refuseBlock(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrKeyBlock, fmt.Sprintf(format, args...))
}

// A BlockHeader is what a key block says of its key in clear (X9.143, table 1).
type BlockHeader struct {
	Version       byte            // 'A' to 'D': how it is protected, see blockVersions
	Usage         string          // what the key is for: 2 characters, "P0" is PIN encipherment
	Algorithm     byte            // of the key: 'T' TDES, 'A' AES, 'H' HMAC ...
	Mode          byte            // what the key may do: 'E' encipher, 'D' decipher, 'B' both, 'G' generate, 'V' verify, 'C' both, 'X' derive, 'N' no restriction ...
	KeyVersion    string          // 2 characters, "00" without one; "c1" to "c9" are components of a key
	Exportability byte            // 'E', 'S' or 'N': whether its receiver may export it again
	Context       byte            // '0', or of X9.143:2021 '1' for storage, '2' for exchange; 0 is '0'
	Optional      []OptionalBlock // in the order of the block, padding (PB) left out
}

// An OptionalBlock is one of a header: "KC" check value of the key, "KP" check value of the key that protects it, "HM" hash of an HMAC key ...
type OptionalBlock struct {
	ID    string // 2 characters
	Value string // printable ASCII
}

// optional returns the value of an optional block.
func (h *BlockHeader) optional(id string) (string, bool) {
	for _, o := range h.Optional {
		if o.ID == id {
			return o.Value, true
		}
	}
	return "", false
}

// A blockVersion is a way to protect a key block (X9.143, 6.2 and annex; TR-31:2018, 5.3).
type blockVersion struct {
	algorithm Algorithm // of the protection key; header and enciphered key are multiples of its block
	mac       int       // bytes of the MAC
	derived   bool      // its two keys are derived by CMAC, and the MAC is over the clear key; else they are variants, and it is over the enciphered one
}

func (v blockVersion) block() int { return v.algorithm.block() }

var blockVersions = map[byte]blockVersion{
	'A': {TDES, 4, false}, // deprecated since 2010: read behind a flag, never written
	'B': {TDES, 8, true},
	'C': {TDES, 4, false}, // the same method as A
	'D': {AES, 16, true},
}

const (
	fixedHeader = 16 // characters
	mostBlock   = 9999
	blockID     = 2
	shortLength = 2 // hexadecimal digits
	padID       = "PB"

	// longLength says that the length itself follows: two digits for how many digits it has, then those. X9.143, 8.6 counts them in
	// characters ("04"); there are programs that count pairs ("02"), and cannot read such blocks.
	longLength    = "00"
	writtenLength = "04"
	mostShort     = 0xFF
)

// A keyBlock is a block that was taken apart. Nothing of it is to be believed before its MAC was compared.
type keyBlock struct {
	BlockHeader
	version blockVersion
	header  []byte // its text, optional blocks included: the MAC is over it
	sealed  []byte // the enciphered key with its length and padding: whole blocks of the cipher
	mac     []byte
}

// parseKeyBlock reads one key block, without white space around it. It takes upper and lower case of hexadecimal digits, and nothing else that
// the standard does not have. Error: ErrKeyBlock.
func parseKeyBlock(text []byte) (*keyBlock, error) {
	if len(text) < fixedHeader || len(text) > mostBlock {
		return nil, refuseBlock("it has %d characters, not %d to %d", len(text), fixedHeader, mostBlock)
	}
	for i, c := range text {
		if c < ' ' || c > '~' {
			return nil, refuseBlock("character %d is not printable ASCII", i+1)
		}
	}
	b := &keyBlock{BlockHeader: BlockHeader{Version: text[0], Usage: string(text[5:7]), Algorithm: text[7], Mode: text[8],
		KeyVersion: string(text[9:11]), Exportability: text[11], Context: text[14]}}
	version, known := blockVersions[b.Version]
	if !known {
		return nil, refuseBlock("its version is %q, not A, B, C or D", b.Version)
	}
	b.version = version
	length, ok := decimal(text[1:5])
	switch {
	case !ok:
		return nil, refuseBlock("its length is not 4 decimal digits")
	case length != len(text):
		return nil, refuseBlock("it says that it has %d characters, and has %d", length, len(text))
	case !strings.ContainsRune("ENS", rune(b.Exportability)):
		return nil, refuseBlock("its exportability is %q, not E, N or S", b.Exportability)
	case !strings.ContainsRune("012", rune(b.Context)) || text[15] != '0':
		return nil, refuseBlock("its reserved field is %q", text[14:16])
	}
	count, ok := decimal(text[12:14])
	if !ok {
		return nil, refuseBlock("its number of optional blocks is not 2 decimal digits")
	}
	end := fixedHeader
	for i := range count {
		o, next, err := parseOptional(text, end)
		if err != nil {
			return nil, refuseBlock("optional block %d %v", i+1, err)
		}
		if end = next; o.ID == padID {
			if i != count-1 {
				return nil, refuseBlock("optional block %d is padding, and not the last", i+1)
			}
			break
		}
		if _, twice := b.optional(o.ID); twice {
			return nil, refuseBlock("optional block %d, %s, is there twice", i+1, o.ID)
		}
		b.Optional = append(b.Optional, o)
	}
	if end%version.block() != 0 {
		return nil, refuseBlock("its header has %d characters, not a multiple of %d", end, version.block())
	}
	b.header = slices.Clone(text[:end])
	rest, err := hex.DecodeString(string(text[end:]))
	if err != nil {
		return nil, refuseBlock("what follows its header is not hexadecimal digits")
	}
	sealed := len(rest) - version.mac
	if sealed < version.block() || sealed%version.block() != 0 {
		return nil, refuseBlock("its enciphered key is not whole blocks of %d bytes", version.block())
	}
	b.sealed, b.mac = rest[:sealed], rest[sealed:]
	return b, nil
}

// parseOptional reads the optional block that begins at a character, and returns where it ends. The text of its error continues "optional block 1".
func parseOptional(text []byte, at int) (o OptionalBlock, end int, err error) {
	if len(text)-at < blockID+shortLength {
		return o, 0, errors.New("is cut off")
	}
	o.ID = string(text[at : at+blockID])
	for _, c := range text[at : at+blockID] {
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') {
			return o, 0, errors.New("has an ID that is not 2 capitals or digits")
		}
	}
	begin := at + blockID + shortLength
	digits := text[at+blockID : begin]
	if string(digits) == longLength {
		if len(text)-begin < shortLength {
			return o, 0, errors.New("is cut off")
		}
		n, ok := hexadecimal(text[begin : begin+shortLength])
		const most = 4 // a block has at most 9,999 characters
		if begin += shortLength; !ok || n < 1 || n > most || len(text)-begin < n {
			return o, 0, errors.New("has a length of a length that cannot be")
		}
		digits = text[begin : begin+n]
		begin += n
	}
	length, ok := hexadecimal(digits)
	if !ok || length < begin-at || length > len(text)-at {
		return o, 0, errors.New("has a length that cannot be")
	}
	o.Value = string(text[begin : at+length])
	return o, at + length, nil
}

func decimal(digits []byte) (n int, ok bool) {
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = 10*n + int(c-'0')
	}
	return n, true
}

func hexadecimal(digits []byte) (n int, ok bool) {
	for _, c := range digits {
		switch {
		case c >= '0' && c <= '9':
			n = 16*n + int(c-'0')
		case c >= 'A' && c <= 'F':
			n = 16*n + int(c-'A') + 10
		default:
			return 0, false
		}
	}
	return n, true
}

// text writes the header of a block whose enciphered key will have so many bytes, padded to the cipher's block by a PB block where that is needed.
func (h *BlockHeader) text(sealed int) ([]byte, error) {
	version, known := blockVersions[h.Version]
	if !known || len(h.Usage) != 2 || len(h.KeyVersion) != 2 {
		return nil, refuseBlock("its header cannot be written")
	}
	var optional []byte
	count := len(h.Optional)
	for _, o := range h.Optional {
		if len(o.ID) != blockID {
			return nil, refuseBlock("its optional block %q cannot be written", o.ID)
		}
		if n := blockID + shortLength + len(o.Value); n <= mostShort {
			optional = fmt.Appendf(optional, "%s%02X%s", o.ID, n, o.Value)
		} else {
			optional = fmt.Appendf(optional, "%s%s%s%04X%s", o.ID, longLength, writtenLength, n+len(writtenLength)+4, o.Value)
		}
	}
	if over := (fixedHeader + len(optional)) % version.block(); over != 0 {
		pad := version.block() - over
		if pad < blockID+shortLength {
			pad += version.block()
		}
		optional = fmt.Appendf(optional, "%s%02X%s", padID, pad, strings.Repeat("0", pad-blockID-shortLength))
		count++
	}
	length := fixedHeader + len(optional) + 2*(sealed+version.mac)
	if length > mostBlock || count > 99 {
		return nil, refuseBlock("it would have %d characters, not at most %d", length, mostBlock)
	}
	context := h.Context
	if context == 0 {
		context = '0'
	}
	text := fmt.Appendf(nil, "%c%04d%s%c%c%s%c%02d%c0", h.Version, length, h.Usage, h.Algorithm, h.Mode, h.KeyVersion, h.Exportability, count, context)
	return append(text, optional...), nil
}

// write puts a block together.
func (b *keyBlock) write() []byte {
	return append(slices.Clone(b.header), strings.ToUpper(hex.EncodeToString(b.sealed)+hex.EncodeToString(b.mac))...)
}

// lengthBytes stand before the key in what is enciphered: its length in bits.
const lengthBytes = 2

// sealedLength is how many bytes the enciphered part of a block has for a key of an algorithm. It is padded as if the key were the longest of its algorithm,
// so that nobody sees how long it is (X9.143, 6.2).
func sealedLength(version byte, algorithm byte) int {
	block := blockVersions[version].block()
	longest := slices.Max(keyLengths[algorithm])
	return (lengthBytes + longest + block - 1) / block * block
}

// keyLengths are the lengths in bytes of the keys that are taken, by the algorithm's letter. A single DES key is not among them (PCI PIN 2-3), nor is AES-192,
// which no key of ours has.
var keyLengths = map[byte][]int{
	blockTDES: {tdes2Bytes, tdes3Bytes},
	blockAES:  {16, 32},
	blockHMAC: {hmacBytes},
}

// Letters of algorithms.
const (
	blockTDES = 'T'
	blockAES  = 'A'
	blockHMAC = 'H'
)

// blockAlgorithms are the algorithms of the letters.
var blockAlgorithms = map[byte]Algorithm{blockTDES: TDES, blockAES: AES, blockHMAC: HMAC}

// HM is the hash of an HMAC key (X9.143, 6.3.6.5): 21 is SHA-256.
const (
	hmacID     = "HM"
	hmacSHA256 = "21"
)

// A blockUse is what a use is in a key block.
type blockUse struct {
	usage      string
	algorithms string // letters
	modes      string // letters of which the block must have one: those that permit all that the key will do with us
	partner    byte   // the mode that the key has at its other side
}

// blockUses is STANDARDS "Templates and TR-31 usage map". A block that permits less than the use does is refused, so that a key never gets a
// right by being imported; one that permits more loses it.
var blockUses = map[Use][]blockUse{
	PINIn:    {{"P0", "TA", "DBN", 'E'}},
	PINOut:   {{"P0", "TA", "EBN", 'D'}},
	PANSeal:  {{"D0", "A", "BN", 'B'}},
	PANToken: {{"M6", "A", "GCN", 'C'}, {"M7", "H", "GCN", 'C'}},
	ZMK:      {{"K0", "TA", "DBN", 'E'}},
	MACX919:  {{"M3", "T", "CN", 'C'}},
	MACCMAC:  {{"M6", "TA", "CN", 'C'}},
	MACHMAC:  {{"M7", "H", "CN", 'C'}},
	BDK:      {{"B0", "TA", "XN", 'X'}},
	KBPK:     {{"K1", "TA", "BN", 'B'}},
}

// inBlock returns what a use is in a block with a key of an algorithm.
func (use Use) inBlock(algorithm byte) (b blockUse, known bool) {
	for _, b := range blockUses[use] {
		if strings.ContainsRune(b.algorithms, rune(algorithm)) {
			return b, true
		}
	}
	return blockUse{}, false
}

// permits returns ErrKeyBlock if the header is not of a key for this use.
func (h *BlockHeader) permits(use Use) error {
	want, known := use.inBlock(h.Algorithm)
	switch hash, given := h.optional(hmacID); {
	case len(blockUses[use]) == 0:
		return refuseBlock("no key block has a key for %q", use)
	case !known:
		return refuseBlock("its key is of algorithm %c, which no %s key is of", h.Algorithm, use)
	case h.Usage != want.usage:
		return refuseBlock("its usage is %s, and that of a %s key is %s", h.Usage, use, want.usage)
	case !strings.ContainsRune(want.modes, rune(h.Mode)):
		return refuseBlock("its mode is %c, and a %s key needs %s", h.Mode, use, letters(want.modes))
	case h.KeyVersion[0] == 'c':
		return refuseBlock("it holds a component of a key, not a key")
	case h.Context == '1':
		return refuseBlock("it is for the storage of another system, not for exchange")
	case h.Algorithm == blockHMAC && given && hash != hmacSHA256:
		return refuseBlock("its key is for an HMAC of another hash than SHA-256")
	}
	return nil
}

func letters(set string) string { return strings.Join(strings.Split(set, ""), " or ") }

// header is that of a block with a key of our use for the other side, under a protection key of an algorithm.
func header(use Use, algorithm, under Algorithm) BlockHeader {
	h := BlockHeader{Version: 'B', KeyVersion: "00", Exportability: 'N'}
	if under == AES {
		h.Version = 'D'
	}
	for letter, of := range blockAlgorithms {
		if of == algorithm {
			h.Algorithm = letter
		}
	}
	in, _ := use.inBlock(h.Algorithm)
	h.Usage, h.Mode = in.usage, in.partner
	if algorithm == HMAC {
		h.Optional = []OptionalBlock{{hmacID, hmacSHA256}}
	}
	return h
}
