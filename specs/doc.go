// Package specs holds dialects: everything that makes one party's ISO 8583 its own, as data.
//
// A dialect is a YAML file, embedded here (docs/dialects.md says what each is) or the user's own by path. Its fields have the form that
// moov-io/iso8583's specs package imports (type, length, enc, prefix), with encoders and prefixes of this package, which are
// strict where the library's are not: what they decode, they encode back to the same bytes, or they refuse it. Load reads, checks
// and compiles a file, and reports every fault in it with its path, so that a bad dialect stops the start and not a transaction.
package specs
