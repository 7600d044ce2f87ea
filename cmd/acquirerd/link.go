package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func (c *cli) linkCommands() *cobra.Command {
	list := c.command("list [ENDPOINT]", "List the links of the running daemon", "acquirerd link list\nacquirerd link list processor-a --output json",
		cobra.MaximumNArgs(1), c.linkList)
	list.Long = "List prints each link with its state. HELD is yes for a link that an operator drained: it stays down until it is resumed."
	drain := c.linkCommand("drain", "drained", "Take links out of service in good order, and keep them down")
	drain.Long = "Drain gives a link nothing new, lets what is in flight on it end, signs off, and keeps it down until it is resumed. Without a\n" +
		"number it drains all links of the endpoint. It returns at once; link list shows how far it is."
	resume := c.linkCommand("resume", "resumed", "Bring drained links back into service")
	cut := c.linkCommand("cut", "cut", "Close connections at once; their links connect again")
	cut.Long = "Cut closes the connection of a link at once, without a sign-off, and the link connects again. What is in flight on it waits for its\n" +
		"answer on the other links until its time is up; then its outcome is unknown, and it is reversed. To take a link out of service, drain it."
	return c.group("link", "Watch and steer the links of the running daemon", "acquirerd link list\nacquirerd link drain processor-a/0", list, drain, resume, cut)
}

// linkCommand makes a command that changes one link, or all of an endpoint.
func (c *cli) linkCommand(name, done, short string) *cobra.Command {
	return c.command(name+" ENDPOINT[/NUMBER]", short, fmt.Sprintf("acquirerd link %s processor-a/0\nacquirerd link %s processor-a", name, name),
		cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
			endpoint, number, one := strings.Cut(args[0], "/")
			if n, err := strconv.Atoi(number); one && (err != nil || n < 0) || !plainName.MatchString(endpoint) {
				return usagef("%q is neither an endpoint nor a link such as processor-a/0", args[0])
			}
			which := "all"
			if one {
				which = number
			}
			return c.askDaemon(ctx, func(r *remote) error {
				if err := r.post(ctx, "/links/"+url.PathEscape(endpoint)+"/"+which+"/"+name, &struct{}{}); err != nil {
					return err
				}
				if c.output == "json" {
					return c.printJSON(map[string]string{"endpoint": endpoint, "link": which, "result": done})
				}
				_, err := fmt.Fprintf(c.out, "%s %s\n", done, args[0])
				return err
			})
		})
}

func (c *cli) linkList(ctx context.Context, args []string) error {
	return c.askDaemon(ctx, func(r *remote) error {
		var list []linkStatus
		if err := r.ask(ctx, http.MethodGet, "/links", &list); err != nil {
			return err
		}
		if len(args) == 1 {
			list = slices.DeleteFunc(list, func(l linkStatus) bool { return l.Endpoint != args[0] })
			if len(list) == 0 {
				return fmt.Errorf("there is no endpoint %q", args[0])
			}
		}
		if c.output == "json" {
			return c.printJSON(list)
		}
		table := c.table("ENDPOINT", "LINK", "MODE", "HOST", "PEER", "STATE", "SINCE", "IN-FLIGHT", "RECONNECTS", "ECHO", "LAST-ERROR", "HELD")
		for _, l := range list {
			echo := ""
			if l.EchoSeconds > 0 {
				echo = time.Duration(l.EchoSeconds * float64(time.Second)).Round(time.Microsecond).String()
			}
			held := "no"
			if l.Held {
				held = "yes"
			}
			if l.Suspended {
				held = "suspended"
			}
			table.row(l.Endpoint, l.Number, l.Mode, l.Address, l.Peer, l.State, clock(l.Since), l.InFlight, l.Reconnects, echo, l.LastError, held)
		}
		return table.Flush()
	})
}
