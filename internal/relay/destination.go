package relay

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"

	"socketbox/internal/peer"
	"socketbox/internal/rule"
)

// Destination is one --to: where connections go. Words in braces stand for
// facts of the connection.
type Destination struct {
	text string

	host, port string        // TCP, with words
	path       rule.Template // Unix, absolute
	abstract   string        // Unix, "@…", with words
	kind       kind

	down *atomic.Int64 // in the workers' time: it has failed, others go first
}

type kind int

const (
	toDialled kind = iota // no --to: loopback, the port that was dialled
	toTCP
	toPath
	toAbstract
	toNAT64
)

func newDestination(text string, k kind) Destination {
	return Destination{text: text, kind: k, down: new(atomic.Int64)}
}

// ParseDestination reads "tcp:HOST:PORT", "HOST:PORT", "unix:/path" or
// "unix:@name" with the words {local} {port} {remote} {listener} {family}.
func ParseDestination(text string) (Destination, error) {
	d := newDestination(text, toTCP)
	var err error
	switch name, isUnix := strings.CutPrefix(text, "unix:"); {
	case isUnix && strings.HasPrefix(name, "@"):
		d.kind, d.abstract = toAbstract, name
		err = checkWords(name)
	case isUnix:
		d.kind = toPath
		if d.path, err = rule.ParseTemplate(name); err == nil && d.path.IsDir() {
			err = fmt.Errorf("path %q is a directory, expected a socket", name)
		}
	case strings.HasPrefix(text, "/"):
		err = fmt.Errorf("a Unix socket is written \"unix:%s\"", text)
	default:
		err = d.parseTCP(strings.TrimPrefix(text, "tcp:"))
	}
	if err != nil {
		return Destination{}, fmt.Errorf("destination %q: %w", text, err)
	}
	return d, nil
}

// parseTCP splits at the last colon: an IPv6 address may, and a word that
// becomes one can, do without brackets.
func (d *Destination) parseTCP(text string) error {
	at := strings.LastIndexByte(text, ':')
	if at < 0 {
		return errors.New("want HOST:PORT, unix:/path or unix:@name")
	}
	d.host, d.port = text[:at], text[at+1:]
	if inner, ok := strings.CutPrefix(d.host, "["); ok {
		if d.host, ok = strings.CutSuffix(inner, "]"); !ok {
			return errors.New(`"[" without "]"`)
		}
	}
	if err := checkWords(text); err != nil {
		return err
	}
	if d.host == "" {
		return errors.New("the host is missing")
	}
	if !strings.Contains(d.port, "{") {
		if _, err := parsePort(d.port); err != nil {
			return err
		}
	}
	if !strings.Contains(d.host, "{") {
		return checkHost(d.host)
	}
	return nil
}

// checkWords refuses unknown words and stray braces.
func checkWords(text string) error {
	_, err := rule.ParseTemplate("/" + strings.ReplaceAll(text, "/", ""))
	if err != nil {
		err = errors.Unwrap(err)
	}
	return err
}

// hostName is what a resolver may be asked for: a listener's name, which a
// sender chooses, must not become anything else.
var hostName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_.])?$`)

func checkHost(host string) error {
	if _, err := netip.ParseAddr(host); err == nil || hostName.MatchString(host) {
		return nil
	}
	return fmt.Errorf("%q is no address and no name", host)
}

func parsePort(text string) (uint16, error) {
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		return 0, fmt.Errorf("port %q: want 1 to 65535", text)
	}
	return uint16(port), nil
}

// String returns the destination as it was given.
func (d Destination) String() string { return d.text }

// fixed tells whether the destination is the same for all connections.
func (d *Destination) fixed() bool {
	return d.kind != toDialled && d.kind != toNAT64 && !strings.Contains(d.text, "{")
}

// needsFacts tells whether something of the connection decides where it goes.
func (d *Destination) needsFacts() bool { return !d.fixed() }

// aim is where one connection is to go: a Unix address, addresses to try in
// this order, or a name that still has to be looked up.
type aim struct {
	unix string
	addr []netip.Addr
	host string
	port uint16
}

// aim fills in the words for one connection.
func (d *Destination) aim(f *peer.Facts, listener string, n nat64) (aim, error) {
	switch d.kind {
	case toDialled:
		return aimDialled(f)
	case toNAT64:
		if f.Network != peer.TCP || f.Local.Port() == 0 {
			return aim{}, errors.New("a client of a Unix socket has dialled no address")
		}
		v4, err := n.embedded(f.Local.Addr())
		return aim{addr: []netip.Addr{v4}, port: f.Local.Port()}, err
	case toPath:
		return aim{unix: d.path.Expand(ruleFacts(f, listener))}, nil
	case toAbstract:
		return aim{unix: fill(d.abstract, f, listener)}, nil
	}
	return d.aimTCP(f, listener)
}

// aimDialled is loopback at the port that was dialled, in the client's family
// first: a daemon may listen on either.
func aimDialled(f *peer.Facts) (aim, error) {
	if f.Network != peer.TCP {
		return aim{}, errors.New("a client of a Unix socket has dialled no port: name a destination with --to")
	}
	loopback := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	if f.Local.Addr().Is6() {
		loopback[0], loopback[1] = loopback[1], loopback[0]
	}
	return aim{addr: loopback, port: f.Local.Port()}, nil
}

func (d *Destination) aimTCP(f *peer.Facts, listener string) (a aim, err error) {
	if a.port, err = parsePort(fill(d.port, f, listener)); err != nil {
		return a, err
	}
	host := fill(d.host, f, listener)
	if addr, err := netip.ParseAddr(host); err == nil {
		a.addr = []netip.Addr{addr.Unmap()}
		return a, nil
	}
	a.host = host
	return a, checkHost(host)
}

// fill replaces the words in text that is no path.
func fill(text string, f *peer.Facts, listener string) string {
	if !strings.Contains(text, "{") {
		return text
	}
	address := func(a netip.Addr) string {
		if !a.IsValid() {
			return rule.Unix
		}
		return f.WithZone(a).String()
	}
	return strings.NewReplacer(
		"{port}", strconv.Itoa(int(f.Local.Port())),
		"{local}", address(f.Local.Addr()),
		"{remote}", address(f.Remote.Addr()),
		"{family}", rule.FamilyOf(f.Local.Addr()),
		"{listener}", listener,
	).Replace(text)
}

// ruleFacts are the facts as paths show them.
func ruleFacts(f *peer.Facts, listener string) rule.Facts {
	return rule.Facts{
		Listener: listener, Port: f.Local.Port(),
		Local: f.Local.Addr(), Remote: f.Remote.Addr(), Family: rule.FamilyOf(f.Local.Addr()),
	}
}
