package main

import (
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"socketbox/internal/inetd"
	"socketbox/internal/inetd/spawn"
)

// parsed returns what a command line asks for, without running it.
func parsed(t *testing.T, args ...string) (o inetd.Options, command []string, err error) {
	t.Helper()
	var f flags
	c := &cobra.Command{}
	f.define(c)
	if err := c.ParseFlags(args); err != nil {
		return o, nil, err
	}
	if err := f.check(c); err != nil {
		return o, nil, err
	}
	return o, c.Flags().Args(), f.parse(c, &o)
}

func TestDefaults(t *testing.T) {
	o, command, err := parsed(t, "--", "cat", "-A")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Join(command, " ") != "cat -A" || o.Receive.Mode != 0o660 || o.Receive.Group != -1 || o.Receive.From != -1 ||
		o.Nice != nil || o.Limits != nil || o.User.Credential != nil || o.Rate != (inetd.Rate{}) || o.Stderr != spawn.StderrInherit {
		t.Errorf("got %+v, command %q", o, command)
	}
}

func TestValues(t *testing.T) {
	// The command's own flags are its own, with and without "--".
	o, command, err := parsed(t, "--mode", "600", "--group", "54321", "--from", "root", "--user", "1:2", "--nice", "0",
		"--rlimit", "nofile=3", "--rlimit", "core=0:1", "--rate", "5/m", "--stderr", "null", "prog", "--max", "0")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Join(command, " ") != "prog --max 0" || o.Receive.Mode != 0o600 || o.Receive.Group != 54321 || o.Receive.From != 0 ||
		o.Nice == nil || *o.Nice != 0 || len(o.Limits) != 2 || o.Limits[1].Resource != unix.RLIMIT_CORE ||
		o.User.Credential.UID != 1 || o.User.Credential.GID != 2 || o.Rate != (inetd.Rate{Count: 5, Per: time.Minute}) || o.Stderr != spawn.StderrNull {
		t.Errorf("got %+v, command %q", o, command)
	}
}

func TestRefusedValues(t *testing.T) {
	for _, args := range []string{
		"--mode 0", "--mode 1777", "--mode rw", "--group no-such-group", "--from no-such-user", "--from -1",
		"--nice 20", "--nice -21", "--max -1", "--max-per-source -1", "--timeout -1s", "--kill-after -1s", "--timeout 5",
		"--socket=", "--socket x --dir y", "--port 0", "--port -1", "--rate 0", "--rlimit nofile", "--user :",
	} {
		if o, _, err := parsed(t, strings.Fields(args)...); err == nil {
			t.Errorf("%s: got %+v", args, o)
		}
	}
}

// TestHelp: every flag has a text and names its value.
func TestHelp(t *testing.T) {
	c := newCommand()
	c.Flags().VisitAll(func(f *pflag.Flag) {
		name, usage := pflag.UnquoteUsage(f)
		if usage == "" || f.Value.Type() != "bool" && name != strings.ToUpper(name) && !strings.ContainsAny(name, "/[") {
			t.Errorf("--%s %s: %q", f.Name, name, usage)
		}
	})
	if c.Example == "" || c.Long == "" {
		t.Error("no examples")
	}
	for line := range strings.Lines(c.Long + c.Example) {
		if len(line) > 110 {
			t.Errorf("a line of %d characters: %s", len(line), line)
		}
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		var out strings.Builder
		c := newCommand()
		c.SetArgs([]string{"completion", shell})
		c.SetOut(&out)
		if err := c.Execute(); err != nil || !strings.Contains(out.String(), program) {
			t.Errorf("%s: %v, %d bytes", shell, err, out.Len())
		}
	}
	var out strings.Builder
	c := newCommand()
	c.SetArgs([]string{"__complete", "--stderr", ""})
	c.SetOut(&out)
	if err := c.Execute(); err != nil || !strings.HasPrefix(out.String(), "inherit\nsocket\nnull\n") {
		t.Errorf("values of --stderr: %v, %q", err, out.String())
	}
}
