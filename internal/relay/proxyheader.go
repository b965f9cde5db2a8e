package relay

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/pires/go-proxyproto"
	"golang.org/x/sys/unix"

	"socketbox/internal/peer"
)

const (
	// headerTime is how long a trusted proxy may take to send its header.
	headerTime = 5 * time.Second
	// maxHeader bounds a header that is accepted: longer ones have TLVs
	// (certificates, as a rule) that nothing here passes on.
	maxHeader = 4096
	// maxHeader1 is the longest header of version 1, the line's end included.
	maxHeader1 = 107
)

// proxied is what a trusted proxy says of its client.
type proxied struct {
	via  string // the proxy
	tlvs []proxyproto.TLV
}

// passedOn are the TLVs that go from an accepted header into the one sent.
var passedOn = map[proxyproto.PP2Type]bool{
	proxyproto.PP2_TYPE_AUTHORITY: true,
	proxyproto.PP2_TYPE_NETNS:     true,
	proxyproto.PP2_TYPE_UNIQUE_ID: true,
}

// trusts tells whether a client is a proxy whose header is believed, and must
// be there: guessing would let everybody forge one.
func (r *relay) trusts(f *peer.Facts) bool {
	for _, p := range r.o.AcceptProxy {
		if p.Contains(f.Remote.Addr()) {
			return true
		}
	}
	return false
}

// readHeader looks for the header in what has come so far. It takes the header
// off the socket and leaves what follows.
func (c *connection) readHeader() {
	var b [maxHeader]byte
	n, errno := receiveBytes(c.client.fd, b[:], unix.MSG_PEEK)
	switch {
	case errno == unix.EAGAIN, errno == unix.EINTR:
		return
	case errno != 0:
		c.fail("can't read the PROXY header", errno)
		return
	case n == 0:
		c.w.attrs.gone.Add(1)
		c.end("client ended before its PROXY header", true)
		return
	}
	size, err := headerSize(b[:n])
	if err == nil && size > n && c.client.hup {
		err = errors.New("it ends in the middle")
	}
	if err != nil {
		c.fail("bad PROXY header", err)
		return
	}
	if size == 0 || size > n {
		return // the rest is an event
	}
	if err := c.believe(b[:size]); err != nil {
		c.fail("bad PROXY header", err)
		return
	}
	receiveBytes(c.client.fd, b[:size], 0)
	c.client.readable = true
	c.w.timers.set(c, 0)
	c.enter()
}

// headerSize returns how long the header that b begins with is, 0 if that
// can't be told yet.
func headerSize(b []byte) (int, error) {
	one, two := proxyproto.SIGV1, proxyproto.SIGV2
	switch {
	case bytes.HasPrefix(b, two) && len(b) >= 16:
		size := 16 + int(binary.BigEndian.Uint16(b[14:16]))
		if size > maxHeader {
			return 0, fmt.Errorf("%d bytes, more than %d", size, maxHeader)
		}
		return size, nil
	case bytes.HasPrefix(b, one):
		if i := bytes.Index(b, []byte("\r\n")); i >= 0 && i+2 <= maxHeader1 {
			return i + 2, nil
		}
		if len(b) >= maxHeader1 {
			return 0, fmt.Errorf("no end of line within %d bytes", maxHeader1)
		}
		return 0, nil
	case bytes.HasPrefix(one, b), bytes.HasPrefix(two, b), bytes.HasPrefix(b, two):
		return 0, nil
	}
	return 0, errors.New("the client is a trusted proxy (--accept-proxy) and did not begin with one")
}

// believe makes the header's addresses those of the connection. LOCAL and
// UNKNOWN leave the socket's own.
func (c *connection) believe(b []byte) error {
	h, err := proxyproto.Read(bufio.NewReader(bytes.NewReader(b)))
	if err != nil {
		return err
	}
	c.header = &proxied{via: c.facts.Client()}
	if h.Version == 2 {
		if c.header.tlvs, err = h.TLVs(); err != nil {
			return err
		}
	}
	if h.Command.IsLocal() || h.TransportProtocol.IsUnspec() {
		return nil
	}
	from, to, ok := h.TCPAddrs()
	if !ok {
		return nil // of a Unix client: it has no address to believe
	}
	c.facts.Remote = unmapped(from)
	c.facts.Local = unmapped(to)
	c.facts.Zone = ""
	c.facts.Source = peer.SourceOf(c.facts.Remote.Addr())
	return nil
}

func unmapped(a *net.TCPAddr) netip.AddrPort {
	p := a.AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

// sendHeader sends the header, if one is asked for, as the first bytes.
func (c *connection) sendHeader() error {
	version := c.w.relay.o.SendProxy
	if version == 0 {
		return nil
	}
	b, err := c.makeHeader(byte(version))
	if err != nil {
		return err
	}
	n, errno := send(c.destination.fd, b)
	if errno == unix.EAGAIN || errno == unix.EINTR {
		n, errno = 0, 0
	}
	if errno != 0 {
		return errno
	}
	// A fresh socket has room for it; if not, the rest goes first.
	if n < len(b) {
		c.out.rest = b[n:]
	}
	return nil
}

// makeHeader builds the header for the destination.
func (c *connection) makeHeader(version byte) ([]byte, error) {
	h := &proxyproto.Header{Version: version, Command: proxyproto.LOCAL}
	if c.facts.Network == peer.TCP {
		h = proxyproto.HeaderProxyFromAddrs(version, net.TCPAddrFromAddrPort(c.facts.Remote), net.TCPAddrFromAddrPort(c.facts.Local))
	}
	if version == 1 && h.TransportProtocol.IsUnspec() {
		return []byte("PROXY UNKNOWN\r\n"), nil
	}
	if version == 2 {
		if err := h.SetTLVs(c.makeTLVs()); err != nil {
			return nil, err
		}
	}
	return h.Format()
}

// makeTLVs passes on what an accepted header had, and gives the connection an
// id, the one in the log, if it has none.
func (c *connection) makeTLVs() []proxyproto.TLV {
	var tlvs []proxyproto.TLV
	if c.header != nil {
		for _, t := range c.header.tlvs {
			if passedOn[t.Type] {
				tlvs = append(tlvs, t)
			}
			if t.Type == proxyproto.PP2_TYPE_UNIQUE_ID {
				c.id = hex.EncodeToString(t.Value)
			}
		}
	}
	if c.id == "" {
		var random [8]byte
		rand.Read(random[:])
		c.id = hex.EncodeToString(random[:])
		tlvs = append(tlvs, proxyproto.TLV{Type: proxyproto.PP2_TYPE_UNIQUE_ID, Value: random[:]})
	}
	return tlvs
}
