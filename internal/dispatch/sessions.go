package dispatch

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"socketbox/internal/privsep"
	"socketbox/internal/rule"
)

// Session is a connection of a rule with a limit, from the moment that the rule
// let it in until its socket is gone. It lies in a memory file that the
// dispatcher writes and the binder reads, so that it outlives the dispatcher. Who
// reads it believes nothing: a dispatcher in hostile hands can write anything.
type Session struct {
	Cookie   uint64 // SO_COOKIE of the socket; 0: a free place, or one that is written just now
	Since    int64  // hand-off, Unix, nanoseconds; 0: on hold; AgeUnknown
	Listener uint32 // ID
	Rule     int32
	Target   int32  // -1: one that a reload removed
	Sink     uint32 // 0: of an earlier table
	remote   [16]byte
	local    [16]byte

	RemotePort uint16
	LocalPort  uint16
	Family     privsep.Family
	_          [3]byte
}

// AgeUnknown is the Since of a session that began before anybody remembered.
const AgeUnknown = -1

const sessionSize = int(unsafe.Sizeof(Session{}))

// NewSession is a session that nobody has remembered so far.
func NewSession(cookie uint64, listener uint32, remote, local netip.AddrPort) Session {
	s := Session{
		Cookie: cookie, Since: AgeUnknown, Listener: listener, Rule: -1, Target: -1,
		remote: pack(remote.Addr()), local: pack(local.Addr()), RemotePort: remote.Port(), LocalPort: local.Port(),
	}
	s.Family = privsep.IPv6
	if remote.Addr().Unmap().Is4() {
		s.Family = privsep.IPv4
	}
	return s
}

// Remote is the client's address, unmapped.
func (s *Session) Remote() netip.AddrPort {
	return netip.AddrPortFrom(unpack(s.remote), s.RemotePort)
}

// Local is the address that the client dialled, invalid where no rule and no
// path needed it.
func (s *Session) Local() netip.AddrPort { return netip.AddrPortFrom(unpack(s.local), s.LocalPort) }

// Sessions is the file, mapped: a head, and as many places as there may be
// sessions. Pages that nobody has written to take no memory.
type Sessions struct {
	mapped []byte
	used   *uint32 // places that ever were in use; the others are free
	places []Session
}

const (
	sessionsHead = 64
	sessionsSize = sessionsHead + rule.MaxSessions*sessionSize
)

// NewSessionsFile returns an empty memory file for sessions, whose size can't
// change any more. The caller owns it.
func NewSessionsFile() (int, error) { return newFile("socketbox-sessions", sessionsSize) }

// MapSessions maps a file of sessions; fd stays the caller's.
func MapSessions(fd int) (*Sessions, error) {
	b, err := mapFile(fd, sessionsSize)
	if err != nil {
		return nil, fmt.Errorf("map sessions: %w", err)
	}
	return &Sessions{
		mapped: b, used: (*uint32)(unsafe.Pointer(&b[0])),
		places: unsafe.Slice((*Session)(unsafe.Pointer(&b[sessionsHead])), rule.MaxSessions),
	}, nil
}

// Each gives a copy of every session to do, while the dispatcher goes on writing.
func (s *Sessions) Each(do func(*Session)) {
	used := min(atomic.LoadUint32(s.used), rule.MaxSessions)
	for i := range s.places[:used] {
		p := &s.places[i]
		cookie := atomic.LoadUint64(&p.Cookie)
		if cookie == 0 {
			continue
		}
		copied := *p
		if copied.Cookie = cookie; atomic.LoadUint64(&p.Cookie) == cookie {
			do(&copied)
		}
	}
}

// EncodeSessions makes the content of a Sessions message with the Value
// Foreign; DecodeSessions of the same build reads it.
func EncodeSessions(all []Session) []byte {
	if len(all) == 0 {
		return nil
	}
	return bytes.Clone(unsafe.Slice((*byte)(unsafe.Pointer(&all[0])), len(all)*sessionSize))
}

// MaxForeign bounds the size of such a file.
const MaxForeign = rule.MaxSessions * sessionSize

// DecodeSessions reads what EncodeSessions wrote.
func DecodeSessions(b []byte) ([]Session, error) {
	if len(b)%sessionSize != 0 || len(b) > MaxForeign {
		return nil, fmt.Errorf("sessions: %d bytes", len(b))
	}
	all := make([]Session, len(b)/sessionSize)
	if len(all) > 0 {
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&all[0])), len(b)), b)
	}
	return all, nil
}

// register is the dispatcher's side of the file: it finds sessions by cookie.
type register struct {
	file  *Sessions
	place map[uint64]uint32
	free  []uint32
}

// openRegister takes up what the dispatcher before has left in the file.
func openRegister(fd int) (*register, error) {
	file, err := MapSessions(fd)
	if err != nil {
		return nil, err
	}
	if *file.used > rule.MaxSessions {
		return nil, errors.New("map sessions: the file is damaged")
	}
	r := &register{file: file, place: map[uint64]uint32{}}
	for i := range file.places[:*file.used] {
		p := &file.places[i]
		_, twice := r.place[p.Cookie]
		if p.Cookie == 0 || twice || p.Since == 0 { // or it died with the dispatcher that had it on hold
			p.Cookie = 0
			r.free = append(r.free, uint32(i))
			continue
		}
		p.Sink = 0 // numbers of the dispatcher before
		r.place[p.Cookie] = uint32(i)
	}
	return r, nil
}

// find returns the session with a cookie, nil if there is none.
func (r *register) find(cookie uint64) *Session {
	i, ok := r.place[cookie]
	if !ok {
		return nil
	}
	return &r.file.places[i]
}

// add remembers s; false if there is no room.
func (r *register) add(s Session) bool {
	i := *r.file.used
	if n := len(r.free); n > 0 {
		i = r.free[n-1]
		r.free = r.free[:n-1]
	} else if i == rule.MaxSessions {
		return false
	}
	p := &r.file.places[i]
	cookie := s.Cookie
	s.Cookie = 0
	*p = s
	atomic.StoreUint64(&p.Cookie, cookie)
	if i == *r.file.used {
		atomic.StoreUint32(r.file.used, i+1)
	}
	r.place[cookie] = i
	return true
}

// remove forgets a session.
func (r *register) remove(cookie uint64) {
	if i, ok := r.place[cookie]; ok {
		atomic.StoreUint64(&r.file.places[i].Cookie, 0)
		delete(r.place, cookie)
		r.free = append(r.free, i)
	}
}

// left notes that c has been handed off.
func (r *register) left(c *connection) {
	if s := r.find(c.cookie); s != nil {
		s.Target, s.Sink = int32(c.target), c.route.sink.id
		atomic.StoreInt64(&s.Since, time.Now().UnixNano())
	}
}

// cookieOf returns the number of a socket, which no other has while the machine
// is up; 0 if the kernel has none.
func cookieOf(fd int) uint64 {
	var cookie uint64
	size := uint32(unsafe.Sizeof(cookie))
	unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_COOKIE,
		uintptr(unsafe.Pointer(&cookie)), uintptr(unsafe.Pointer(&size)), 0)
	return cookie
}
