package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
)

func (c *cli) configCommands() *cobra.Command {
	check := c.command("check", "Name every fault of the config, with its key path", "acquirerd config check --config acquirerd.yaml",
		cobra.NoArgs, c.configCheck)
	check.Long = "Check reads the config, the environment that overrides it, and the dialect files that it names. It looks at no other file and\n" +
		"at no token: whether pin_file, module and journal are there, and the keys in the token, shows only on the host that serves."
	return c.group("config", "Check and show the config", "acquirerd config check --config acquirerd.yaml\nacquirerd config show",
		check,
		c.command("show", "Print the config with defaults and environment put in", "acquirerd config show --config acquirerd.yaml --output json",
			cobra.NoArgs, c.configShow))
}

// configCheck prints "ok" to stdout, or a line for each fault to stderr.
func (c *cli) configCheck(context.Context, []string) error {
	_, err := loadConfig(c.config)
	var faulty *configError
	if c.output == "text" || err != nil && !errors.As(err, &faulty) {
		if err == nil {
			_, err = fmt.Fprintln(c.out, "ok")
		}
		return err
	}
	type line struct {
		Path    string `json:"path"`
		Problem string `json:"problem"`
	}
	lines := []line{}
	if faulty != nil {
		for _, f := range faulty.faults {
			lines = append(lines, line{f.path, f.text})
		}
	}
	return errors.Join(c.printJSON(map[string]any{"ok": err == nil, "faults": lines}), err)
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
