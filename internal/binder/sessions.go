package binder

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/dispatch"
	"socketbox/internal/privsep"
	"socketbox/internal/sockdiag"
)

// SessionsVersion is the version of what `socketbox sessions --json` prints: fields
// are added without another one, none goes or changes its meaning.
const SessionsVersion = 1

// Sessions are the connections that have been handed off and live, as `socketbox
// sessions --json` shows them; the schema is docs/schema/sessions.json.
type Sessions struct {
	Version  int             `json:"version"`
	Sessions []SessionStatus `json:"sessions"`
	Unseen   []string        `json:"unseen"` // listeners whose network namespace can't be looked into
}

// SessionStatus is one of them. What only the dispatcher knew is there where the
// rule limits sessions, for nobody else remembers it.
type SessionStatus struct {
	Client    string     `json:"client"` // address and port
	Local     string     `json:"local"`  // that the client dialled
	Listener  string     `json:"listener"`
	Rule      *int       `json:"rule,omitempty"`   // number, 0: none; missing: not remembered
	Place     string     `json:"place,omitempty"`  // of the rule
	Target    string     `json:"target,omitempty"` // missing: not remembered
	Path      string     `json:"path,omitempty"`   // of the receiver, while it is one that the dispatcher knows
	Since     *time.Time `json:"since,omitempty"`  // hand-off; missing: not remembered
	Age       float64    `json:"age,omitempty"`    // seconds
	State     string     `json:"state"`            // of the TCP connection, as ss has it
	Received  uint64     `json:"received"`         // bytes from the client
	Sent      uint64     `json:"sent"`             // bytes that the client has acknowledged
	RTT       float64    `json:"rtt"`              // seconds
	Idle      float64    `json:"idle"`             // seconds since data came or went
	Inode     uint32     `json:"inode"`            // of the socket, as in /proc/PID/fd
	Family    uint8      `json:"family"`           // of the socket: 2 IPv4, 10 IPv6
	Interface uint32     `json:"interface,omitempty"`
	Cookie    uint64     `json:"cookie"`           // SO_COOKIE
	Namespace uint64     `json:"namespace_cookie"` // SO_NETNS_COOKIE
	Error     string     `json:"error,omitempty"`  // why --kill did not end it
}

// snapshot is what a list of sessions is made from, apart from the binder's own
// goroutine.
type snapshot struct {
	cfg        *table
	places     map[*diag]*places
	paths      map[uint32]string // of sinks, by ID
	remembered map[uint64]dispatch.Session
	unseen     []string
}

func (b *binder) snapshot() *snapshot {
	s := &snapshot{cfg: b.active, places: map[*diag]*places{}, paths: map[uint32]string{}, remembered: map[uint64]dispatch.Session{}, unseen: []string{}}
	for _, l := range b.active.listeners {
		d := b.diagOf(l)
		if d == nil {
			if l.description.Network != "unix" {
				s.unseen = append(s.unseen, l.description.Name)
			}
			continue
		}
		if s.places[d] == nil {
			s.places[d] = newPlaces()
		}
		s.places[d].add(l)
	}
	for _, sink := range b.resolver.sinks {
		s.paths[sink.id] = sink.name
	}
	if b.tracker.file != nil {
		b.tracker.file.Each(func(r *dispatch.Session) { s.remembered[r.Cookie] = *r })
	}
	return s
}

