package binder

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/config"
	"socketbox/internal/handoff"
	"socketbox/internal/privsep"
	"socketbox/internal/rule"
)

// scene is a resolver with real directories and sockets, and what it told
// the dispatcher: where each route leads and how each sink is.
type scene struct {
	t      *testing.T
	r      *resolver
	dir    string
	now    time.Time
	routes map[uint32]uint32
	live   map[uint32]bool
	said   int
}

func newScene(t *testing.T) *scene {
	w, err := newWatcher()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	s := &scene{t: t, dir: t.TempDir(), now: time.Now(), routes: map[uint32]uint32{}, live: map[uint32]bool{}}
	s.r = newResolver(slog.New(slog.DiscardHandler), w)
	s.r.now = func() time.Time { return s.now }
	s.r.send = s.hear
	home, err := rule.ParseTemplate(s.dir + "/")
	if err != nil {
		t.Fatal(err)
	}
	single, err := rule.ParseTemplate(s.dir + "/one.sock")
	if err != nil {
		t.Fatal(err)
	}
	tenants, err := rule.ParseTemplate(s.dir + "/{listener}/")
	if err != nil {
		t.Fatal(err)
	}
	s.r.reset(1, []config.Destination{{Name: "main", Sockets: []rule.Template{home}}, {Name: "one", Sockets: []rule.Template{single}},
		{Name: "tenants", Sockets: []rule.Template{tenants}}}, []string{"a", "b"})
	return s
}

func (s *scene) hear(m privsep.Message) {
	s.said++
	switch m.Kind {
	case privsep.Route:
		s.routes[m.ID] = m.Value
	case privsep.Sink:
		s.live[m.ID] = m.State == privsep.Live
	}
	closeAll(m.FDs)
}

// at says where route id leads: a file name, "wait" or "none".
func (s *scene) at(id uint32) string {
	sink := s.routes[id]
	if sink == 0 {
		return "none"
	}
	if !s.live[sink] {
		return "wait"
	}
	return filepath.Base(s.r.sinkByID[sink].path)
}

func (s *scene) want(id uint32, k privsep.Key) {
	s.t.Helper()
	if err := s.r.want(privsep.Message{Kind: privsep.Want, ID: id, Key: k}); err != nil {
		s.t.Fatal(err)
	}
}

// receiver makes a live receiver of that name, as old as it needs to be.
func (s *scene) receiver(name string) *handoff.Receiver {
	s.t.Helper()
	r, err := handoff.Listen(filepath.Join(s.dir, name), handoff.Options{Group: -1, From: -1})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { r.Close() })
	return r
}

func (s *scene) changed(name string) { s.r.changed(filepath.Join(s.dir, name)) }

func (s *scene) expect(id uint32, want string) {
	s.t.Helper()
	if got := s.at(id); got != want {
		s.t.Errorf("route %d leads to %s, want %s", id, got, want)
	}
}

func (s *scene) later(d time.Duration) {
	s.now = s.now.Add(d)
	s.r.tick()
}

var (
	four = privsep.Key{Port: 80, Family: privsep.IPv4}
	six  = privsep.Key{Port: 80, Family: privsep.IPv6}
)

func TestMostSpecificWins(t *testing.T) {
	s := newScene(t)
	s.receiver("default.sock")
	s.later(time.Second) // all that is there is old
	s.want(1, four)
	s.want(2, six)
	s.expect(1, "default.sock")
	s.expect(2, "default.sock")
	s.receiver("80.ipv4.sock")
	s.changed("80.ipv4.sock")
	s.expect(1, "80.ipv4.sock")
	s.expect(2, "80.ipv4.sock") // the receiver maps the address
	s.receiver("80.sock")
	s.changed("80.sock")
	s.expect(1, "80.ipv4.sock")
	s.expect(2, "80.sock")
}

func TestLessSpecificWaits(t *testing.T) {
	s := newScene(t)
	s.want(1, four)
	s.expect(1, "wait")
	s.receiver("default.sock")
	s.now = time.Now()
	s.changed("default.sock")
	s.expect(1, "wait")
	s.later(150 * time.Millisecond)
	s.expect(1, "wait")
	s.later(100 * time.Millisecond)
	s.expect(1, "default.sock")
}

