package preload

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// behaviour is a test daemon and the clients that it is to serve.
type behaviour struct {
	name   string
	args   []string // PORT and COUNT are filled in
	six    bool     // it listens on AF_INET6 and sees IPv4 as v4-mapped
	family []string // of the clients, one after another
	crowd  int      // that many clients more, 16 at a time
	left   string   // ending of the socket's name; it is removed in the end
}

var four = []string{"4", "4", "4", "4"}

var behaviours = []behaviour{
	{name: "plain", args: []string{"4", "PORT", "COUNT"}, family: four, left: ".ipv4.sock"},
	{name: "plain", args: []string{"6", "PORT", "COUNT"}, six: true, family: []string{"4", "6", "4", "6"}, left: ".sock"},
	{name: "plain", args: []string{"6only", "PORT", "COUNT"}, six: true, family: []string{"6", "6"}, left: ".ipv6.sock"},
	{name: "copies", args: []string{"PORT"}, family: four, left: ".ipv4.sock"},
	{name: "many", args: []string{"PORT", "COUNT"}, six: true, crowd: 10_000, left: ".sock"},
	{name: "twice", args: []string{"PORT"}, family: four, left: ".ipv4.sock"},
	{name: "arguments", args: []string{"PORT"}, family: four[:3], left: ".ipv4.sock"},
	{name: "threads", args: []string{"PORT", "COUNT"}, six: true, crowd: 400, left: ".sock"},
	{name: "prefork", args: []string{"PORT", "COUNT"}, crowd: 400, left: ".ipv4.sock"},
	{name: "reexec", args: []string{"PORT"}, family: append(four, "4")},
	{name: "early", args: []string{"PORT"}, family: four, left: ".ipv4.sock"},
	{name: "rebind", args: []string{"PORT"}, family: append(four, "4"), left: ".ipv4.sock"},
	{name: "pass", args: []string{"PORT"}, six: true, family: four[:3]},
	{name: "reuseport", args: []string{"PORT"}, family: append(four, four...), left: ".ipv4.sock"},
	{name: "options", args: []string{"PORT"}, six: true, family: []string{"4", "6"}, left: ".sock"},
	{name: "full", args: []string{"PORT"}, family: four[:3], left: ".ipv4.sock"},
	{name: "numbers", args: []string{"PORT"}, family: four[:2], left: ".ipv4.sock"},
	{name: "outward", args: []string{"PORT"}, family: four[:1], left: ".ipv4.sock"},
}

func (v behaviour) run(t *testing.T, s setting) {
	b := bind(t)
	v.serve(t, b, s)
	if v.left != "" {
		gone(t, b.path(v.left))
	}
}

// serve runs the daemon until it has served its clients.
func (v behaviour) serve(t *testing.T, b *box, s setting) {
	crowd := v.crowd
	if s.slow {
		crowd = min(crowd, 200)
	}
	var args []string
	for _, a := range v.args {
		switch a {
		case "PORT":
			a = fmt.Sprint(b.port)
		case "COUNT":
			a = fmt.Sprint(len(v.family) + crowd)
		}
		args = append(args, a)
	}
	p := b.small(s, nil, v.name, args...)
	for _, family := range v.family {
		b.mustAsk(family, v.six)
	}
	b.crowd(crowd, 16, "4", v.six)
	p.wait(0)
	for _, bad := range []string{"ERROR: AddressSanitizer", "runtime error", "was lost"} {
		if strings.Contains(p.log.String(), bad) {
			t.Errorf("%s:\n%s", bad, p.log)
		}
	}
}

func runAll(t *testing.T, s setting) {
	for _, v := range behaviours {
		if s.name == "valgrind" && v.name == "full" {
			continue // valgrind keeps descriptors above the limit for itself
		}
		t.Run(strings.Join(append([]string{v.name}, v.args[:len(v.args)-1]...), "_"), func(t *testing.T) { v.run(t, s) })
	}
}

func TestDaemons(t *testing.T) { runAll(t, plain()) }

func underValgrind(t *testing.T) setting {
	needProgram(t, "valgrind")
	s := plain()
	s.name = "valgrind"
	s.slow = true
	s.prefix = []string{"valgrind", "-q", "--error-exitcode=9", "--trace-children=yes", "--trace-children-skip=/bin/true", "--track-fds=no"}
	s.env = []string{"CHECKED=1"}
	return s
}

func TestDaemonsUnderValgrind(t *testing.T) { runAll(t, underValgrind(t)) }

func withSanitizers(t *testing.T) setting {
	out, err := exec.Command("cc", "-print-file-name=libasan.so").Output()
	if err != nil {
		t.Fatal(err)
	}
	// The daemons are not instrumented: the runtime has to come first.
	return setting{
		name:    "sanitizers",
		preload: strings.TrimSpace(string(out)) + ":" + filepath.Join(daemons, "asan", "libsocketbox-preload.so"),
		env:     []string{"ASAN_OPTIONS=detect_leaks=0", "UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1"},
		slow:    true,
	}
}

func TestDaemonsWithSanitizers(t *testing.T) { runAll(t, withSanitizers(t)) }
