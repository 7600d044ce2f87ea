package main

import (
	"context"
	"fmt"
	"runtime/debug"

	"github.com/spf13/cobra"
)

func (c *cli) versionCommand() *cobra.Command {
	return withoutConfig(c.command("version", "Say which build this is", "acquirerd version --output json", cobra.NoArgs, func(context.Context, []string) error {
		b := readBuild()
		if c.output == "json" {
			return c.printJSON(b)
		}
		_, err := fmt.Fprintf(c.out, "acquirerd %s (%s)\n", version(), b.Go)
		return err
	}))
}

// A build is what the linker wrote into this program.
type build struct {
	Version  string `json:"version"`            // of the module, "(devel)" for a build from a working copy
	Revision string `json:"revision,omitempty"` // of the source
	Modified bool   `json:"modified,omitempty"` // the source differed from the revision
	Time     string `json:"time,omitempty"`     // of the revision
	Go       string `json:"go"`
}

func readBuild() build {
	info, known := debug.ReadBuildInfo()
	if !known {
		return build{Version: "(unknown)"}
	}
	b := build{Version: info.Main.Version, Go: info.GoVersion}
	for _, setting := range info.Settings {
		switch setting.Key {
		case "vcs.revision":
			b.Revision = setting.Value
		case "vcs.time":
			b.Time = setting.Value
		case "vcs.modified":
			b.Modified = setting.Value == "true"
		}
	}
	return b
}

// version is a build in one word, for the log.
func version() string {
	b := readBuild()
	text := b.Version
	if text == "" {
		text = "(devel)"
	}
	if b.Revision != "" {
		text += " " + b.Revision
	}
	if b.Modified {
		text += " modified"
	}
	return text
}
