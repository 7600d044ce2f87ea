package hsm

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"
)

// AES-GCM (SP 800-38D) under a key that can only encipher single blocks. The standard library does the mode, and the token each call of the block
// cipher, so that the key never leaves it, and seals and opens by the same operation held open. What this process holds of it is the hash
// subkey H, which is zeros enciphered: with it one who has a seal could forge others, but open none. Who can read this memory could ask the token for a seal as well.

// mostAhead is how many blocks are enciphered in one call: the mask of the tag, and 512 bytes of what is sealed.
const mostAhead = 33

// A sealer is GCM under one key, of one worker.
type sealer struct {
	aead  cipher.AEAD
	block *tokenBlock
}

// sealer returns the worker's for a key.
func (w *worker) sealer(k *key) (*sealer, error) {
	if s := w.sealers[k.handle]; s != nil {
		return s, nil
	}
	b := &tokenBlock{w: w, k: k}
	if err := w.ecb(k, false, b.subkey[:], b.subkey[:]); err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(b)
	if err != nil {
		return nil, fmt.Errorf("making GCM of a key in the token: %w", err)
	}
	s := &sealer{aead, b}
	w.sealers[k.handle] = s
	return s, nil
}

func (s *sealer) seal(nonce, aad, clearText []byte) ([]byte, error) {
	defer s.block.begin(nonce, len(clearText))()
	out := s.aead.Seal(nil, nonce, clearText, aad)
	if s.block.err != nil {
		clear(out) // what was enciphered with nothing
		return nil, s.block.err
	}
	return out, nil
}

// open returns ErrSealedPAN for what was not sealed so.
func (s *sealer) open(nonce, aad, sealed []byte) ([]byte, error) {
	defer s.block.begin(nonce, len(sealed)-tagBits/8)()
	out, err := s.aead.Open(nil, nonce, sealed, aad)
	if s.block.err != nil {
		clear(out)
		return nil, s.block.err
	}
	if err != nil {
		return nil, ErrSealedPAN
	}
	return out, nil
}

// A tokenBlock is the block cipher of a key in the token. GCM enciphers zeros, and then the nonce with one count after the other, so that
// these are enciphered ahead, many in a call.
type tokenBlock struct {
	w      *worker
	k      *key
	subkey [aes.BlockSize]byte // H

	nonce  [nonceBytes]byte
	blocks int    // that this message takes
	first  uint32 // count of the first block in w.mem.ahead
	n      int    // how many are there
	err    error  // the first of this message; what GCM made then is worth nothing
}

// begin is of one message. What it returns is called at its end.
func (b *tokenBlock) begin(nonce []byte, length int) (end func()) {
	copy(b.nonce[:], nonce)
	b.blocks, b.n, b.err = 1+(max(length, 0)+aes.BlockSize-1)/aes.BlockSize, 0, nil
	return b.end
}

// end clears what is left of the blocks ahead: XORed with a seal they give what it holds.
func (b *tokenBlock) end() {
	clear(b.w.mem.ahead[:b.n*aes.BlockSize])
	b.n = 0
}

func (b *tokenBlock) BlockSize() int { return aes.BlockSize }

func (b *tokenBlock) Decrypt([]byte, []byte) { panic("hsm: GCM deciphers no block") }

func (b *tokenBlock) Encrypt(dst, src []byte) {
	if [aes.BlockSize]byte(src) == [aes.BlockSize]byte{} {
		copy(dst, b.subkey[:])
		return
	}
	if b.err != nil {
		return
	}
	count := binary.BigEndian.Uint32(src[nonceBytes:])
	if [nonceBytes]byte(src) != b.nonce || count < 1 || int(count) > b.blocks {
		panic("hsm: GCM counts in another way than SP 800-38D, 7.1, with a nonce of 12 bytes")
	}
	if at := int(count) - int(b.first); b.n == 0 || at < 0 || at >= b.n {
		if b.encipherFrom(count); b.err != nil {
			return
		}
	}
	copy(dst, b.w.mem.ahead[(count-b.first)*aes.BlockSize:][:aes.BlockSize])
}

// encipherFrom enciphers the blocks from a count on.
func (b *tokenBlock) encipherFrom(count uint32) {
	b.end() // of the blocks before
	b.first, b.n = count, min(b.blocks-int(count)+1, mostAhead)
	ahead := b.w.mem.ahead[:b.n*aes.BlockSize]
	for i := range b.n {
		block := ahead[i*aes.BlockSize:]
		copy(block, b.nonce[:])
		binary.BigEndian.PutUint32(block[nonceBytes:], count+uint32(i))
	}
	b.err = b.w.ecb(b.k, false, ahead, ahead)
}
