package netns

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// stage is a machine of its own for a session as an administrator has it: a
// network namespace with only lo, an empty /run, and an /etc whose changes
// vanish with it. Paths and ports are therefore the ones that users see.
//
//	the tests ── unshare -n -m ──► stage: /run/socketbox, /etc/socketbox, :80
type stage struct {
	namespace
	t *testing.T
}

// newStage makes a stage, gone when the test ends.
func newStage(t *testing.T) *stage {
	t.Helper()
	needRoot(t)
	holder := start(t, namespace{}.command("unshare", "-n", "-m", "--propagation", "private", "sh", "-ec", `
		mount -t tmpfs tmpfs /run
		mkdir -p /run/netns /run/.up /run/.work
		mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/.up,workdir=/run/.work /etc
		mkdir -p /etc/socketbox
		getent passwd socketbox >/dev/null || useradd --system --user-group --no-create-home --shell /usr/sbin/nologin socketbox
		ip link set lo up
		echo staged
		exec sleep 1000`))
	holder.waitLog("staged")
	s := &stage{t: t, namespace: namespace{exec: []string{"nsenter", "-t", fmt.Sprint(holder.pid()), "-n", "-m", "--"}}}
	s.exec = append(s.exec, "env", "PATH="+programs+":"+os.Getenv("PATH"))
	return s
}

// sh runs a shell command on the stage and returns its output, which is that
// of both streams, whatever the exit status.
func (s *stage) sh(command string) string {
	s.t.Helper()
	out, _ := outcome(s.t, s.command("sh", "-c", command))
	return out
}

// must is sh of a command that must succeed.
func (s *stage) must(command string) string {
	s.t.Helper()
	out, status := outcome(s.t, s.command("sh", "-ec", command))
	if status != 0 {
		s.t.Fatalf("%s: exit %d\n%s", command, status, out)
	}
	return out
}

// write makes a file on the stage.
func (s *stage) write(path, text string) {
	s.t.Helper()
	cmd := s.command("sh", "-c", "mkdir -p $(dirname "+path+") && cat > "+path)
	cmd.Stdin = strings.NewReader(text)
	if out, status := outcome(s.t, cmd); status != 0 {
		s.t.Fatalf("write %s: %s", path, out)
	}
}

// bind starts `socketbox bind` as an administrator does, with this
// configuration.
func (s *stage) bind(config string, args ...string) *process {
	s.t.Helper()
	s.write("/etc/socketbox/socketbox.toml", config)
	p := start(s.t, s.command(append([]string{"socketbox", "bind"}, args...)...))
	p.waitLog("serving")
	return p
}

// update has captures written anew instead of compared.
var update = flag.Bool("update", false, "write the terminal captures in docs/ anew")

// volatile is what differs from run to run in a capture: numbers of processes,
// namespaces, users and moments. It is not compared; the width of columns
// follows from it.
var volatile = []struct {
	found *regexp.Regexp
	to    string
}{
	{regexp.MustCompile(`net:\[\d+\]`), "net:[N]"},
	{regexp.MustCompile(`\d{2}:\d{2}:\d{2}(\.\d+)?`), "TIME"},
	{regexp.MustCompile(`\b\d+(\.\d+)?(µs|ms|s|m|h)\b`), "DURATION"},
	{regexp.MustCompile(`\b\d{3,}\b`), "N"},
	{regexp.MustCompile(` +`), " "},
	{regexp.MustCompile(`(?m) +$`), ""},
}

func steady(text string) string {
	for _, v := range volatile {
		text = v.found.ReplaceAllString(text, v.to)
	}
	return text
}

// capture compares what the stage's commands print with the capture of that
// name in a page of docs/, between <!-- capture NAME --> and <!-- end -->.
// With -update it writes it.
func (s *stage) capture(page, name string, commands ...string) {
	s.t.Helper()
	var text strings.Builder
	for _, c := range commands {
		fmt.Fprintf(&text, "# %s\n%s", c, s.sh(c))
	}
	compareCapture(s.t, page, name, text.String())
}

func compareCapture(t *testing.T, page, name, text string) {
	t.Helper()
	path := filepath.Join("../../docs", page)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, found := strings.Cut(string(whole), "<!-- capture "+name+" -->\n```\n")
	written, tail, ended := strings.Cut(rest, "```\n<!-- end -->")
	if !found || !ended {
		t.Fatalf("docs/%s has no capture %s", page, name)
	}
	if *update {
		whole := head + "<!-- capture " + name + " -->\n```\n" + text + "```\n<!-- end -->" + tail
		if err := os.WriteFile(path, []byte(whole), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if steady(text) != steady(written) {
		t.Errorf("docs/%s, capture %s (go test ./tests/netns -run %s -update writes it): printed\n%s\nthe page has\n%s", page, name, t.Name(), text, written)
	}
}
