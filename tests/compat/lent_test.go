//go:build compat

package compat

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"socketbox/internal/binder"
)

// forms are the addresses that a daemon may bind: the listeners have to be of the
// same, or there is nothing to borrow. The first that it can do with is its own.
func (d *daemon) forms() [][]string {
	if d.listens == "4" {
		return [][]string{{"0.0.0.0"}}
	}
	return [][]string{{""}, {"0.0.0.0", "[::]"}}
}

func (i *instance) handoff() string {
	if i.lent != nil {
		return "listener"
	}
	return "connection"
}

// lendingConfig writes the configuration of a binder that lends i.lent, to the
// user who asks too.
func (i *instance) lendingConfig(main string) string {
	text := ""
	for _, address := range i.lent {
		text += fmt.Sprintf("[[listener]]\naddress = \"%s:%d\"\nhandoff = \"listener\"\n", address, i.port)
		if i.user != "" {
			text += fmt.Sprintf("allow = { users = [\"root\", \"%s\"] }\n", i.user)
		}
		if address == "[::]" {
			text += "options = { v6only = true }\n"
		}
	}
	return i.file("socketbox.toml", text)
}

// lent runs the daemon with its listening sockets borrowed.
func lent(t *testing.T, d *daemon) cell {
	var i *instance
	var err error
	for _, form := range d.forms() {
		if i, err = startOn(t, d, true, form); err == nil {
			if err = i.serves(); err == nil {
				break
			}
		}
		i.kill()
	}
	if err != nil {
		return red("it does not serve: %s", neutral(err))
	}
	if err := i.borrowed(); err != nil {
		return red("%s", neutral(err))
	}
	if c := i.sees(); !c.good {
		return c
	}
	count := d.requests
	if count == 0 {
		count = 2000
	}
	if l := i.crowd(count, clients, 0, nil); l.failed > 0 {
		return red("%d of %d failed: %s", l.failed, l.served+l.failed, neutral(l.err))
	}
	text := "served"
	if d.reload != 0 && d.upgrade == nil {
		l, err := i.reloadUnderLoad()
		if err != nil {
			return red("reload: %v", err)
		}
		if l.failed > 0 {
			return red("%d requests lost in reloads: %s", l.failed, neutral(l.err))
		}
		text += ", 0 lost in reloads"
	}
	if c := crash(i); !c.good {
		return red("after the crash: %s", c.reason)
	}
	return good(text)
}

// borrowed fails unless all listeners of i's binder are lent.
func (i *instance) borrowed() error {
	program, err := filepath.Abs(filepath.Join(*bin, "socketbox"))
	if err != nil {
		return err
	}
	out, err := exec.Command(program, "status", "--json", "--dir", filepath.Join(i.dir, "box")).Output()
	var s binder.Status
	if err = errors.Join(err, json.Unmarshal(out, &s)); err != nil {
		return fmt.Errorf("status: %w", err)
	}
	for _, l := range s.Listeners {
		if l.State != binder.Lent || l.Loans == 0 {
			return fmt.Errorf("listener %s is %s, borrowed %d times", l.Name, l.State, l.Loans)
		}
	}
	return nil
}

// sees fails unless clients of each family that the daemon has are served and
// seen as they are.
func (i *instance) sees() cell {
	for _, family := range []string{"4", "6"} {
		if !strings.Contains(i.listens, family) {
			continue
		}
		from, server := client4, server4
		if family == "6" {
			from, server = client6, server6
		}
		if i.loopback {
			from = map[string]string{"4": "127.0.0.1", "6": "::1"}[family]
			server = from
		}
		var s *sight
		err := within(10*time.Second, func() (err error) {
			s, err = i.report(i, dialer(from), server)
			return err
		})
		if err != nil {
			return red("IPv%s: %s", family, neutral(err))
		}
		for _, pair := range [][2]netip.AddrPort{{s.client, s.trueClient}, {s.server, s.trueServer}} {
			if pair[0].Addr().IsValid() && pair[0].Addr().Unmap() != pair[1].Addr().Unmap() {
				return red("the address is %v, the daemon says %v", pair[1].Addr(), pair[0].Addr())
			}
		}
	}
	return good("")
}
