package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/spf13/cobra"

	"socketbox/internal/listen"
	"socketbox/internal/logging"
	"socketbox/internal/receive"
	"socketbox/internal/relay"
)

// flags are the command line as it was typed.
type flags struct {
	sockets                     []string
	ports                       []uint
	dir                         string
	rights                      receive.Rights
	listen, to, accept          []string
	nat64, netns, send          string
	transparent                 bool
	connectTimeout              time.Duration
	max, maxPerSource, threads  int
	rate, rateAll               string
	idle, life, keepAlive, wait time.Duration
	logFormat, logLevel         string
	logConnections              bool
}

func (f *flags) define(c *cobra.Command) {
	s := c.Flags()
	s.SortFlags = false

	s.StringArrayVarP(&f.sockets, "socket", "s", nil, "receive on the Unix socket `PATH` (repeatable)")
	s.UintSliceVarP(&f.ports, "port", "p", nil, "receive what comes to port `N`: on N.sock in the socket directory (repeatable; default: default.sock, whatever has no receiver of its own)")
	s.StringVar(&f.dir, "dir", "", "socket `DIR` (default $SOCKETBOX_DIR; else /run/socketbox, not root: $XDG_RUNTIME_DIR/socketbox)")
	s.StringVar(&f.rights.Mode, "mode", "0660", "`MODE` of the receiving socket, whatever the umask")
	s.StringVar(&f.rights.Group, "group", "", "`GROUP` of the receiving socket (default: as the directory decides)")
	s.StringVar(&f.rights.From, "from", "", "take connections from this `UID` (or user name) only")
	s.StringArrayVarP(&f.listen, "listen", "l", nil, "listen on `ADDRESS` instead, as :80 or unix:/path (repeatable)")

	s.StringArrayVarP(&f.to, "to", "t", nil, "connect to `DESTINATION`: tcp:HOST:PORT, unix:/path, unix:@name, with words in braces (repeatable: tried in order)")
	s.StringVar(&f.netns, "netns", "", "connect inside the network namespace `NAME` (or path, with words in braces)")
	s.StringVar(&f.nat64, "nat64", "", "connect to the IPv4 address in the IPv6 address dialled, behind this `PREFIX` of 96 or 64 bits")
	s.BoolVar(&f.transparent, "transparent", false, "connect with the client's address as source (CAP_NET_ADMIN, and routes)")
	s.DurationVar(&f.connectTimeout, "connect-timeout", relay.DefaultConnectTimeout, "`TIME` for each destination to answer")
	s.StringVar(&f.send, "send-proxy", "", "begin with a PROXY protocol header of `VERSION` v1 or v2")
	s.StringSliceVar(&f.accept, "accept-proxy", nil, "clients from `PREFIX` are proxies and begin with a PROXY header (repeatable)")

	s.IntVarP(&f.max, "max", "m", 0, "relay at most `N` connections at once (0: as many as there are descriptors for)")
	s.IntVar(&f.maxPerSource, "max-per-source", 0, "at most `N` at once for one client: an IPv4 address, an IPv6 /64, a uid (0: no limit)")
	s.StringVar(&f.rate, "rate", "", "at most so many bytes a second each way of a connection, `N[K|M|G]` (default no limit)")
	s.StringVar(&f.rateAll, "rate-all", "", "at most so many bytes a second in all, `N[K|M|G]` (default no limit)")
	s.DurationVar(&f.idle, "idle-timeout", 0, "reset a connection that has moved no byte for this `TIME` (0: never)")
	s.DurationVar(&f.life, "lifetime", 0, "reset a connection after this `TIME` (0: never)")
	s.DurationVar(&f.keepAlive, "keep-alive", 0, "`TIME` without a byte until TCP probes the peer (0: as the kernel has it)")
	s.DurationVar(&f.wait, "drain", relay.DefaultDrain, "`TIME` from TERM until what is still open is reset (0: no limit)")
	s.IntVar(&f.threads, "threads", 0, "work in `N` threads (0: one per processor, at most 4)")

	s.BoolVar(&f.logConnections, "log-connections", false, "log one line per connection")
	s.StringVar(&f.logFormat, "log", "text", "log `FORMAT`: text or json")
	s.StringVar(&f.logLevel, "log-level", "info", "least `LEVEL` to log: debug, info, warn, error")

	complete := func(flag string, values ...string) {
		c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	}
	complete("send-proxy", "v1", "v2")
	complete("log", logging.Formats...)
	complete("log-level", logging.Levels...)
	c.MarkFlagDirname("dir")
}

