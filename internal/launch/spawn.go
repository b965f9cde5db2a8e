package launch

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"socketbox/internal/handoff"
)

// started is a daemon that has just been executed, or a stage on its way.
type started struct {
	pid    int
	talk   int // our end of the pair
	filter int // notification descriptor, -1: none
}

// startStage starts this program again as the stage, in new namespaces where
// the order says so, and gives it its maps and the order.
func (s *supervisor) startStage(argv []string, o order, fds []int) (started, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return started{}, os.NewSyscallError("socketpair", err)
	}
	attributes := &syscall.SysProcAttr{}
	if s.plan.newNet {
		attributes.Cloneflags |= unix.CLONE_NEWNET
	}
	if s.plan.newUser {
		// The maps are written from outside, by newuidmap perhaps, when the
		// stage runs: until then its uid is nobody's, and what lets it keep
		// the rights over its namespaces through the exec is the ambient set.
		attributes.Cloneflags |= unix.CLONE_NEWUSER
		for c := range lastCapability() + 1 {
			attributes.AmbientCaps = append(attributes.AmbientCaps, uintptr(c))
		}
	}
	pid, err := syscall.ForkExec("/proc/self/exe", append([]string{StageName}, argv...), &syscall.ProcAttr{
		Env: s.plan.env, Files: []uintptr{0, 1, 2, uintptr(pair[1])}, Sys: attributes,
	})
	unix.Close(pair[1])
	if err != nil {
		unix.Close(pair[0])
		return started{}, s.cloneError(err)
	}
	st := started{pid: pid, talk: pair[0], filter: -1}
	if err := s.instruct(st, o, fds); err != nil {
		s.abandon(st)
		return started{}, err
	}
	return st, nil
}

func (s *supervisor) instruct(st started, o order, fds []int) error {
	if s.plan.newUser {
		for _, m := range s.plan.maps {
			if err := m.write(st.pid); err != nil {
				return err
			}
		}
	}
	return send(st.talk, o, fds...)
}

// abandon ends a stage that was not let go.
func (s *supervisor) abandon(st started) {
	unix.Close(st.talk)
	if st.filter >= 0 {
		unix.Close(st.filter)
	}
	unix.Kill(st.pid, unix.SIGKILL)
	unix.Wait4(st.pid, nil, 0, nil)
}

func (s *supervisor) cloneError(err error) error {
	what := "start the second half of socketbox-launch"
	hint := ""
	switch {
	case s.plan.newUser:
		what = "make a user namespace"
		hint = "user namespaces are turned off here, or a container's filter forbids them; in a container that has its own network namespace leave -n and -U out"
	case s.plan.newNet:
		what = "make a network namespace"
		hint = "in a container that has its own network namespace leave -n out; else it takes root, or -U"
	}
	if err != unix.EPERM && err != unix.ENOSPC && err != unix.EINVAL {
		hint = ""
	}
	return &handoff.HintError{Err: fmt.Errorf("%s: %w", what, err), Text: hint}
}

// converse hears the stage until the daemon is executed. serve is called with
// the notification descriptor, which it owns, before the stage may go on.
func (s *supervisor) converse(st *started, serve func(fd int)) error {
	for {
		r, err := recvReport(st.talk)
		if err != nil {
			return err
		}
		switch r.About {
		case reportNote:
			s.log.Warn(r.Text)
		case reportFilter:
			st.filter = r.fd
		case reportReady:
			if st.filter >= 0 {
				serve(st.filter)
				st.filter = -1
			}
			if _, err := unix.Write(st.talk, []byte("go")); err != nil {
				return os.NewSyscallError("write", err)
			}
		case reportFailed:
			return &StageError{Text: r.Text, Next: r.Hint, Code: r.Code}
		case reportExecuted:
			return nil
		}
	}
}
