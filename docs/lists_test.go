package docs_test

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"socketbox/internal/config"
	"socketbox/internal/privsep"
)

// TestSystemCalls: the lists in architecture.md are the filters' own.
func TestSystemCalls(t *testing.T) {
	page := read(t, "docs/architecture.md")
	for _, filter := range []privsep.Filter{privsep.DispatcherFilter(1), privsep.BinderFilter()} {
		_, rest, ok := strings.Cut(page, "<!-- seccomp "+filter.Name+" -->")
		table, _, ended := strings.Cut(rest, "<!-- end -->")
		if !ok || !ended {
			t.Fatalf("no table of the %s's system calls", filter.Name)
		}
		var listed, real []string
		for _, m := range regexp.MustCompile("`([a-z0-9_]+)`").FindAllStringSubmatch(table, -1) {
			listed = append(listed, m[1])
		}
		for _, r := range filter.Rules {
			real = append(real, r.Call)
		}
		compare(t, filter.Name+"'s system calls", listed, real)
	}
}

// TestControlMessages: the table of control messages has all of them.
func TestControlMessages(t *testing.T) {
	source := read(t, "internal/privsep/message.go")
	page := read(t, "docs/architecture.md")
	var listed, real []string
	for _, m := range regexp.MustCompile(`(?m)^\t(\w+) .*// ([bd])→[bd]: `).FindAllStringSubmatch(source, -1) {
		real = append(real, m[1]+" from "+m[2])
	}
	for _, m := range regexp.MustCompile(`(?m)^\| (\w+) \| (binder|dispatcher) \|`).FindAllStringSubmatch(page, -1) {
		listed = append(listed, m[1]+" from "+m[2][:1])
	}
	compare(t, "control messages", listed, real)
}

// TestConfigurationKeys: configuration.md and the manual page have every key.
// The parser names those of a section when it meets an unknown one.
func TestConfigurationKeys(t *testing.T) {
	page, manual := read(t, "docs/configuration.md"), read(t, "packaging/man/socketbox.toml.5")
	for section, text := range map[string]string{
		"top":      "nonsense = 1",
		"hold":     "hold.nonsense = 1",
		"listener": "[[listener]]\naddress = ':1'\nnonsense = 1",
		"options":  "[[listener]]\naddress = ':1'\noptions.nonsense = 1",
		"rule":     "[[rule]]\ntarget = 'main'\nnonsense = 1",
		"target":   "[target.t]\nsockets = '/x'\nnonsense = 1",
		"table":    "[table.t]\nfile = '/x'\nnonsense = 1",
	} {
		_, err := config.Parse("f", []byte(text), config.Defaults{Dir: "/run/x"})
		if err == nil {
			t.Fatalf("%s: an unknown key is accepted", section)
		}
		_, list, ok := strings.Cut(err.Error(), ": expected ")
		if !ok {
			t.Fatalf("%s: no keys in %v", section, err)
		}
		for key := range strings.SplitSeq(list, ", ") {
			if !regexp.MustCompile("(?m)^\\| .*`" + key + "`.* \\|").MatchString(page) {
				t.Errorf("docs/configuration.md has no key %s of %s", key, section)
			}
			if key != "table" && key != "lend" && !strings.Contains(manual, key) {
				t.Errorf("socketbox.toml(5) has no key %s of %s", key, section)
			}
		}
	}
}

// commands are the command lines with a help of their own, and their pages.
var commands = map[string][]string{
	"socketbox.1":         {"socketbox bind", "socketbox check", "socketbox dir create", "socketbox doctor", "socketbox explain", "socketbox reload", "socketbox sessions", "socketbox status", "socketbox trace"},
	"socketbox-metrics.1": {"socketbox-metrics"},
	"socketbox-inetd.1":   {"socketbox-inetd"},
	"socketbox-launch.1":  {"socketbox-launch"},
	"socketbox-relay.1":   {"socketbox-relay"},
}

// TestManualFlags: a flag that --help shows is in the manual page, and the
// page has no other.
func TestManualFlags(t *testing.T) {
	long := regexp.MustCompile(`(?m)^ +(?:-\w, )?--([a-z-]+)`)
	for name, lines := range commands {
		var real, listed []string
		for _, line := range lines {
			words := append(strings.Fields(line), "--help")
			out, err := exec.Command(filepath.Join(bin, words[0]), words[1:]...).Output()
			if err != nil {
				t.Fatalf("%v: %v", words, err)
			}
			_, flags, _ := strings.Cut(string(out), "\nFlags:\n")
			for _, m := range long.FindAllStringSubmatch(flags, -1) {
				real = append(real, m[1])
			}
		}
		page := read(t, "packaging/man/"+name)
		for _, m := range regexp.MustCompile(`Fl Fl ([a-z-]+)`).FindAllStringSubmatch(page, -1) {
			listed = append(listed, m[1])
		}
		compare(t, name+": flags", listed, append(real, "version"))
	}
}

// TestManualCommands: each subcommand of socketbox is in its manual page.
func TestManualCommands(t *testing.T) {
	out, err := exec.Command(filepath.Join(bin, "socketbox"), "--help").Output()
	if err != nil {
		t.Fatal(err)
	}
	page := read(t, "packaging/man/socketbox.1")
	_, list, _ := strings.Cut(string(out), "Available Commands:\n")
	list, _, _ = strings.Cut(list, "\n\n")
	for line := range strings.Lines(list) {
		name := strings.Fields(line)[0]
		if name != "help" && !strings.Contains(page, ".It Cm "+name+"\n") {
			t.Errorf("socketbox.1 does not have the command %s", name)
		}
	}
}

// compare reports what only one of two lists has.
func compare(t *testing.T, what string, listed, real []string) {
	t.Helper()
	if len(real) == 0 {
		t.Errorf("%s: nothing found to compare with", what)
	}
	for _, x := range real {
		if !slices.Contains(listed, x) {
			t.Errorf("%s: %s is not in the documentation", what, x)
		}
	}
	for _, x := range listed {
		if !slices.Contains(real, x) {
			t.Errorf("%s: the documentation has %s, the program has not", what, x)
		}
	}
}
