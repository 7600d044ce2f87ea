package messages

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"

	"github.com/moov-io/bertlv"
)

// neverStored are the elements that may not be kept in any form once a transaction was authorized: PIN block, tracks, and the
// cryptograms of the hop they came over (PCI DSS 3.3.1). The PAN is sealed by itself.
var neverStored = append([]Element{PAN, Track1, Track2, Track3}, cryptograms...)

// neverStoredTags are those of DE 55 for the same reason: the tracks' equivalents and discretionary data, the PIN that was entered (99),
// and the PAN, which DE 2 has (EMV Book 3, annex A); the dynamic verification codes (9F60, 9F61: EMV Contactless C-2, annex A).
var neverStoredTags = []string{"56", "57", "5A", "99", "9F1F", "9F20", "9F60", "9F61", "9F6B"}

// Rest is the part of an advice that is stored sealed: the sensitive elements that its dialect allows to be stored, without that part of the
// chip data which may never be, and free text in which Original masks something. The PAN is not in it, nor is what may never be stored at
// all, which does not go on. It is nil if there is none; its holder clears it.
//
// Its error is a *FormatError: chip data that cannot be read, so that nobody knows what it holds, or another sensitive element that the
// dialect does not list. It could hold a card verification value, and left out in silence it would be missed.
func (m *Message) Rest(storable []int) ([]byte, error) {
	sensitive, pan := map[Element][]byte{}, m.PAN()
	for _, entry := range m.elements {
		e, value := entry.element, entry.value
		hidden := m.Hides(e)
		if !hidden && m.masked(e, string(value), pan) != string(value) {
			sensitive[e] = value
			continue
		}
		if !hidden || slices.Contains(neverStored, e) {
			continue
		}
		if !slices.Contains(storable, int(e)) {
			return nil, &FormatError{e, "may not be stored, as an advice must be"}
		}
		if e == ChipData {
			var err error
			if value, err = storableChipData(value); err != nil {
				return nil, &FormatError{ChipData, "is not BER-TLV"}
			}
		}
		if len(value) > 0 {
			sensitive[e] = value
		}
	}
	if len(sensitive) == 0 {
		return nil, nil
	}
	return json.Marshal(sensitive) // numbers and base64
}

// neverSealed are elements that are never sensitive, and by which an advice is what it is: the sealed part cannot change them.
var neverSealed = []Element{ProcessingCode, Amount, TransmissionTime, STAN, RRN, Currency}

// setRest puts the sensitive part back.
func (m *Message) setRest(rest []byte) error {
	if len(rest) == 0 {
		return nil
	}
	var sensitive map[Element][]byte
	if err := json.Unmarshal(rest, &sensitive); err != nil {
		return errors.New("reading the sealed part of an advice: it is not what was sealed")
	}
	for e, value := range sensitive {
		if slices.Contains(neverStored, e) || slices.Contains(neverSealed, e) {
			return errors.New("reading the sealed part of an advice: it is not what was sealed")
		}
		m.put(e, value)
	}
	return nil
}

// storableChipData leaves out the tags that may not be stored.
func storableChipData(data []byte) ([]byte, error) {
	tags, err := readChipData(data)
	if err != nil {
		return nil, err
	}
	storable, fewer := withoutStored(tags)
	if !fewer {
		return data, nil // as it came: another encoding of the same would be another message
	}
	return bertlv.Encode(storable)
}

// readChipData reads the tags, lengths and values of DE 55 to their end.
func readChipData(data []byte) (tags []bertlv.TLV, err error) {
	// The library has panicked on peer data before: bytes from outside must not end the process.
	defer func() {
		if recover() != nil {
			tags, err = nil, errors.New("reading chip data: it cannot be read")
		}
	}()
	if tags, err = bertlv.Decode(data); err != nil {
		return nil, errors.New("reading chip data: it cannot be read") // the library's text may quote
	}
	return tags, nil
}

// withoutStored leaves out the tags that may not be stored. fewer says that there were some.
func withoutStored(tags []bertlv.TLV) (storable []bertlv.TLV, fewer bool) {
	for _, tag := range tags {
		if slices.Contains(neverStoredTags, strings.ToUpper(tag.Tag)) {
			fewer = true
			continue
		}
		within, fewerWithin := withoutStored(tag.TLVs)
		tag.TLVs, fewer = within, fewer || fewerWithin
		storable = append(storable, tag)
	}
	return storable, fewer
}
