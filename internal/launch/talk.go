package launch

import (
	"encoding/json"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"socketbox/internal/fdpass"
	"socketbox/internal/inetd/spawn"
	"socketbox/internal/privsep/isolate"
)

// The conversation between supervisor and stage, over a SOCK_SEQPACKET pair:
//
//	supervisor                         stage
//	order, descriptors ─────────────►
//	            ◄──── report: a descriptor (notifications, …), or a note
//	            ◄──── report: ready
//	go ─────────────────────────────►
//	            ◄──── end of file: exec has closed the pair, or
//	            ◄──── report: failed
//
// Both ends are one program; still each side bounds what it reads.

// stageFD is the stage's end of the pair.
const stageFD = 3

// maxTalk bounds a packet. An order holds no more than flags did.
const maxTalk = 128 << 10

// order tells the stage what to do. Its descriptors are those that the fields
// count, in this order.
type order struct {
	Path string // of the program; argv and environment are the stage's own

	NetNS   int  // 1: a descriptor of the namespace to enter
	Sockets int  // listening sockets to pass on
	FreshNS bool // the network namespace is new: make it fit
	Mapped  bool // the user namespace is new: we have been given all capabilities

	Filter     bool // install the seccomp filter and report its descriptor
	NoNewPrivs bool

	User      *spawn.Credential
	KeepCaps  capabilitySet
	DropCaps  bool
	Limits    []spawn.Limit
	Chdir     string
	Isolate   isolate.Options
	FDs       []int    // the numbers of Sockets
	ListenEnv []string // variables; LISTEN_PID goes with LISTEN_FDS
}

// What a report is about.
const (
	reportNote     = "note"     // Text is for the log
	reportFilter   = "filter"   // a descriptor: seccomp notifications
	reportReady    = "ready"    // waiting for go
	reportFailed   = "failed"   // the stage ends, with Code
	reportExecuted = "executed" // never sent: what the end of file means
)

// report is what the stage says.
type report struct {
	About string
	Text  string
	Hint  string
	Code  int // of reportFailed: what the launcher exits with
	fd    int // -1: none; the receiver owns it
}

func send(sock int, message any, fds ...int) error {
	text, err := json.Marshal(message)
	if err != nil {
		return err
	}
	if len(text) > maxTalk {
		return errors.New("what is to be said to the other side is too long")
	}
	return fdpass.Send(sock, text, fds...)
}

// recvOrder is the stage's first act.
func recvOrder(sock int) (order, []int, error) {
	var o order
	buf := make([]byte, maxTalk)
	m, err := fdpass.Recv(sock, buf, fdpass.MaxFDs, 0)
	if err != nil {
		return o, nil, err
	}
	if err := json.Unmarshal(buf[:m.N], &o); err != nil {
		m.Close()
		return o, nil, fmt.Errorf("the supervisor's order: %w", err)
	}
	if len(m.FDs) != o.NetNS+o.Sockets || len(o.FDs) != o.Sockets {
		m.Close()
		return o, nil, fmt.Errorf("the supervisor's order: %d descriptors came, %d are expected", len(m.FDs), o.NetNS+o.Sockets)
	}
	return o, m.FDs, nil
}

// recvReport takes the stage's next report.
func recvReport(sock int) (report, error) {
	r := report{fd: -1}
	buf := make([]byte, maxTalk)
	m, err := fdpass.Recv(sock, buf, 1, 0)
	if errors.Is(err, unix.ECONNRESET) {
		m, err = fdpass.Message{}, nil // closed with our order unread
	}
	if err != nil {
		return r, err
	}
	if m.N == 0 {
		m.Close()
		r.About = reportExecuted
		return r, nil
	}
	if err := json.Unmarshal(buf[:m.N], &r); err != nil {
		m.Close()
		return report{fd: -1}, fmt.Errorf("the stage's report: %w", err)
	}
	r.fd = -1
	if len(m.FDs) == 1 {
		r.fd = m.FDs[0]
	}
	return r, nil
}
