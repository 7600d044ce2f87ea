package acquirerd_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// rooms says which rooms a room may import. What is not named here is forbidden.
var rooms = map[string][]string{
	"card":            {},
	"specs":           {"card"},
	"messages":        {"card", "specs"},
	"hsm":             {"card", "specs", "messages"},
	"conn":            {"card", "specs", "messages"},
	"journal":         {"card", "specs", "messages"},
	"acquirer":        {"card", "specs", "messages", "hsm", "conn", "journal"},
	"upstream":        {"card", "specs", "messages", "hsm", "conn", "journal", "acquirer"},
	"cmd/acquirerd":   {"card", "specs", "messages", "hsm", "conn", "journal", "acquirer", "upstream"},
	"simulator":       {"card", "specs", "messages"},
	"cmd/acquirersim": {"card", "specs", "messages", "simulator"},
	"hsm/hsmtest":     {"card", "hsm"},
}

// libraries says in which rooms alone an outside library may be imported.
var libraries = map[string][]string{
	"github.com/moov-io/iso8583":            {"specs", "messages", "conn"},
	"github.com/moov-io/iso8583-connection": {"conn"},
	"github.com/ThalesGroup/crypto11":       {"hsm"},
	"github.com/miekg/pkcs11":               {"hsm", "hsm/hsmtest"},
	"github.com/mattn/go-sqlite3":           {"journal"},
	"database/sql":                          {"journal"},
	"github.com/spf13/viper":                {"cmd/acquirerd"},
	"github.com/spf13/cobra":                {"cmd/acquirerd", "cmd/acquirersim"},
}

func TestARoomImportsOnlyRoomsToItsLeft(t *testing.T) {
	for room, imports := range importsOfRooms(t) {
		allowed, known := rooms[room]
		if !known {
			t.Errorf("%s is not a room of the design", room)
		}
		for _, imported := range imports {
			if other, ours := strings.CutPrefix(imported, "acquirerd/"); ours && !slices.Contains(allowed, other) {
				t.Errorf("%s may not import %s", room, other)
			}
			for library, homes := range libraries {
				if (imported == library || strings.HasPrefix(imported, library+"/")) && !slices.Contains(homes, room) {
					t.Errorf("%s may not import %s", room, imported)
				}
			}
		}
	}
}

func TestTheDaemonHasNoSimulatorAndNoTestCode(t *testing.T) {
	for _, dependency := range list(t, "-deps", "-f", "{{.ImportPath}}", "./cmd/acquirerd") {
		for _, forbidden := range []string{"acquirerd/simulator", "acquirerd/hsm/hsmtest", "testing"} {
			if dependency == forbidden {
				t.Errorf("acquirerd links %s", dependency)
			}
		}
	}
}

func importsOfRooms(t *testing.T) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	for _, line := range list(t, "-f", `{{.ImportPath}} {{join .Imports " "}}`, "./...") {
		words := strings.Fields(line)
		if room := strings.TrimPrefix(words[0], "acquirerd/"); room != "acquirerd" {
			found[room] = words[1:]
		}
	}
	if len(found) < 8 {
		t.Fatalf("found only the rooms %v", found)
	}
	return found
}

func list(t *testing.T, args ...string) []string {
	t.Helper()
	out, err := exec.Command("go", append([]string{"list"}, args...)...).Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}