// TestReturnIsAtOnce: a receiver that restarts finds its clients at once, and
// another one that is less specific does not get them meanwhile.
func TestReturnIsAtOnce(t *testing.T) {
	s := newScene(t)
	s.receiver("default.sock")
	r := s.receiver("80.sock")
	s.later(time.Second)
	s.want(1, four)
	s.expect(1, "80.sock")
	r.Close()
	s.changed("80.sock")
	s.expect(1, "wait")
	s.later(100 * time.Millisecond)
	s.receiver("80.sock")
	s.changed("80.sock")
	s.expect(1, "80.sock")
}

func TestDeadSocketIsWaitedFor(t *testing.T) {
	s := newScene(t)
	s.receiver("default.sock")
	dead := filepath.Join(s.dir, "80.sock")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: dead}); err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	s.later(time.Second)
	s.want(1, four)
	s.expect(1, "wait") // its daemon restarts: not default.sock
	s.receiver("80.sock")
	s.changed("80.sock")
	s.expect(1, "80.sock")
	os.Remove(dead)
	s.changed("80.sock")
	s.expect(1, "wait")
	s.later(time.Second)
	s.expect(1, "default.sock")
}

func TestStuckIsTriedAgain(t *testing.T) {
	s := newScene(t)
	s.want(1, privsep.Key{Target: 1})
	s.expect(1, "wait")
	r := s.receiver("one.sock")
	s.changed("one.sock")
	s.expect(1, "one.sock")
	if err := r.Shutdown(); err != nil {
		t.Fatal(err)
	}
	sink := s.r.sinkByID[s.routes[1]]
	s.r.stuck(privsep.Message{ID: sink.id, Value: sink.version + 1})
	s.expect(1, "one.sock") // about another version: late
	s.r.stuck(privsep.Message{ID: sink.id, Value: sink.version})
	s.expect(1, "wait")
	before := s.said
	s.r.stuck(privsep.Message{ID: sink.id, Value: sink.version})
	if s.said != before {
		t.Error("a socket that has just failed is tried again at once")
	}
	s.later(firstRetry + time.Millisecond)
	s.expect(1, "one.sock") // for all that connect can tell
	r.Close()
	s.changed("one.sock")
	s.expect(1, "wait")
}

func TestMissingDirectoryIsNoTarget(t *testing.T) {
	s := newScene(t)
	s.want(1, privsep.Key{Target: 2, Listener: 2, Port: 80, Family: privsep.IPv4})
	s.expect(1, "none")
	if len(s.r.routes) != 0 {
		t.Errorf("%d routes remembered", len(s.r.routes))
	}
	if err := os.Mkdir(filepath.Join(s.dir, "b"), 0o755); err != nil {
		t.Fatal(err)
	}
	s.want(1, privsep.Key{Target: 2, Listener: 2, Port: 80, Family: privsep.IPv4})
	s.expect(1, "wait")
	if err := os.Remove(filepath.Join(s.dir, "b")); err != nil {
		t.Fatal(err)
	}
	s.r.changed(filepath.Join(s.dir, "b"))
	s.expect(1, "none")
}

func TestHostileWant(t *testing.T) {
	s := newScene(t)
	for name, k := range map[string]privsep.Key{
		"a target that is not there":   {Target: 3},
		"a listener that is not there": {Target: 2, Listener: 3},
	} {
		if err := s.r.want(privsep.Message{ID: 9, Key: k}); !errors.Is(err, privsep.ErrProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s.want(1, four)
	if err := s.r.want(privsep.Message{ID: 1, Key: six}); !errors.Is(err, privsep.ErrProtocol) {
		t.Errorf("the same route twice: %v", err)
	}
	for id := uint32(2); len(s.r.routes) < maxRoutes; id++ {
		s.want(id, privsep.Key{Target: 1})
	}
	if err := s.r.want(privsep.Message{ID: 1 << 30, Key: four}); !errors.Is(err, privsep.ErrProtocol) {
		t.Errorf("routes without end: %v", err)
	}
	for id := range uint32(maxRoutes + 10) {
		s.r.drop(id)
	}
	if n := len(s.r.routes) + len(s.r.sinks) + len(s.r.byPath); n != 0 {
		t.Errorf("%d things remembered after everything was dropped", n)
	}
}
