package relay

import "golang.org/x/sys/unix"

const (
	// copySize is how much is read at once where bytes are copied: what is
	// less than this costs less to copy than to splice.
	copySize = 16 << 10
	// spliceSize is how much is asked of splice(2) at once; the pipe decides
	// how much comes.
	spliceSize = 1 << 20
	// turn is how much one flow may move before the others get theirs.
	turn = 1 << 20
)

// end is one socket of a connection. readable and writable hold until a call
// says otherwise: epoll is edge-triggered.
type end struct {
	fd       int
	readable bool
	writable bool
	hup      bool // the peer has sent FIN, or worse: read until it is seen
	nodelay  bool // TCP_NODELAY is set, or of no use
	dead     bool // its peer has reset it
}

// flow is one direction of a connection. Bytes that were read and not yet
// written are in its pipe or, where there is none, in rest.
type flow struct {
	from, to *end
	pipe     *pipe
	piped    int    // bytes in the pipe
	rest     []byte // of a short write
	bulk     bool   // full reads came: splice
	eof      bool   // from has ended
	shut     bool   // … and to has been told
	moved    uint64 // bytes written
	bucket   bucket // of --rate
	until    int64  // no byte before, for the sake of a rate; 0: none
}

// what move says of a flow.
type progress int

const (
	waits      progress = iota // for epoll, or for time
	more                       // its turn is over, and there is more
	fromFailed                 // the reading side has failed
	toFailed                   // the writing side has
)

// move moves bytes until one of the ends has to be waited for. err is that of
// the end that has failed.
func (w *worker) move(f *flow) (progress, unix.Errno) {
	for left := turn; ; {
		n, p, errno := w.flush(f)
		if left -= n; p != more {
			return p, errno
		}
		if f.eof {
			return w.finish(f)
		}
		if !f.from.readable {
			return waits, 0
		}
		if left <= 0 {
			return more, 0
		}
		if p, errno := w.fill(f); p != more {
			return p, errno
		}
	}
}

// flush writes what is between the ends. It says more when nothing is left.
func (w *worker) flush(f *flow) (written int, p progress, errno unix.Errno) {
	for f.piped > 0 || len(f.rest) > 0 {
		if !f.to.writable {
			return written, waits, 0
		}
		f.to.hurry(f)
		var n int
		if f.piped > 0 {
			n, errno = splice(f.pipe.r, f.to.fd, f.piped)
		} else {
			n, errno = send(f.to.fd, f.rest)
		}
		switch errno {
		case 0:
			written += n
			w.wrote(f, n)
		case unix.EAGAIN:
			f.to.writable = false
		case unix.EINTR:
		default:
			return written, toFailed, errno
		}
	}
	return written, more, 0
}

// hurry sets TCP_NODELAY before the second write: what is written first goes
// at once in any case, and many a connection never writes again.
func (e *end) hurry(f *flow) {
	if !e.nodelay && f.moved > 0 {
		e.nodelay = true
		setInt(e.fd, unix.SOL_TCP, unix.TCP_NODELAY, 1) // fails on a Unix socket, which has no such delay
	}
}

// wrote notes that n bytes more have gone on; an empty pipe goes back.
func (w *worker) wrote(f *flow, n int) {
	f.moved += uint64(n)
	if f.piped == 0 {
		if f.rest = f.rest[n:]; len(f.rest) == 0 {
			f.rest = nil
		}
		return
	}
	if f.piped -= n; f.piped == 0 {
		w.pipes.put(f.pipe)
		f.pipe = nil
	}
}

// finish passes the end on: a half-closed connection stays one.
func (w *worker) finish(f *flow) (progress, unix.Errno) {
	if !f.shut {
		f.shut = true
		// ENOTCONN: a reset has come, which the other direction will find.
		if errno := shutWrite(f.to.fd); errno != 0 && errno != unix.ENOTCONN {
			return toFailed, errno
		}
	}
	return waits, 0
}

// fill reads once. It says more if there is something to do.
func (w *worker) fill(f *flow) (progress, unix.Errno) {
	size := spliceSize
	if w.relay.limited {
		if size = w.allowance(f, size); size == 0 {
			return waits, 0
		}
	}
	if f.bulk && size >= copySize {
		if pipe := w.pipes.get(); pipe != nil {
			return w.fillPipe(f, pipe, size)
		}
	}
	return w.copy(f, min(size, copySize))
}

// fillPipe splices into a pipe, which it owns until bytes are in it.
func (w *worker) fillPipe(f *flow, pipe *pipe, size int) (progress, unix.Errno) {
	n, errno := splice(f.from.fd, pipe.w, size)
	if errno == 0 && n > 0 {
		f.pipe, f.piped = pipe, n
		f.bulk = n >= copySize
		w.spent(f, n)
		return more, 0
	}
	w.pipes.put(pipe)
	return f.ended(errno)
}

// copy reads once into the worker's buffer and writes what came. A read that
// the buffer could not hold makes the next one a splice.
func (w *worker) copy(f *flow, size int) (progress, unix.Errno) {
	n, errno := receiveBytes(f.from.fd, w.buffer[:size], 0)
	if errno != 0 || n == 0 {
		return f.ended(errno)
	}
	w.spent(f, n)
	f.bulk = n == copySize
	// Less than was asked for: nothing more is there now, and what comes
	// later is a new event (epoll(7)), unless the end has already come.
	f.from.readable = n == size || f.from.hup
	written := 0
	if f.to.writable {
		f.to.hurry(f)
		if written, errno = send(f.to.fd, w.buffer[:n]); errno != 0 {
			written = 0
		}
	}
	switch errno {
	case 0, unix.EINTR:
	case unix.EAGAIN:
		f.to.writable = false
	default:
		return toFailed, errno
	}
	f.moved += uint64(written)
	if written < n {
		f.rest = append([]byte(nil), w.buffer[written:n]...)
	}
	return more, 0
}

// ended is what a read without bytes means.
func (f *flow) ended(errno unix.Errno) (progress, unix.Errno) {
	switch errno {
	case 0:
		f.eof = true
	case unix.EAGAIN:
		f.from.readable = false
	case unix.EINTR:
	default:
		return fromFailed, errno
	}
	return more, 0
}

// drop gives back what the flow holds.
func (w *worker) drop(f *flow) {
	if f.pipe != nil {
		w.pipes.drop(f.pipe) // with bytes in it
		f.pipe, f.piped = nil, 0
	}
	f.rest = nil
}

// allowance returns how many bytes the rates let f read now; 0 makes it wait.
func (w *worker) allowance(f *flow, size int) int {
	var wait int64
	if f.bucket.rate > 0 {
		size, wait = f.bucket.allow(size, w.now)
	}
	if all := w.relay.rateAll; all != nil && size > 0 {
		size, wait = all.allow(size, w.now)
	}
	f.until = 0
	if size == 0 {
		f.until = w.now + wait
	}
	return size
}

// spent charges the rates with what was read.
func (w *worker) spent(f *flow, n int) {
	if f.bucket.rate > 0 {
		f.bucket.take(n)
	}
	if all := w.relay.rateAll; all != nil {
		all.take(n)
	}
}
