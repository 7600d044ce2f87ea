package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"acquirerd/simulator"
)

func (c *cli) keysCommand() *cobra.Command {
	var dir string
	var zones []string
	command := c.command("keys", "Make throw-away zone PIN keys",
		"Keys makes a random double-length TDES key for each zone and writes it three times: ZONE.key, in clear for the simulator, and\n"+
			"ZONE.component-1 and ZONE.component-2, whose XOR it is, for acquirerd keys import. It writes the check value to ZONE.kcv, prints it too, and\n"+
			"overwrites nothing.",
		"acquirersim keys --out keys --zone pos-switch --zone processor-a\n"+
			"acquirerd keys import --label zpk-pos --use pin-in --kcv $(cat keys/pos-switch.kcv) --component keys/pos-switch.component-1 --custodian alice \\\n"+
			"  --component keys/pos-switch.component-2 --custodian bob",
		func(context.Context) error { return c.keys(dir, zones) })
	command.Flags().StringVar(&dir, "out", "", "folder for the files; it is made if it is not there")
	command.Flags().StringArrayVar(&zones, "zone", []string{"pos-switch", "processor-a"}, "name of a zone; may be given several times")
	return command
}

func (c *cli) keys(dir string, names []string) error {
	if dir == "" {
		return usagef("--out is missing")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("writing keys: %w", err)
	}
	zones := []simulator.Zone{}
	for _, name := range names {
		zone, err := simulator.WriteZone(dir, name)
		if err != nil {
			return err
		}
		zones = append(zones, zone)
	}
	return c.print(zones, func(w io.Writer) {
		for _, z := range zones {
			_, _ = fmt.Fprintf(w, "%s: KCV %s, %s, components %s %s\n", z.Name, z.KCV, z.KeyFile, z.Components[0], z.Components[1])
		}
	})
}
