// Package hsm is the room of the keys: it translates PIN blocks, seals and opens PANs and what else of an advice is
// sensitive, and makes PAN tokens, with keys that stay in a PKCS#11 token. Nothing else of acquirerd sees a module, a session or a handle.
//
// # Words
//
//   - generation: one life of the module: initialised, logged in, a session for each worker, every key found by its
//     label and its KCV checked. Handles never outlive it: after an initialisation an old number can name another key.
//   - worker: one of a fixed number of goroutines, each with a session of its own. It makes one call at a time.
//   - fault: a return code that breaks the generation. The table is in fault.go; a code that is not in it is a fault.
//   - probe: a check of one key's KCV when no call has succeeded for 5 s, and every 15 s beside calls that do.
//   - KCV: key check value, 6 hexadecimal digits, not secret.
//   - token-resident, transient: see "PIN translation" and Statement.
//   - capability, method, trial: what the token is tried for when the process starts: see "What a token can do".
//   - key block, its protection key (KBPK), component, custodian: see "Key blocks, components and cryptograms".
//   - zone master key (ZMK): the key under which the other side of a zone sends new zone PIN keys.
//   - version, successor, birth, mark, leftover, overlap: see "Key changes".
//
// # States
//
//	closed ── Open ──▶ ready ◀──────────────────┐
//	                     │ a fault              │ keys found again, each KCV right
//	                     ▼                      │
//	                  broken ── last call ──▶ rebuilding ── an error: backoff, again
//	                            has returned
//
// Only ready serves. New calls in the other states fail at once with ErrUnavailable. A call that met the fault waits
// for the next generation and is tried once more, within its own deadline; nothing here advances a counter in the
// token, so that doing it twice is harmless. A key that is missing or has another KCV after a rebuild keeps the HSM
// unavailable, and the rebuild is tried until it is right: a wrong key is never used. At Open the same refuses to start.
//
// While the HSM runs, ready is not just remembered: a token that nobody uses is probed, so that one that is gone breaks
// the generation within 5 s and a CallTimeout, and the rebuild begins without waiting for a transaction. Each probe checks the
// KCV of another key, so that a handle that names another key by now is found within 5 s times the number of keys, under load
// within 15 s times it, and later only while there is no room for a probe. A healthy probe leaves no trace.
//
// A user PIN that the token called wrong is not offered again before its source gives another one: a token locks after a few.
// A token that says that the next wrong PIN locks it is not logged in to at all. The PIN is cleared after the login; the
// PKCS#11 wrapper frees its C copy without clearing it.
//
// A call into the module cannot be cancelled. Callers wait no longer than their deadline and CallTimeout; a worker whose
// call hangs is lost until it returns, the others go on; when all hang, Ready says so and calls are refused at once.
// A rebuild waits until every call has returned, because C_Finalize during a call is undefined.
//
// # PIN translation
//
// PIN blocks of ISO 9564-1 formats 0, 1 and 3 under TDES zone keys of double or triple length, and of format 4 under AES ones, each into each that PCI
// PIN 3-3 allows (AllowedPair), of the same PAN, or of a surrogate PAN that a MAC binds to it (Surrogate). A pair that is not allowed is refused before any call. Where the format stays the same, so does the
// clear block, with its random part; else a new one is drawn. A block that is not a well-formed one of its format and PAN is ErrPINBlock,
// whatever the reason, and is never sent on.
//
// There are two ways, and the flags of the keys are the choice: those of the token-resident way unwrap (pin-in) and wrap (pin-out), those of the
// transient way decipher and encipher. All PIN keys of a configuration go the same way; a mixture is refused at Open. A way is never taken in place of the other:
// a pair of formats that the token cannot do the way of its keys is refused (CheckPINPair).
//
// Token-resident (resident.go): the block is unwrapped into a secret of the session, which XOR, extraction and concatenation change where the format
// changes, and which is wrapped under the other key. All objects of a call are destroyed when it ends, however it ends. What this process sees:
//
//   - the control nibble and the length of the PIN, and the fill behind the digits, by pieces of whole bytes that are cut out of the secret and
//     wrapped under the sight, a key of the generation that only wraps and deciphers. No piece holds a digit of a PIN. That is
//     what tells garbage, and a block under another key, from a PIN block; and fill that is known can be XORed into another.
//   - of a block that does not begin as its format does, nothing more than that byte; of one that does and is garbage, the bytes that would be fill.
//   - of format 4, what stands between the two encipherments, which is enciphered still.
//
// It never sees a digit, and so does not know that each is one: more garbage passes than in the transient way (see translateInside). And it can do no more for an
// auditor than PKCS#11 allows: the secret must be extractable to be wrapped, so who runs code with a login to the token can wrap it under a
// key of his own. That the process cannot be made to do that is not shown by this way; that its memory holds no PIN is.
//
// Transient (formats.go): decipher, check, encipher, each twice for a block of format 4. The
// clear block is in locked memory that no core dump holds and that is cleared before the call returns; the module writes it there and reads it
// there (library.go), and what the module itself keeps of it is the module's. So this
// way is for tests and demonstrations, and Statement says so.
//
// # What a token can do
//
// A token's list of mechanisms is what it says of itself. So when a process opens it for the first time, each capability of this package
// (capabilities.go) is tried in each of its ways: with keys of known values that end with the session of the trial, against a known answer, and measured. A
// wrong answer is none. It takes some tens of milliseconds, of a slow token a second and what is in use. A token that makes no key of a known value, or
// has no session left, is not tried, and that is said; it serves as the flags of its keys say. One that fails meanwhile is not taken for one that cannot: a
// key has to work afterwards, or the start is refused.
//
// The Statement has a line for each: of what is in use, which is what the configuration has keys for, the way that is gone; of the rest, the best way that the token
// has. RequireTokenResident looks at the lines in use, in each generation.
//
// A key change is tried from the cryptogram to the mark, but with objects of the session, because a trial leaves nothing in a token. One that refuses no such object, and refuses
// those that last, is not found out: there a change fails, and leaves the old key.
//
// # DUKPT
//
// A Card with a key serial number (KSN) has a PIN block under a key that its device has used once. From is then a bdk key. A KSN that is malformed,
// of a counter that no transaction has, or of another algorithm than the key is ErrKSN, before any call. The key of the block is made for the
// one call, fit for the way that PIN translation goes, and destroyed with it; so is all that is made on the way to it.
//
//   - AES-DUKPT (ANS X9.24-3): inside the token, by CKM_AES_ECB_ENCRYPT_DATA: the initial key of the device, a key for each one bit of the counter, and
//     the key of the usage: at most 18 derivations (SoftHSM 2.6.1: 45 µs each). A BDK has 128 or 256 bits, and so have the keys on the way. Working keys are 2TDEA, 3TDEA, or AES of
//     128, 192 or 256 bits. Each worker keeps the initial keys of the 256 devices that it served last, as objects of its session, and none of them beyond a generation.
//   - TDES-DUKPT (ANS X9.24-1): transient. Its derivation uses keys as data: half of each key is E(K, R XOR counter) XOR R. What PKCS#11 offers would show E, which
//     is worse: all keys of a device would follow from 56 bits. So the key of a transaction and those on the way are in locked memory, cleared before the call returns; the cipher is the token's,
//     by objects of the session (single DES is TDES under the same half twice). No initial key is kept.
//
// Half of an initial key of TDES-DUKPT is made with the BDK XOR C0C0C0C000000000 twice, and no object gives another one its value with some bits changed. So a
// TDES bdk key is two objects that only encipher: LABEL, and LABEL/variant, made together from the clear value. The BDK itself never leaves the token; what a
// dump of memory could show is one device, not all. The CKA_ID of the second says of which key it is the variant ("LABEL/variant ... variant-of:KCV kcv:KCV"), against a mix-up and
// not against fraud.
//
// Keys for MACs are derived the same way (MACKey.KSN), which no dialect asks for today; those for data are not served.
//
// # Operations held open
//
// To begin an operation costs a token more than a block does. So each worker keeps ECB operations open, each in a session of its own (8 at
// most): held.go. Those on a key that is destroyed are ended by every worker, also one that has nothing else to do. A token that does not give a block back at once, or has no more sessions, gets whole operations.
//
// # Keys and key check values
//
// Each key has one use, and the template of that use is demanded to the bit: private, sensitive, not extractable, not
// modifiable, not copyable, the flags of its use and no other, the mechanisms of its use and no other. (A token that
// does not know CKA_COPYABLE or CKA_ALLOWED_MECHANISMS is taken without; one that knows the latter and gives an empty list allows
// every mechanism, and is refused.)
//
//	use        key            flags             KCV: the first 3 bytes of
//	pin-out    TDES 2, 3 key  wrap or encrypt   8 zero bytes enciphered (ANS X9.24-1)
//	           AES            wrap and encrypt, or encrypt: CMAC of zeros
//	pin-in     TDES 2, 3 key  unwrap or decrypt the proof in its CKA_ID, or CKA_CHECK_VALUE; both are the same value
//	           AES            unwrap and decrypt, or decrypt: as TDES, of the CMAC of zeros
//	pan-seal   AES-256        encrypt           CMAC of zeros (X9.24-2)
//	           AES-256        encrypt, decrypt  16 zero bytes under AES-GCM with a nonce of zeros: E(0...02)
//	pan-token  AES-256        encrypt           CMAC of zeros
//	           32-byte HMAC   sign              HMAC-SHA-256 of "acquirerd key check 1"
//	bdk        AES            derive            CMAC of zeros
//	           TDES 2 key     encrypt           as pin-out; and of its variant
//	zmk        TDES 2, 3 key  unwrap or decrypt CKA_CHECK_VALUE, as of pin-in
//	mac-x919   TDES 2 key     encrypt           8 zero bytes enciphered; beside it LABEL/left, the left half twice: macpair.go
//	mac-cmac   AES            sign, verify      CMAC of zeros
//	           TDES 2, 3 key  sign, verify      as of pin-in: the proof in its CKA_ID, or CKA_CHECK_VALUE
//	           TDES 2, 3 key  encrypt           8 zero bytes enciphered; where the token has no CKM_DES3_CMAC
//	mac-hmac   32-byte HMAC   sign, verify      HMAC-SHA-256 of "acquirerd key check 1"
//	kbpk       TDES, AES      encrypt, derive   as of pin-out
//
// A key that only derives shows E(0) and the CMAC of zeros as the values of keys that are made to be read. They are no keys of anything: derivation data begin
// with 01.
//
// A key that only deciphers cannot show E(0), and D of some block proves nothing about E(0). Its CKA_CHECK_VALUE is the
// token's own word: computed by the token from the value when the object is made, and unchangeable where
// CKA_MODIFIABLE is false (a creator who gives another one is refused: seen on SoftHSM 2.6.1). It is as good as
// every other answer of the token; and the check deciphers a block besides, so that the key is known to work.
//
// A pan-seal key is of one of two kinds. The usual one may only encipher single blocks, by an operation held open: the standard library makes
// AES-256-GCM of that, and opens with it too (sealer.go). What this process then holds is the hash subkey of GCM, E(0): with it and a seal one
// can forge seals, and open none. The other kind does GCM in the token (CKM_AES_GCM), which costs six times as much; its list of mechanisms has no ECB, so
// that nobody can ask for E(0), and its KCV comes from GCM itself, under a nonce that sealing draws with a probability of 2^-96. Both make and open the
// same seals, so that one key takes the place of the other as any new key does.
//
// A pan-token key is a CMAC of one block made by enciphering (operations.go), or an HMAC key. A token of the one is never a token of the other: with another
// kind or key, rows that were recorded before are not found by their PAN any more. The text of the HMAC's check has letters, so it is no PAN's token.
//
// AES-GCM always gets additional authenticated data: purpose and key label. A seal is opened by the key that it names
// and by no other, even one of the same value. SoftHSM 2.6.1 can crash without such data.
//
// A zmk key is made with unwrap where the token unwraps by CKM_DES3_ECB itself, and with decrypt elsewhere (SoftHSM 2.6.1); never with
// both. It also allows CKM_DES3_CBC, in which cryptograms come too: so the token's own template tells it from a pin-in key, and a configuration that
// takes one for the other is refused at start.
//
// # Message authentication codes
//
// MAC makes them and VerifyMAC compares them, for messages that are this process's own, so that only the key matters, and that stays in the token.
// X9.19 is two calls of CKM_DES3_CBC: single DES under the left half is TDES under that half twice, which is an object of its own. What comes
// out between the two passes through this process and is cleared: with enough of it, 2^56 trials find the left half. CMAC has no such
// place. A MAC is made whole and cut here, and compared here in constant time.
//
// # Key changes
//
// ChangeKey replaces a pin-in or pin-out key that the configuration gives a ZMK, by a key of the same algorithm (TDES, AES) in ECB under that ZMK with
// its KCV, as hosts of ISO 8583:1987 send them in an 0800. That ZMK is the permission to take a raw cryptogram (PCI PIN 18-3 wants key blocks).
// The new key has to be no stronger than its ZMK (PCI PIN 10: any AES key is stronger than a TDES key), no shorter than the key in use, of no other zone
// (17), not one that was replaced before, and of the KCV that came; of TDES, of odd parity too, without equal or weak parts. ECB carries whole blocks: a
// TDES key of triple length does not come under an AES key. Where the ZMK unwraps inside the token, neither parity nor weak parts are seen, and equal
// parts only where the cryptogram shows them. All else is as above: a change is token-resident or transient as Statement says.
//
// The configuration pins the KCV of a key's first version. After a change that pin fits no more, so this is how the others are trusted:
//
//   - A version n > 1 is a successor: a key of its own in the token with the label LABEL#n. It has the template of its use, and its CKA_ID is its birth: label,
//     KCV, time and a random number ("zpk-a#3 08D7B4 2026-11-25T16:45:38Z 00112233aabbccdd").
//   - Beside it stands its mark, an object of data with the same label: its birth, and the KCVs of the versions before it. Where the token keeps no such object (NSS),
//     the mark is a secret key that can do nothing, of a value that nobody knows: "LABEL#n mark", with its text as CKA_ID (up to 2,048 bytes). No command
//     takes that for a key. Both kinds say the same, in one token too. The mark is the adoption: a successor without one is a leftover of a change that failed, is never used, and is destroyed soon after a start. (The key cannot say so itself: nobody may modify it.)
//   - The highest version with a mark is current. If it is gone, has another KCV than its birth says, or is not unique, or if there is a key of such a label
//     without a birth, the start is refused: the daemon never falls back to an older one by itself.
//   - Who can make such objects has the token's user PIN, and can then do all that the daemon can. A MAC in the mark would not
//     change that: its key would be one that the same PIN commands. So the pin is weaker for keys with a ZMK than for others, and
//     their versions and KCVs are logged at each start and change ("hsm key version"), shown by KeyStatus and counted, for a human to compare.
//   - Within a process, no version may become lower or change its KCV from one generation to the next.
//   - What the configuration pins, and a key of version 1 that is still there, must be among what was replaced. So a new key from a ceremony under the old
//     label refuses the start, and is neither passed over nor destroyed: give it another label. Generate and ImportComponents refuse such a label at once.
//   - A key that has successors and no ZMK in the configuration any more refuses the start: its old value would be in use again without a word.
//
// Nothing is renamed or modified in the token: the new key is tried as an object of the session, then made in the token, then marked, then used. A crash
// before its mark leaves the old key; a crash after it, the new one, with the old one in its overlap, as if the answer to the
// processor had been lost. A change that fails in any other way leaves the old key: what it may have made is known by its birth, and destroyed.
//
// There is one change at a time in a token: another waits for it, and is refused as busy after a CallTimeout. So two zones never take the same key.
//
// For the Overlap after the change that replaced it, also after a restart, each old key still deciphers blocks that newer ones do not,
// and the last one enciphers for a Card that asks for the Previous one. A pin-out key before that is of no use, and its time ends at the change that made
// it so. Then it is destroyed, version 1 too: a key without a use has to go (PCI DSS 3.7.5, PCI PIN 24), and
// the other side has had its time. The price is that a change that the other side wants undone after that needs a new change. An object is destroyed
// only if it is found by its label, has the KCV that we know, and the current key works. Within a process the overlap is on the monotonic
// clock; a start takes it from the birth of the next version, and where that is in the future (a clock was ahead), from the start.
//
// Two processes that change the same key in one token are not supported: the second finds the label taken and is refused, and destroys nothing of the other's; it uses the
// other's version from its next generation on.
//
// # Key blocks, components and cryptograms
//
// Commands bring keys into the token (ceremony.go, receive.go), the daemon does not: ImportComponents from the components of custodians, ImportKeyBlock from a key block of
// ANS X9.143 (TR-31), ImportCryptogram from what a zone master key enciphers. Each first makes the key as an object of the session, which shows its check value, and then in the
// token: a key with another check value than the one that was told is never there. A key that only deciphers gets the proof of its check value into its CKA_ID on the way.
// A key under a weaker one is refused (PCI PIN 10): TDES of 2 keys counts 80 bits, of 3 keys 112, AES and HMAC what they have.
//
//	version  protection key  keys of the block       MAC         read   written
//	A, C     TDES            variants (XOR)          4 bytes     by ImportLegacyKeyBlock, the protection key in components   never
//	B        TDES            derived by CMAC         8 bytes     yes    yes
//	D        AES             derived by CMAC         16 bytes    yes    yes
//
// The two keys of a block are derived inside the token, always, by CKM_*_ECB_ENCRYPT_DATA. The key itself is opened inside the token where that can unwrap, XOR, cut and
// concatenate (NSS; tried with throw-away keys at the beginning of each command), and else passes through locked memory (SoftHSM 2.6.1). Inside the token the parity
// of a TDES key is not seen; equal and weak parts are, by what they encipher zeros to. Usage, algorithm and mode have to be those of the use (blockUses in tr31.go): a block that permits less is refused, and one that permits
// more gives no more than the use. The MAC is compared in constant time before anything of the key is looked at; what is wrong with a block that has no right MAC is not said.
// Check values in it (KC, KP) are compared too.
//
// No key can be exported that is in the token: each is made not extractable. So ExportKey makes a key and its block in one step, and makes the token's key from that block. The key is
// padded to the longest of its algorithm.
//
// What this cannot promise: a kbpk key may derive, and who is logged in may have a readable key derived from it, or encipher what would be derived. So who has the user PIN and a key
// block can open it. The same holds for every standard token without CKA_DERIVE_TEMPLATE.
//
// # Keys for TLS
//
// Signer gives a private key of the token (ECDSA P-256, RSA) as a crypto.Signer. It is not in the configuration's keys and not checked when a generation
// is built: a certificate pins it, and its loss must cost handshakes and not payments. For the same reason no error of making or destroying
// objects, or of signing, breaks a generation, but a lost session. Why it is not crypto11's: signer.go.
//
// # Limits
//
// A label has at most 10 keys in the token: current, those in their overlap, and leftovers. A change that would make one more is refused as busy, and so is
// one more than Config.KeyChanges of a label in a minute (a change of the key that is current already, and one that is refused for what it carries, do not
// count). So a pin-in key can be changed nine times in its overlap and CallTimeout; a pin-out key as often as KeyChanges says, for CallTimeouts of a few seconds.
// What is refused again and again is told once a minute, in the log and in the audit trail, and counted.
//
// The record of what was replaced is of the last 300 versions and of version 1, by 3 bytes of KCV: a recorded change that is older can be played again,
// with daily changes after ten months, with one a minute after five hours. Give a zone a new ZMK before that: then no old cryptogram is of use. A new key whose KCV is by
// chance that of an old one is refused, once in 56,000 changes.
//
// A change whose mark was made although the token answered an error, or no answer in time, is answered as failed. Its key is not used, and goes with its mark when
// the token works again; but if the process ends before that, the next start takes the mark for what it says, and uses the new key.
//
// Workers, Queue, CallTimeout and Backoff of the Config. A worker opens up to 9 sessions. Nonces are random, so one key seals at most 2^32 times
// (SP 800-38D, 8.3), PANs and what else of advices: at 100 a second, 16 months; give a new key before that, and keep the old one to open.
// Nothing counts the seals of a key.
//
//   - Garbage passes for a PIN block of format 1 once in 640, token-resident once in 28: who sends such blocks as those of a device under DUKPT raises the last counter that is known of it.
//   - That counter is known by BDK and device: upstreams that share a BDK share it.
//   - A key under DUKPT costs a derivation for each one bit of the counter: 1 to 2 ms of a session for a KSN with as many as one may have (SoftHSM 2.6.1), which only an upstream's rate bounds.
//   - SoftHSM 2.6.1, which is for tests, keeps some 250 bytes of each object of a session that was destroyed: 4.5 kB a call of AES-DUKPT whose counter has 16 ones.
//   - A token that keeps no list of mechanisms (NSS) tells uses with the same flags apart by nothing, zmk from pin-in or pan-token from pan-seal: there only the configuration does.
//
// A process has one user of a module at a time (ErrInUse), because initialisation and login belong to the process; the key
// functions for commands (List, Generate, GenerateSigner, ImportComponents, ImportKeyBlock, ExportKey, Destroy, CertificateRequest, Reveal ...) are therefore refused beside an open HSM.
//
// # What it refuses to do
//
// Give a clear PIN or PIN block to anybody; translate to another PAN without a proof that it is the same card's, to a format that would unbind the PIN from it, or single DES; take format 2; seal with a key that it has not
// checked; work with unlocked memory; offer a refused user PIN again; put data, PINs or keys into errors and logs.
package hsm
