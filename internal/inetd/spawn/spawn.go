package spawn

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Launch is a child between its start and its program. It is not safe for use
// by several goroutines at once, nor is its Spawner.
type Launch interface {
	// Gone tells whether the child has left for its program, or has failed.
	Gone() bool
	// Err returns, once Gone, why the program could not be executed, as a
	// *StepError, or nil. Such a child ends by itself, with status 127, and
	// is there to be waited for.
	Err() error
	// Release ends the use of the Launch, once Gone.
	Release()
}

// Spawner starts children, all with one Command.
type Spawner struct {
	nullFD int
	how    starter
}

type starter interface {
	start(socket int, vars []byte) (pid int, l Launch, err error)
}

// New prepares c. base is the part of the environment that all children have,
// as NAME=value. The descriptor that it keeps open is close-on-exec.
func New(c Command, base []string) (*Spawner, error) {
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/null: %w", err)
	}
	s := &Spawner{nullFD: null}
	if s.how, err = choose(c, base, null); err != nil {
		unix.Close(null)
		return nil, fmt.Errorf("prepare %s: %w", c.Path, err)
	}
	return s, nil
}

// Start makes a child that becomes the program with socket as descriptors 0
// and 1. vars is the child's own part of the environment: NAME=value strings,
// each with a NUL at its end; it is copied. The socket stays the caller's,
// who should close it once the Launch is Gone without an error.
//
// The caller waits for the child (wait4(2)), whose pid is also its session
// and its process group.
func (s *Spawner) Start(socket int, vars []byte) (pid int, l Launch, err error) {
	return s.how.start(socket, vars)
}

// Close closes what New has opened.
func (s *Spawner) Close() { unix.Close(s.nullFD) }

// limits tells whether c sets a limit of resource.
func (c *Command) limits(resource int) bool {
	for _, l := range c.Limits {
		if l.Resource == resource {
			return true
		}
	}
	return false
}
