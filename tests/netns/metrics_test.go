package netns

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// scraper is a running socketbox-metrics on a stage.
type scraper struct {
	s *stage
	*process
}

// metrics starts `socketbox metrics` as nobody, in the group that may ask.
func (s *stage) metrics() *scraper {
	s.t.Helper()
	program := publicCopy(s.t, filepath.Join(programs, "socketbox"))
	text, err := os.ReadFile(filepath.Join(programs, "socketbox-metrics"))
	if err == nil {
		err = os.WriteFile(filepath.Join(filepath.Dir(program), "socketbox-metrics"), text, 0o755)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	p := start(s.t, s.command("setpriv", "--reuid", "nobody", "--regid", "socketbox", "--clear-groups", "--", program, "metrics", "--listen", "127.0.0.1:9436"))
	p.waitLog("serving metrics")
	return &scraper{s, p}
}

// page returns the metrics as Prometheus gets them.
func (m *scraper) page() string {
	m.s.t.Helper()
	return m.s.must("curl -fsS http://127.0.0.1:9436/metrics")
}

// values are the metrics with their labels, as the page spells them.
func (m *scraper) values() map[string]float64 {
	m.s.t.Helper()
	values := map[string]float64{}
	for line := range strings.Lines(m.page()) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "} ")
		if name += "}"; !ok {
			name, value, ok = strings.Cut(strings.TrimSpace(line), " ")
		}
		if v, err := strconv.ParseFloat(value, 64); ok && err == nil {
			values[name] = v
		}
	}
	return values
}

