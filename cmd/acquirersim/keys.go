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
	var aes bool
	command := c.command("keys", "Make throw-away keys",
		"Keys makes a random double-length TDES key for each zone, or with --aes an AES key of 256 bits, and writes it three times: ZONE.key,\n"+
			"in clear for the simulator, and ZONE.component-1 and ZONE.component-2, whose XOR it is, for acquirerd keys import. It writes the check value\n"+
			"to ZONE.kcv, prints it too, and overwrites nothing.",
		"acquirersim keys --out keys --zone pos-switch --zone processor-a\n"+
			"acquirerd keys import --label zpk-pos --use pin-in --kcv $(cat keys/pos-switch.kcv) --component keys/pos-switch.component-1 --custodian alice \\\n"+
			"  --component keys/pos-switch.component-2 --custodian bob",
		func(context.Context) error { return c.keys(dir, zones, aes) })
	command.Flags().StringVar(&dir, "out", "", "folder for the files; it is made if it is not there")
	command.Flags().StringArrayVar(&zones, "zone", []string{"pos-switch", "processor-a"}, "name of a zone; may be given several times")
	command.Flags().BoolVar(&aes, "aes", false, "AES keys of 256 bits: for PIN blocks of format 4, AES-DUKPT and CMAC")
	return command
}

func (c *cli) keys(dir string, names []string, aes bool) error {
	if dir == "" {
		return usagef("--out is missing")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("writing keys: %w", err)
	}
	zones := []simulator.Zone{}
	write := simulator.WriteZone
	if aes {
		write = simulator.WriteAESZone
	}
	for _, name := range names {
		zone, err := write(dir, name)
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
