package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
)

func (c *cli) configCommands() *cobra.Command {
	var strict bool
	check := c.command("check", "Name every fault of the config, with its key path", "acquirerd config check --config acquirerd.yaml",
		cobra.NoArgs, func(context.Context, []string) error { return c.configCheck(strict) })
	check.Flags().BoolVar(&strict, "strict", false, "exit with 0 only if there is no warning either")
	check.Long = "Check reads the config, the environment that overrides it, and the dialect files, certificates and keys of TLS that it names.\n" +
		"It looks at no other file and at no token: whether pin_file, module and journal are there, and the keys in the token, shows only\n" +
		"on the host that serves. What is no fault, and should not stay, is a warning: above all a certificate that has expired, with which\n" +
		"serve starts all the same, because what is owed to other processors has to be paid."
	reload := c.command("reload", "Have the running daemon read its config again", "acquirerd config reload --config acquirerd.yaml",
		cobra.NoArgs, c.configReload)
	reload.Long = "Reload has the daemon read and check its own config file, and change what differs: routes, links, timers, limits, TLS, who may\n" +
		"connect, the level of the log; upstreams come and go, endpoints come. Links and connections that the change does not concern are\n" +
		"not touched. What cannot change while it serves is named, and then nothing changes. SIGHUP does the same; its result is in the log."
	return c.group("config", "Check, show and reload the config", "acquirerd config check --config acquirerd.yaml\nacquirerd config show",
		check,
		c.command("show", "Print the config with defaults and environment put in", "acquirerd config show --config acquirerd.yaml --output json",
			cobra.NoArgs, c.configShow), reload)
}

// configCheck prints "ok" to stdout, or a line for each fault to stderr, and a line there for each warning. Strict, a warning is an error.
func (c *cli) configCheck(strict bool) error {
	cfg, err := loadConfig(c.config)
	var faulty *configError
	if err != nil && !errors.As(err, &faulty) {
		return err
	}
	var warnings []fault
	if cfg != nil {
		warnings = cfg.warnings(time.Now())
	}
	if strict && err == nil && len(warnings) > 0 {
		err = fmt.Errorf("checking config: no fault, and %d to be warned of", len(warnings))
	}
	if c.output == "text" {
		for _, w := range warnings {
			_, _ = fmt.Fprintf(c.err, "warning: %s\n", w)
		}
		if err == nil {
			_, err = fmt.Fprintln(c.out, "ok")
		}
		return err
	}
	var faults []fault
	if faulty != nil {
		faults = faulty.faults
	}
	return errors.Join(c.printJSON(map[string]any{"ok": err == nil, "faults": faultLines(faults), "warnings": faultLines(warnings)}), err)
}

func faultLines(list []fault) []faultLine {
	lines := make([]faultLine, len(list))
	for i, f := range list {
		lines[i] = faultLine{f.path, f.text}
	}
	return lines
}

func (c *cli) configReload(ctx context.Context, _ []string) error {
	return c.askDaemon(ctx, func(r *remote) error {
		var result reloadResult
		if err := r.post(ctx, "/config/reload", &result); err != nil {
			return err
		}
		if c.output == "json" {
			return c.printJSON(result)
		}
		if len(result.Changed) == 0 {
			_, err := fmt.Fprintln(c.out, "nothing has changed")
			return err
		}
		_, err := fmt.Fprintf(c.out, "changed %s\n", strings.Join(result.Changed, "\nchanged "))
		return err
	})
}

// configShow prints no secret, because a Config holds none.
func (c *cli) configShow(context.Context, []string) error {
	cfg, err := loadConfig(c.config)
	if err != nil {
		return err
	}
	return c.printYAML(cfg.node())
}

// loadParts loads the config for a command that uses only some of its keys: the faults of others do not matter to it.
func (c *cli) loadParts(paths ...string) (*Config, error) {
	cfg, err := loadConfig(c.config)
	var faulty *configError
	if errors.As(err, &faulty) {
		err = faulty.about(paths...)
	}
	return cfg, err
}

func (c *cli) printJSON(value any) error {
	encoder := json.NewEncoder(c.out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}

// printYAML prints a YAML node, or the same as JSON.
func (c *cli) printYAML(node *yaml.Node) error {
	if c.output == "json" {
		var value any
		if err := node.Decode(&value); err != nil {
			return err
		}
		return c.printJSON(textKeys(value))
	}
	encoder := yaml.NewEncoder(c.out)
	encoder.SetIndent(2)
	if err := encoder.Encode(node); err != nil {
		return err
	}
	return encoder.Close()
}

// textKeys makes what YAML gives into what JSON takes: keys of mappings are text.
func textKeys(value any) any {
	switch value := value.(type) {
	case map[string]any:
		for key, inner := range value {
			value[key] = textKeys(inner)
		}
	case map[any]any:
		text := make(map[string]any, len(value))
		for key, inner := range value {
			text[fmt.Sprint(key)] = textKeys(inner)
		}
		return text
	case []any:
		for i, inner := range value {
			value[i] = textKeys(inner)
		}
	}
	return value
}
