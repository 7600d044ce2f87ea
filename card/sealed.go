package card

// A SealedPAN is a PAN enciphered by an HSM key (AES-GCM). It is safe to store and to print.
type SealedPAN struct {
	KeyID      string // label of the sealing key
	Nonce      []byte // 12 bytes, never used twice under one key
	Ciphertext []byte // the digits enciphered, then the 16-byte tag
}

// A SealedRest is the sensitive part of an advice, enciphered like a PAN and for another purpose: the one cannot be opened as the other.
type SealedRest SealedPAN

// A PANToken is a keyed hash of a PAN (HMAC-SHA-256 under an HSM key, 32 bytes): the same PAN gives the same token,
// and without the key nobody can compute or test one (PCI DSS 3.5.1.1).
type PANToken [32]byte