// list asks the kernel for the sockets. It may take a while where there are many.
func (s *snapshot) list() (*Sessions, error) {
	all := &Sessions{Version: SessionsVersion, Sessions: []SessionStatus{}, Unseen: s.unseen}
	for d, places := range s.places {
		err := d.dump(sockdiag.Query{States: sockdiag.Connections, Info: true}, func(socket *sockdiag.Socket) error {
			if socket.Inode == 0 { // not accepted yet, or closed by its daemon
				return nil
			}
			r, known := s.remembered[socket.Cookie]
			l := places.of(socket.Local)
			switch {
			case known && r.Since == 0: // on hold
				return nil
			case known:
				l = s.cfg.listener(r.Listener, l)
			case l == nil:
				return nil
			}
			all.Sessions = append(all.Sessions, s.session(d, socket, l, &r, known))
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(all.Sessions, oldestFirst)
	return all, nil
}

// oldestFirst puts sessions in the order of their listeners, then of their hand-off;
// those of unknown age before the others. Cookies don't tell the age: each processor
// gives out its own.
func oldestFirst(a, b SessionStatus) int {
	return cmp.Or(cmp.Compare(a.Listener, b.Listener), a.handedOff().Compare(b.handedOff()), cmp.Compare(a.Cookie, b.Cookie))
}

// handedOff is the zero time where it is not remembered.
func (s *SessionStatus) handedOff() time.Time {
	if s.Since == nil {
		return time.Time{}
	}
	return *s.Since
}

// listener returns the one with this ID, else l.
func (t *table) listener(id uint32, l *listener) *listener {
	for _, own := range t.listeners {
		if own.id == id {
			return own
		}
	}
	return l
}

func (s *snapshot) session(d *diag, socket *sockdiag.Socket, l *listener, r *dispatch.Session, known bool) SessionStatus {
	st := SessionStatus{
		Client: unmapped(socket.Remote).String(), Local: unmapped(socket.Local).String(), State: socket.State.String(),
		Inode: socket.Inode, Family: socket.Family, Interface: socket.Interface, Cookie: socket.Cookie, Namespace: d.namespace,
	}
	if i := socket.Info; i != nil {
		st.Received, st.Sent, st.RTT, st.Idle = i.Received, i.Sent, i.RTT.Seconds(), i.Idle.Seconds()
	}
	if l != nil {
		st.Listener = l.description.Name
	}
	switch {
	case known:
		s.recall(&st, r)
	case l != nil:
		s.deduce(&st, l)
	}
	return st
}

// recall says what the dispatcher remembers; none of it is believed to be in range.
func (s *snapshot) recall(st *SessionStatus, r *dispatch.Session) {
	rules := s.cfg.plan.Table
	if i := int(r.Rule); i >= 0 && i < len(rules.Rules) {
		s.setRule(st, i)
	}
	if i := int(r.Target); i >= 0 && i < len(rules.Targets) {
		st.Target = rules.Targets[i].Name
	}
	st.Path = s.paths[r.Sink]
	if r.Since > 0 {
		since := time.Unix(0, r.Since)
		st.Since, st.Age = &since, time.Since(since).Seconds()
	}
}

// deduce says what follows from the listener alone, where one rule takes all that
// it accepts.
func (s *snapshot) deduce(st *SessionStatus, l *listener) {
	for i, own := range s.cfg.listeners {
		if own.id != l.id {
			continue
		}
		index, ok := dispatch.SoleRule(s.cfg.plan.Table, i)
		switch {
		case !ok:
		case index < 0:
			none := 0
			st.Rule, st.Target = &none, s.cfg.plan.Table.Targets[0].Name
		default:
			s.setRule(st, index)
			st.Target = s.cfg.plan.Table.Targets[s.cfg.plan.Table.Rules[index].Target].Name
		}
	}
}

func (s *snapshot) setRule(st *SessionStatus, index int) {
	number := index + 1
	st.Rule, st.Place = &number, placeOf(s.cfg.cfg, s.cfg.plan.Table.Rules[index].Line)
}

// sessions answers a "sessions" request. The list is made here, beside the
// binder's loop.
func (c *client) sessions() bool {
	taken := make(chan *snapshot, 1)
	c.b.calls <- func() { taken <- c.b.snapshot() }
	list, err := (<-taken).list()
	if err != nil {
		return c.answer(err, nil)
	}
	fd, err := sealedJSON(list)
	if err != nil {
		return c.answer(err, nil)
	}
	defer unix.Close(fd)
	return c.answer(nil, []int{fd})
}

// lendDiag answers a "diag" request with a socket of the namespace with that
// cookie: by it its caller, if he has the right, finds the namespace.
func (c *client) lendDiag(cookie uint64) bool {
	type result struct {
		fd  int
		err error
	}
	results := make(chan result, 1)
	c.b.calls <- func() {
		d := c.b.diags[cookie]
		if d == nil {
			results <- result{-1, fmt.Errorf("no listener in a network namespace with the cookie %d", cookie)}
			return
		}
		fd, err := duplicate(d.query)
		results <- result{fd, err}
	}
	r := <-results
	if r.err != nil {
		return c.answer(r.err, nil)
	}
	defer unix.Close(r.fd)
	return c.answer(nil, []int{r.fd})
}

// Selector chooses sessions; what is left out fits every one.
type Selector struct {
	From     []netip.Prefix // the client's address
	Client   netip.AddrPort // the very client
	Listener string
	Rule     int // number; -1: any
	Target   string
}

// Any reports whether s fits every session.
func (s *Selector) Any() bool {
	return s.From == nil && !s.Client.IsValid() && s.Listener == "" && s.Rule < 0 && s.Target == ""
}

// Fits reports whether s chooses st.
func (s *Selector) Fits(st *SessionStatus) bool {
	client, err := netip.ParseAddrPort(st.Client)
	inside := func(p netip.Prefix) bool { return p.Contains(client.Addr()) }
	switch {
	case err != nil,
		s.From != nil && !slices.ContainsFunc(s.From, inside),
		s.Client.IsValid() && s.Client != client,
		s.Listener != "" && s.Listener != st.Listener,
		s.Rule >= 0 && (st.Rule == nil || *st.Rule != s.Rule),
		s.Target != "" && s.Target != st.Target && s.Target != st.Path:
		return false
	}
	return true
}

// FetchSessions returns those sessions of the instance of dir that which chooses.
func FetchSessions(dir string, which Selector) (*Sessions, error) {
	s, err := dial(dir)
	if err != nil {
		return nil, err
	}
	defer s.file.Close()
	return s.sessions(which)
}

func (s *session) sessions(which Selector) (*Sessions, error) {
	fds, err := s.askFor(1, request{Op: "sessions"})
	if err != nil {
		return nil, err
	}
	defer unix.Close(fds[0])
	text, err := privsep.ReadFile(fds[0], maxSessionsText)
	if err != nil {
		return nil, fmt.Errorf("the binder's sessions: %w", err)
	}
	all := &Sessions{}
	if err := json.Unmarshal(text, all); err != nil {
		return nil, fmt.Errorf("the binder's sessions: %w", err)
	}
	all.Sessions = slices.DeleteFunc(all.Sessions, func(st SessionStatus) bool { return !which.Fits(&st) })
	return all, nil
}

// maxSessionsText bounds a list: a million sessions.
const maxSessionsText = 512 << 20