// run relays what the flags ask for.
func (f *flags) run(c *cobra.Command) error {
	log, err := logging.New(os.Stderr, f.logFormat, f.logLevel, program)
	if err != nil {
		return &usageError{err}
	}
	o := relay.Options{
		NAT64: f.nat64, NetNS: f.netns, Transparent: f.transparent, ConnectTimeout: f.connectTimeout,
		Max: f.max, MaxPerSource: f.maxPerSource, Threads: f.threads,
		IdleTimeout: f.idle, Lifetime: f.life, KeepAlive: f.keepAlive, Drain: f.wait,
		LogConnections: f.logConnections, Log: log,
	}
	if err := f.check(c); err != nil {
		return &usageError{err}
	}
	if err := f.parse(&o); err != nil {
		return &usageError{err}
	}
	o.Inherited = listen.Activation()
	if o.Places, err = f.places(len(o.Inherited) > 0); err != nil {
		return err
	}
	return relay.Run(o)
}

// check refuses values that are out of range and flags that exclude others.
func (f *flags) check(c *cobra.Command) error {
	given := c.Flags().Changed
	switch {
	case given("dir") && len(f.sockets) > 0 && len(f.ports) == 0:
		return errors.New("--socket is a whole path: it excludes --dir")
	case len(f.listen) > 0 && len(f.to) == 0 && f.nat64 == "" && f.netns == "":
		return errors.New("--listen: without --to or --netns it would connect to itself")
	case min(f.max, f.maxPerSource, f.threads) < 0:
		return errors.New("--max, --max-per-source, --threads: want a number from 1, or 0")
	case f.threads > 64:
		return errors.New("--threads: want at most 64")
	case f.connectTimeout <= 0:
		return errors.New("--connect-timeout: want more than 0")
	case min(f.idle, f.life, f.keepAlive, f.wait) < 0:
		return errors.New("--idle-timeout, --lifetime, --keep-alive, --drain: a time can't be negative")
	}
	for _, port := range f.ports {
		if port < 1 || port > 65535 {
			return errors.New("--port: want 1 to 65535")
		}
	}
	for _, path := range f.sockets {
		if path == "" {
			return errors.New("--socket: the path is empty")
		}
	}
	return nil
}

// parse reads the flags that have a form of their own.
func (f *flags) parse(o *relay.Options) (err error) {
	if o.Receive, err = f.rights.Parse(); err != nil {
		return err
	}
	for _, text := range f.listen {
		d, err := listen.ParseAddress(text)
		if err != nil {
			return fmt.Errorf("--listen: %w", err)
		}
		o.Listen = append(o.Listen, d)
	}
	for _, text := range f.to {
		d, err := relay.ParseDestination(text)
		if err != nil {
			return fmt.Errorf("--to: %w", err)
		}
		o.Destinations = append(o.Destinations, d)
	}
	for _, text := range f.accept {
		prefix, err := parsePrefix(text)
		if err != nil {
			return fmt.Errorf("--accept-proxy %q: want an address or a prefix, as 192.0.2.0/24", text)
		}
		o.AcceptProxy = append(o.AcceptProxy, prefix)
	}
	return f.parseNumbers(o)
}

func (f *flags) parseNumbers(o *relay.Options) (err error) {
	switch f.send {
	case "":
	case "v1", "v2":
		o.SendProxy = int(f.send[1] - '0')
	default:
		return fmt.Errorf("--send-proxy %q: want v1 or v2", f.send)
	}
	if f.rate != "" {
		if o.Rate, err = relay.ParseBytesRate(f.rate); err != nil {
			return fmt.Errorf("--rate: %w", err)
		}
	}
	if f.rateAll != "" {
		if o.RateAll, err = relay.ParseBytesRate(f.rateAll); err != nil {
			return fmt.Errorf("--rate-all: %w", err)
		}
	}
	return o.Check()
}

// parsePrefix reads a prefix, or an address as a prefix of its own.
func parsePrefix(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return a.Prefix(a.BitLen())
	}
	return netip.ParsePrefix(text)
}

// places returns where to receive: default.sock, unless anything else is said
// or inherited.
func (f *flags) places(inherited bool) ([]receive.Place, error) {
	var places []receive.Place
	add := func(socket string, port uint16) error {
		place, err := receive.PlaceFor(socket, port, f.dir, os.Getenv)
		places = append(places, place)
		return err
	}
	for _, path := range f.sockets {
		if err := add(path, 0); err != nil {
			return nil, err
		}
	}
	for _, port := range f.ports {
		if err := add("", uint16(port)); err != nil {
			return nil, err
		}
	}
	if len(places) == 0 && len(f.listen) == 0 && !inherited {
		if err := add("", 0); err != nil {
			return nil, err
		}
	}
	return places, nil
}
