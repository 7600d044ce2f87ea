package messages

import (
	"strconv"

	"acquirerd/specs"
)

// An Element is a data element of ISO 8583:1987 by its number.
type Element int

// The elements that acquirerd's rooms work with. Others travel through it unread.
const (
	PAN                  Element = 2
	ProcessingCode       Element = 3
	Amount               Element = 4
	TransmissionTime     Element = 7 // MMDDhhmmss, UTC
	STAN                 Element = 11
	LocalTime            Element = 12 // hhmmss
	LocalDate            Element = 13 // MMDD
	Expiry               Element = 14 // YYMM
	SettlementDate       Element = 15 // MMDD
	MerchantType         Element = 18
	POSEntryMode         Element = 22
	CardSequence         Element = 23
	FunctionCode         Element = 24
	POSConditionCode     Element = 25
	AcquirerID           Element = 32
	ForwarderID          Element = 33
	ExtendedPAN          Element = 34
	Track2               Element = 35
	Track3               Element = 36
	RRN                  Element = 37
	AuthorizationID      Element = 38
	ResponseCode         Element = 39
	Terminal             Element = 41
	Merchant             Element = 42
	MerchantName         Element = 43
	AdditionalResponse   Element = 44
	Track1               Element = 45
	AdditionalData       Element = 48
	Currency             Element = 49
	PINData              Element = 52
	SecurityControl      Element = 53
	AdditionalAmounts    Element = 54
	ChipData             Element = 55
	MAC                  Element = 64
	NetworkManagement    Element = 70
	OriginalData         Element = 90
	ReplacementAmounts   Element = 95
	ReceivingInstitution Element = 100
	MAC2                 Element = 128
)

// Elements that are others in ISO 8583:1993.
const (
	amountsOriginal93 Element = 30 // n24: of the transaction, of the reconciliation
	originalData93    Element = 56
)

var elementNames = map[Element]string{
	PAN: "pan", ProcessingCode: "processing_code", Amount: "amount", TransmissionTime: "transmission_time", STAN: "stan",
	LocalTime: "local_time", LocalDate: "local_date", Expiry: "expiry", SettlementDate: "settlement_date",
	MerchantType: "merchant_type", POSEntryMode: "pos_entry_mode", CardSequence: "card_sequence",
	FunctionCode: "function_code", POSConditionCode: "pos_condition_code", AcquirerID: "acquirer_id",
	ForwarderID: "forwarder_id", ExtendedPAN: "extended_pan", Track2: "track2", Track3: "track3", RRN: "rrn",
	AuthorizationID: "authorization_id", ResponseCode: "response_code", Terminal: "terminal", Merchant: "merchant",
	MerchantName: "merchant_name", AdditionalResponse: "additional_response", Track1: "track1",
	AdditionalData: "additional_data", Currency: "currency", PINData: "pin_data", SecurityControl: "security_control",
	AdditionalAmounts: "additional_amounts", ChipData: "chip_data", MAC: "mac", NetworkManagement: "network_management",
	OriginalData: "original_data", ReplacementAmounts: "replacement_amounts",
	ReceivingInstitution: "receiving_institution", MAC2: "mac2",
}

// Name returns the element's name in logs, JSON and the journal: "stan", or "de126" for an element without a name of its own.
func (e Element) Name() string {
	if name, ok := elementNames[e]; ok {
		return name
	}
	return "de" + strconv.Itoa(int(e))
}

// String returns "DE 11"; elements 0 and 1 are the MTI and the bit map.
func (e Element) String() string {
	if e == 0 {
		return "MTI"
	}
	if e == 1 {
		return "bit map"
	}
	return "DE " + strconv.Itoa(int(e))
}

// Sensitive reports whether the element's content may not be read through Get, printed or stored: cardholder data, sensitive
// authentication data (PCI DSS 3.3.1), cryptograms, and the additional, reserved and private elements, in which hosts are known
// to put any of these.
func (e Element) Sensitive() bool { return specs.CardData(int(e)) }

const messageSecurity Element = 96

// freeText reports whether people or terminals write the element's text, and so may write a card number into it.
func (e Element) freeText() bool {
	return e == MerchantName || e == AdditionalResponse || e == AdditionalAmounts || e == payee || e == fileName
}

const (
	payee    Element = 98
	fileName Element = 101
)

// binary reports whether the element is bytes and not text.
func (e Element) binary() bool {
	return e == PINData || e == ChipData || e == MAC || e == messageSecurity || e == MAC2
}
