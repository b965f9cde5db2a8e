//go:build docker

package docker

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A setting is a line of the compose file: where it is, and what it says. The
// items of a list all have the list's name.
type setting struct{ name, value string }

// compose reads the subset of YAML that compose.yaml is written in: nested
// keys, lists of plain words, strings in double quotes.
func compose(t *testing.T) (all []setting) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(*examples, "compose.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var path []string
	for line := range strings.Lines(string(b)) {
		text := strings.TrimSpace(line)
		if text == "" || text[0] == '#' {
			continue
		}
		if item, ok := strings.CutPrefix(text, "- "); ok {
			all = append(all, setting{strings.Join(path, "."), item})
			continue
		}
		depth := (len(line) - len(strings.TrimLeft(line, " "))) / 2
		key, value, ok := strings.Cut(text, ":")
		if !ok || depth > len(path) {
			t.Fatalf("compose.yaml: can't read %q", line)
		}
		path = append(path[:depth], key)
		if value = strings.Trim(strings.TrimSpace(value), `"`); value != "" {
			all = append(all, setting{strings.Join(path, "."), value})
		}
	}
	return all
}

// runArgs says what compose.yaml says as flags of `docker run`. Only the host's
// side of two volumes is elsewhere: the library is not installed here.
func runArgs(t *testing.T) (image string, args []string) {
	t.Helper()
	for _, s := range compose(t) {
		name, ok := strings.CutPrefix(s.name, "services.web.")
		if !ok {
			t.Fatalf("compose.yaml: %s is not of the service web", s.name)
		}
		switch name {
		case "image":
			image = s.value
		case "network_mode":
			args = append(args, "--network", s.value)
		case "restart":
			args = append(args, "--restart", s.value)
		case "stop_signal":
			args = append(args, "--stop-signal", s.value)
		case "volumes":
			host, inside, _ := strings.Cut(s.value, ":")
			switch {
			case host == "/usr/lib/socketbox":
				host = *bin
			case strings.HasPrefix(host, "./"):
				host = filepath.Join(*examples, host)
			}
			args = append(args, "-v", host+":"+inside)
		case "healthcheck.test":
			args = append(args, "--health-cmd", s.value)
		case "healthcheck.interval", "healthcheck.timeout", "healthcheck.retries":
			args = append(args, "--health-"+strings.TrimPrefix(name, "healthcheck."), s.value)
		default:
			variable, ok := strings.CutPrefix(name, "environment.")
			if !ok {
				t.Fatalf("compose.yaml: the test does not know %s", name)
			}
			args = append(args, "-e", variable+"="+s.value)
		}
	}
	return image, args
}
