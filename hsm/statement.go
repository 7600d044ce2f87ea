package hsm

import (
	"errors"
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"
)

// A Way says where clear PIN blocks or keys are while an operation runs.
type Way string

const (
	TokenResident Way = "token-resident" // only inside the token
	Transient     Way = "transient"      // also in this process's memory, for the length of the call
)

// An Operation is a line of the Statement.
type Operation struct {
	Name      string `json:"name"`
	Way       Way    `json:"way"`
	Mechanism string `json:"mechanism"`
	Note      string `json:"note"`
}

// A Statement is what this HSM can and cannot promise.
type Statement struct {
	Module     string      `json:"module"`     // the module's own description and version, "" before Open
	Token      string      `json:"token"`      // label
	Generation uint64      `json:"generation"` // counts loads of the module; 0 while there is none
	Operations []Operation `json:"operations"`
	Keys       []KeyCheck  `json:"keys"`
}

// A KeyCheck is a key whose KCV was found right in the present generation.
type KeyCheck struct {
	Label string `json:"label"`
	Use   Use    `json:"use"`
	KCV   string `json:"kcv"`

	// Version counts the keys that this label has had, 1 for the one of the configuration.
	Version int `json:"version"`
}

// operations is what this package does today, whatever the token could do.
var operations = []Operation{
	{"PIN translation", Transient, "CKM_DES3_ECB or CKM_AES_ECB decipher, check of its format, encipher",
		"the clear PIN block passes through this process's memory: for test, not for production (PCI PIN 1)"},
	{"PAN seal", TokenResident, "AES-256-GCM by CKM_AES_ECB or CKM_AES_GCM", "the key stays in the token; the PAN is this process's own"},
	{"PAN open", TokenResident, "AES-256-GCM by CKM_AES_ECB or CKM_AES_GCM", "the key stays in the token; the clear PAN comes back to this process"},
	{"PAN token", TokenResident, "AES-CMAC by CKM_AES_ECB, or CKM_SHA256_HMAC", "the key stays in the token; the PAN is this process's own"},
}

// keyChangeOperation is transient if it is for one of the zone master keys.
func (h *HSM) keyChangeOperation(g *generation) Operation {
	for _, k := range h.cfg.Keys {
		if k.ZMK != "" && g.key(k.ZMK).recipe.way == Transient {
			return Operation{"key change", Transient, "CKM_DES3_ECB decipher, create object",
				"the clear zone PIN key passes through this process's memory: for test, not for production (PCI PIN 1)"}
		}
	}
	return Operation{"key change", TokenResident, "CKM_DES3_ECB unwrap", "the new key never leaves the token; its parity is not seen"}
}

// macOperations are those of the keys that make MACs, one for each way to make them.
func (h *HSM) macOperations(g *generation) (list []Operation) {
	seen := map[string]bool{}
	for _, k := range h.cfg.Keys {
		o := Operation{"MAC", TokenResident, "", "the key stays in the token; the message is this process's own"}
		switch r := g.key(k.Label).recipe; {
		case k.Use == MACX919:
			o.Mechanism = "CKM_DES3_CBC, twice (X9.19)"
			o.Note += ", and so is what single DES makes of it on the way: prefer CMAC"
		case k.Use == MACHMAC:
			o.Mechanism = "CKM_SHA256_HMAC"
		case k.Use == MACCMAC && r.algorithm == AES:
			o.Mechanism = "CKM_AES_CMAC"
		case k.Use == MACCMAC && r.has(pkcs11.CKA_SIGN):
			o.Mechanism = "CKM_DES3_CMAC"
		case k.Use == MACCMAC:
			o.Mechanism = "CKM_DES3_CBC (CMAC)"
			o.Note += ", and so are the subkeys of the last block"
		default:
			continue
		}
		if !seen[o.Mechanism] {
			seen[o.Mechanism] = true
			list = append(list, o)
		}
	}
	return list
}

// demandResident refuses a generation that would do less than RequireTokenResident promises. It finalises the module, as a build that fails does.
func (h *HSM) demandResident(g *generation) error {
	if !h.cfg.RequireTokenResident {
		return nil
	}
	var transient []string
	for _, o := range h.statement(g).Operations {
		if o.Way == Transient {
			transient = append(transient, o.Name)
		}
	}
	if len(transient) == 0 {
		return nil
	}
	return errors.Join(fmt.Errorf("%w: %s", ErrTransient, strings.Join(transient, ", ")), finalize(h.module))
}

// Statement says for each operation which way it takes, and which keys were checked.
func (h *HSM) Statement() Statement { return h.statement(h.gen.Load()) }

func (h *HSM) statement(g *generation) Statement {
	s := Statement{Token: h.cfg.Token, Operations: append([]Operation(nil), operations...)}
	if g != nil {
		s.Module, s.Generation = g.description, g.number
		for _, k := range h.cfg.Keys {
			now := g.key(k.Label)
			s.Keys = append(s.Keys, KeyCheck{k.Label, k.Use, now.KCV, now.version})
		}
		if len(h.lines) > 0 {
			s.Operations = append(s.Operations, h.keyChangeOperation(g))
		}
		s.Operations = append(s.Operations, h.macOperations(g)...)
		s.Operations = append(s.Operations, h.dukptOperations(g)...)
	}
	return s
}
