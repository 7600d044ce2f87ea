// Package messages holds typed ISO 8583 messages and the codec between them and the wire.
//
// It is the only room that knows data-element numbers: the others name an Element (STAN, Amount, ResponseCode). A Message is
// a set of elements in a canonical form that does not depend on a dialect, so that a message decoded in one dialect can be
// encoded in another: digits and text as they stand, never trimmed or padded; track 2 with "=" as separator; signed amounts
// as "C" or "D" and digits; binary elements as bytes.
//
// What may be kept of a message has types of its own, which hold nothing sensitive in clear: an Original is what a reversal must repeat, or all
// of an advice that is not sensitive; a Reply is what an answer said beyond its request; a Rest is the sensitive part of an advice that its
// dialect allows to be stored, as the bytes that are to be sealed. A message's Identity is how its sender would name it again, in a repeat
// or in a reversal.
//
// Sensitive elements (PAN, track data, expiry, PIN block, chip data, MACs …) leave a Message only through methods that say so, and
// no error of this package quotes content: it names the element and the rule.
package messages
