package simulator

import "acquirerd/card"

// DefaultPIN is the PIN of every card that has none of its own, of cards that the list does not hold too.
const DefaultPIN = "1234"

var defaultPIN = mustPIN(DefaultPIN)

func mustPIN(digits string) PIN {
	pin, err := ParsePIN(digits)
	if err != nil {
		panic("simulator: the default PIN is broken")
	}
	return pin
}

// A Card is a test card.
type Card struct {
	PAN     card.PAN `json:"pan"`
	Brand   string   `json:"brand"`
	PIN     PIN      `json:"-"`
	Effects string   `json:"effects"` // what a rule for this card would do, in the words of ParseRule; "" leaves it to the amount
	Meaning string   `json:"meaning"`
}

// testCards are numbers from ranges that issuers publish for tests, or of the reserved 4000 00 and 6304 00 kind; all have a right
// check digit.
var testCards = []struct{ pan, brand, pin, effects, meaning string }{
	{"4222222222222", "visa", "", "", "13 digits; by the amount"},
	{"30569309025904", "diners", "", "", "14 digits; by the amount"},
	{"378282246310005", "amex", "", "", "15 digits; by the amount"},
	{"4111111111111111", "visa", "", "", "16 digits; by the amount"},
	{"5555555555554444", "mastercard", "", "", "16 digits; by the amount"},
	{"5105105105105100", "mastercard", "", "", "16 digits; by the amount"},
	{"2223003122003222", "mastercard", "", "", "16 digits, 2-series; by the amount"},
	{"6011111111111117", "discover", "", "", "16 digits; by the amount"},
	{"40000000000000105", "visa", "", "", "17 digits; by the amount"},
	{"400000000000001802", "visa", "", "", "18 digits; by the amount"},
	{"4000000000000019006", "visa", "", "", "19 digits; by the amount"},
	{"6304000000000000000", "maestro", "987654321098", "", "19 digits, a PIN of 12 digits; by the amount"},
	{"5500000000000004", "mastercard", "4321", "", "its PIN is 4321; by the amount"},
	{"4000000000000002", "visa", "", "decline=05", "declined: do not honour"},
	{"4000000000000119", "visa", "", "decline=41", "declined: lost card"},
	{"4000000000000127", "visa", "", "decline=43", "declined: stolen card"},
	{"4000000000000069", "visa", "", "decline=54", "declined: expired card"},
	{"4000000000000416", "visa", "", "decline=62", "declined: restricted card"},
	{"4000000000000986", "visa", "", "decline=75", "declined: PIN tries exceeded"},
	{"4000000000009995", "visa", "", "decline=51", "declined: not sufficient funds"},
	{"4000000000000135", "visa", "", "silence", "approved and held, but never answered"},
	{"4000000000000556", "visa", "", "partial", "half of the amount is approved"},
}

// TestCards returns the test cards with what the processor does with each.
func TestCards() []Card {
	cards := make([]Card, len(testCards))
	for i, c := range testCards {
		pan, errPAN := card.ParsePAN(c.pan)
		if c.pin == "" {
			c.pin = DefaultPIN
		}
		pin, errPIN := ParsePIN(c.pin)
		if errPAN != nil || errPIN != nil {
			panic("simulator: the list of test cards is broken")
		}
		cards[i] = Card{PAN: pan, Brand: c.brand, PIN: pin, Effects: c.effects, Meaning: c.meaning}
	}
	return cards
}
