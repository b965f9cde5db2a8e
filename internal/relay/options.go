package relay

import (
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"socketbox/internal/handoff"
	"socketbox/internal/listen"
	"socketbox/internal/receive"
	"socketbox/internal/rule"
)

// Defaults of Options.
const (
	DefaultConnectTimeout = 5 * time.Second
	DefaultDrain          = 30 * time.Second
)

// Options are what socketbox-relay can be told.
type Options struct {
	Places    []receive.Place      // where to receive
	Receive   handoff.Options      // rights of those sockets, who may send
	Listen    []listen.Description // what to listen on by itself
	Inherited []listen.Passed      // from the service manager: receiving or listening sockets

	Destinations   []Destination // in order; none: loopback at the port that was dialled
	NAT64          string        // prefix; "": no
	NetNS          string        // where the connections are made: "", a path, or one with words
	ConnectTimeout time.Duration // for each destination
	Transparent    bool          // with the client's address as source

	SendProxy   int            // version of the PROXY protocol, 0: none
	AcceptProxy []netip.Prefix // clients that begin with its header

	Max          int // connections at once; 0: as many as there are descriptors for
	MaxPerSource int // of one client; 0: no limit
	Rate         int64
	RateAll      int64 // bytes per second, each way of a connection and in all; 0: no limit

	IdleTimeout time.Duration // 0: none
	Lifetime    time.Duration // 0: no limit
	KeepAlive   time.Duration // idle time before the first probe; 0: the kernel's
	Drain       time.Duration // from TERM to the end
	Threads     int           // 0: one per processor, at most 4

	LogConnections bool
	Log            *slog.Logger
}

// settings are the options in the form that connections use.
type settings struct {
	destinations []Destination
	nat64        nat64
	netns        rule.Template // if it has words
	fixedNetNS   string        // if not; home
	needFacts    bool          // for each connection, before it goes anywhere
}

func (o *Options) settings() (s settings, err error) {
	s.destinations = o.Destinations
	switch {
	case o.NAT64 != "" && len(o.Destinations) > 0:
		return s, fmt.Errorf("--nat64 takes the destination from the address that was dialled: it excludes --to")
	case o.NAT64 != "":
		if s.nat64, err = parseNAT64(o.NAT64); err != nil {
			return s, fmt.Errorf("--nat64: %w", err)
		}
		s.destinations = []Destination{newDestination("nat64", toNAT64)}
	case len(o.Destinations) == 0:
		s.destinations = []Destination{newDestination("the port that was dialled", toDialled)}
	}
	if err := s.parseNetNS(o.NetNS); err != nil {
		return s, fmt.Errorf("--netns: %w", err)
	}
	s.needFacts = o.LogConnections || o.MaxPerSource > 0 || o.SendProxy > 0 || len(o.AcceptProxy) > 0 || o.Transparent ||
		s.netns != rule.Template{}
	for i := range s.destinations {
		s.needFacts = s.needFacts || s.destinations[i].needsFacts()
	}
	return s, nil
}

// parseNetNS reads a bare name, as ip-netns(8) has it, or a path.
func (s *settings) parseNetNS(text string) error {
	if text == "" {
		return nil
	}
	template, err := rule.ParseTemplate(listen.NamespacePath(text))
	if err != nil {
		return err
	}
	if template.Keys() == 0 {
		s.fixedNetNS = template.String()
	} else {
		s.netns = template
	}
	return nil
}

// Check returns what is wrong in options that parsing them one by one can't
// see.
func (o *Options) Check() error {
	_, err := o.settings()
	return err
}