// promtool runs it in contrib/prometheus and fails the test where it has
// anything to say against what it is given.
func promtool(t *testing.T, input string, args ...string) string {
	t.Helper()
	needProgram(t, "promtool")
	cmd := exec.Command("promtool", args...)
	cmd.Dir = "../../contrib/prometheus"
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Each connection is found in exactly one counter, the sums agree with what the
// clients saw, and promtool has nothing to say.
func TestMetrics(t *testing.T) {
	const delivered, rejected, failed = 7, 5, 3
	s := shopsOpen(t)
	s.must("rmdir /run/socketbox/blog") // its clients fail at once
	m := s.metrics()
	visit := func(n int, to string) {
		s.sh(fmt.Sprintf("for i in $(seq %d); do timeout 2 busybox nc -w 1 %s 80 </dev/null; done", n, to))
	}
	visit(delivered, "192.0.2.10")
	visit(rejected, "203.0.113.9")
	visit(failed, "192.0.2.11")
	v := m.values()
	for name, want := range map[string]float64{
		`socketbox_up`:            1,
		`socketbox_dispatcher_up`: 1,
		`socketbox_process_confined{role="dispatcher"}`:                                                                       1,
		`socketbox_listener_accepted_total{listener="web"}`:                                                                   delivered + rejected + failed,
		`socketbox_listener_connections_total{listener="web",outcome="delivered"}`:                                            delivered,
		`socketbox_listener_connections_total{listener="web",outcome="rejected"}`:                                             rejected,
		`socketbox_listener_connections_total{listener="web",outcome="failed"}`:                                               failed,
		`socketbox_listener_connections_total{listener="admin",outcome="delivered"}`:                                          0,
		`socketbox_listener_waiting{listener="web"}`:                                                                          0,
		`socketbox_listener_handoff_seconds_count{listener="web"}`:                                                            delivered,
		`socketbox_listener_handoff_seconds_bucket{listener="web",le="+Inf"}`:                                                 delivered,
		`socketbox_target_connections_total{outcome="delivered",target="shop"}`:                                               delivered,
		`socketbox_target_failures_total{cause="no_directory",target="/run/socketbox/blog/"}`:                                 failed,
		`socketbox_rule_connections_total{outcome="failed",place="socketbox.toml:13",rule="2",target="/run/socketbox/blog/"}`: failed,
		`socketbox_rule_connections_total{outcome="rejected",place="socketbox.toml:22",rule="4",target="reject"}`:             rejected,
		`socketbox_target_paths{state="live",target="shop"}`:                                                                  1,
		`socketbox_listener_accept_queue{listener="web"}`:                                                                     0,
		`socketbox_reloads_total{result="success"}`:                                                                           0,
	} {
		if got, there := v[name]; !there || got != want {
			t.Errorf("%s is %v (there: %v), not %v", name, got, there, want)
		}
	}
	if out := promtool(t, m.page(), "check", "metrics"); out != "" {
		t.Errorf("promtool check metrics says\n%s", out)
	}
	m.sumsAgree(v)
	knownMetrics(t, v)
	s.must(fmt.Sprintf("kill -KILL %d", s.status().PID))
	eventually(t, 5*time.Second, func() error {
		if v := m.values(); v["socketbox_up"] != 0 || len(v) != 1 {
			return fmt.Errorf("without an instance: %v", v)
		}
		return nil
	})
	m.signal(15)
	if status := m.wait(5 * time.Second); status != 0 {
		t.Errorf("after TERM it ends with %d", status)
	}
	expect(t, s.command("socketbox", "metrics"), 1, "does not run as root", "hint:")
}

// sumsAgree: of what is accepted nothing is missing in the outcomes, and
// listeners, rules and targets tell the same.
func (m *scraper) sumsAgree(v map[string]float64) {
	m.s.t.Helper()
	sum := func(prefix string) (n float64) {
		for name, value := range v {
			if strings.HasPrefix(name, prefix+"{") {
				n += value
			}
		}
		return n
	}
	for _, of := range []string{"listener", "rule"} {
		accepted, ended := sum("socketbox_"+of+"_accepted_total"), sum("socketbox_"+of+"_connections_total")
		if waiting := sum("socketbox_" + of + "_waiting"); accepted != ended+waiting {
			m.s.t.Errorf("%s: %v accepted, %v ended, %v wait", of, accepted, ended, waiting)
		}
	}
	if l, r := sum("socketbox_listener_accepted_total"), sum("socketbox_rule_accepted_total"); l != r {
		m.s.t.Errorf("listeners have accepted %v, rules have taken %v", l, r)
	}
	if f, c := v[`socketbox_target_connections_total{outcome="failed",target="/run/socketbox/blog/"}`], sum("socketbox_target_failures_total"); f != c {
		m.s.t.Errorf("%v failed, %v have a cause", f, c)
	}
}

// knownMetrics: rules, dashboard and manual page name no metric that is not
// there, and the manual page has all of them.
func knownMetrics(t *testing.T, v map[string]float64) {
	t.Helper()
	var names []string
	for name := range v {
		name, _, _ = strings.Cut(name, "{")
		names = append(names, name)
	}
	for _, file := range []string{"prometheus/socketbox.rules.yml", "prometheus/socketbox.rules.test.yml", "grafana/socketbox.json"} {
		text, err := os.ReadFile(filepath.Join("../../contrib", file))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`socketbox_[a-z_]+`).FindAllString(string(text), -1) {
			if !slices.Contains(names, m) {
				t.Errorf("contrib/%s names %s, which is not among the metrics", file, m)
			}
		}
	}
	page, err := os.ReadFile("../../packaging/man/socketbox-metrics.1")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		base := regexp.MustCompile(`^socketbox_(rule_|target_)?(.*?)(_bucket|_sum|_count)?$`).FindStringSubmatch(name)
		if !strings.Contains(string(page), base[2]) && !strings.Contains(string(page), "listener_"+base[2]) {
			t.Errorf("socketbox-metrics.1 does not have %s", name)
		}
	}
}

// The alert rules are valid, silent while all is well, and each one fires.
func TestAlertRules(t *testing.T) {
	promtool(t, "", "check", "rules", "socketbox.rules.yml")
	if out := promtool(t, "", "test", "rules", "socketbox.rules.test.yml"); !strings.Contains(out, "SUCCESS") {
		t.Error(out)
	}
}
