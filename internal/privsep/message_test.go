package privsep

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMessagesRoundTrip(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	binder, dispatcher := Channel{FD: pair[0], FromBinder: true}, Channel{FD: pair[1]}
	defer unix.Close(pair[0])
	key := Key{Target: 7, Listener: 3, Place: 1 << 20, Port: 443, Family: IPv6, Local: netip.MustParseAddr("2001:db8::1"), Remote: netip.MustParseAddr("192.0.2.9")}
	for _, m := range []Message{
		{Kind: Table, Table: 1, ID: 1, FDs: []int{0, 1}},
		{Kind: Listener, ID: 9, FDs: []int{0}},
		{Kind: Map, ID: 9, FDs: []int{0}},
		{Kind: Sink, ID: 4, Value: 8, State: Live, FDs: []int{1}},
		{Kind: Sink, ID: 4, Value: 9, State: Absent},
		{Kind: Route, ID: 1, Value: 2},
		{Kind: Drain},
		{Kind: Sessions, Value: Foreign, FDs: []int{0}},
		{Kind: Ended, Ended: []uint64{1, 1 << 63}},
		{Kind: Ended, Ended: make([]uint64, MaxCookies)},
	} {
		roundTrip(t, binder, dispatcher, m)
	}
	for _, m := range []Message{
		{Kind: Ready}, {Kind: Want, Table: 5, ID: 6, Key: key}, {Kind: Stuck, ID: 1, Value: 2}, {Kind: Drop, ID: 3}, {Kind: Installed, ID: 1}, {Kind: Drained},
	} {
		roundTrip(t, dispatcher, binder, m)
	}
	unix.Close(pair[1])
	if _, ok, err := binder.Receive(); ok || err != nil {
		t.Errorf("end of file: %v, %v", ok, err)
	}
}

func roundTrip(t *testing.T, from, to Channel, m Message) {
	t.Helper()
	if err := from.Send(m); err != nil {
		t.Fatal(err)
	}
	got, ok, err := to.Receive()
	if err != nil || !ok {
		t.Fatalf("%+v: %v, %v", m, ok, err)
	}
	if len(got.FDs) != len(m.FDs) {
		t.Errorf("%+v: %d descriptors", m, len(got.FDs))
	}
	for _, fd := range got.FDs {
		unix.Close(fd)
	}
	got.FDs, m.FDs = nil, nil
	if got.Kind != m.Kind || got.Table != m.Table || got.ID != m.ID || got.Value != m.Value || got.State != m.State || got.Key != m.Key || !slices.Equal(got.Ended, m.Ended) {
		t.Errorf("sent %+v, got %+v", m, got)
	}
}

// TestMessagesRefused sends what a dispatcher in hostile hands might.
func TestMessagesRefused(t *testing.T) {
	want := Message{Kind: Want, Key: Key{Family: IPv4}}.append(nil)
	badFamily, badAddress := bytes.Clone(want), bytes.Clone(want)
	badFamily[plainSize+14], badAddress[plainSize+15] = 9, 5
	for name, b := range map[string][]byte{
		"short":                 {1, 2, 3},
		"unknown type":          Message{Kind: 200}.append(nil),
		"the binder's own":      Message{Kind: Table}.append(nil),
		"too long":              append(Message{Kind: Ready}.append(nil), 0),
		"a key that is cut":     want[:len(want)-1],
		"a bad family":          badFamily,
		"a bad address":         badAddress,
		"state out of range":    Message{Kind: Stuck, State: 99}.append(nil),
		"a key where none goes": append(Message{Kind: Stuck}.append(nil), want[plainSize:]...),
	} {
		if _, err := parse(b, false, 0); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := parse(Message{Kind: Ready}.append(nil), false, 1); !errors.Is(err, ErrProtocol) {
		t.Errorf("a descriptor where none goes: %v", err)
	}
	for _, tail := range []int{0, 7, 12, (MaxCookies + 1) * 8} {
		if _, err := parse(append(Message{Kind: Ended}.append(nil), make([]byte, tail)...), true, 0); !errors.Is(err, ErrProtocol) {
			t.Errorf("%d bytes of cookies: %v", tail, err)
		}
	}
	if _, err := parse(Message{Kind: Sink, State: Live}.append(nil), true, 0); !errors.Is(err, ErrProtocol) {
		t.Errorf("live without a socket: %v", err)
	}
}

// FuzzMessage: what is understood encodes to the same bytes again.
func FuzzMessage(f *testing.F) {
	f.Add(Message{Kind: Want, Key: Key{Family: IPv4, Local: netip.MustParseAddr("127.0.0.1")}}.append(nil), false, 0)
	f.Add(Message{Kind: Sink, State: Absent}.append(nil), true, 0)
	f.Add(Message{Kind: Ended, Ended: []uint64{5, 6}}.append(nil), true, 0)
	f.Add([]byte{0xff}, true, 3)
	f.Fuzz(func(t *testing.T, b []byte, fromBinder bool, fds int) {
		m, err := parse(b, fromBinder, fds)
		if err != nil {
			return
		}
		again, err := parse(m.append(nil), fromBinder, fds)
		if err != nil || again.Key != m.Key || again.ID != m.ID || again.State != m.State || !slices.Equal(again.Ended, m.Ended) {
			t.Errorf("%x: %+v, then %+v, %v", b, m, again, err)
		}
	})
}
