package relay

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// pipe carries bytes from one socket to the other. It belongs to a flow only
// while bytes are in it.
type pipe struct{ r, w int }

// pipePool keeps a worker's free pipes. budget, which all workers share, is
// how many more there may be.
type pipePool struct {
	free   []*pipe
	budget *atomic.Int64
}

// pipeSizes are how much a pipe holds, the first that the kernel grants: to
// ordinary users it gives at most fs.pipe-max-size, 1 MiB by default, and what
// is left of fs.pipe-user-pages-soft (pipe(7)), 64 of them by default. A pipe of
// 1 MiB takes a tenth to a third less of the processor's time per byte than one
// of 256 KiB. It is also what a connection whose reader is slow may keep in
// memory beside its sockets' buffers; an empty pipe holds no page.
var pipeSizes = [...]int{1 << 20, 256 << 10}

// keepPipes is how many free pipes a worker keeps for the next ones.
const keepPipes = 32

// get returns a pipe, nil if there can't be one more: bytes are copied then.
func (p *pipePool) get() *pipe {
	if n := len(p.free); n > 0 {
		got := p.free[n-1]
		p.free = p.free[:n-1]
		return got
	}
	if p.budget.Add(-1) < 0 {
		p.budget.Add(1)
		return nil
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		p.budget.Add(1)
		return nil
	}
	for _, size := range pipeSizes { // all refused: it stays small
		if _, err := unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, size); err == nil {
			break
		}
	}
	return &pipe{r: fds[0], w: fds[1]}
}

// put takes an empty pipe back.
func (p *pipePool) put(got *pipe) {
	if len(p.free) < keepPipes {
		p.free = append(p.free, got)
		return
	}
	p.drop(got)
}

// drop closes a pipe with whatever is in it.
func (p *pipePool) drop(got *pipe) {
	closeFD(got.r)
	closeFD(got.w)
	p.budget.Add(1)
}
