package binder

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"socketbox/internal/config"
	"socketbox/internal/listen"
	"socketbox/internal/privsep"
)

// enterGuard moves the privileged stage into a guard of its own, so that
// everything that is bound from here on is guarded. Without one it goes on
// and says why, unless it is required.
func (h *handover) enterGuard(mode string, a account) error {
	if mode == config.GuardOff {
		return nil
	}
	var err error
	if os.Geteuid() != 0 {
		err = errors.New("only root can make one")
	} else if h.Guard, err = privsep.EnterGuard(a.uid, a.gid); err == nil {
		return nil
	}
	if mode == config.GuardRequired {
		return withHint(fmt.Errorf("guard is required: %w", err), "guard = \"auto\" starts without it; it takes root, cgroup v2 and Linux 5.10")
	}
	h.NoGuard = err.Error()
	h.Warnings = append(h.Warnings, "no guard: "+h.NoGuard+"; whoever is passed a socket can reach what this network namespace reaches")
	return nil
}

// leaveGuard undoes enterGuard where the start fails after it.
func (h *handover) leaveGuard() {
	if h.Guard != nil {
		h.Guard.Leave()
	}
}

// checkGuarded looks at what was bound and at what was inherited. Where there
// is a guard, listeners outside it are named, and refused if it is required.
func (h *handover) checkGuarded(cfg *config.Config, fds []int) error {
	if h.Guard == nil {
		return nil
	}
	var outside []string
	for i, d := range append(cfg.Descriptions(), h.Inherited...) {
		if i < len(fds) && !isGuarded(d, fds[i]) {
			outside = append(outside, d.String())
		}
	}
	if outside == nil {
		return nil
	}
	err := outsideError(outside)
	if cfg.Guard == config.GuardRequired {
		return err
	}
	h.Warnings = append(h.Warnings, err.Error())
	return nil
}

func outsideError(listeners []string) error {
	return withHint(fmt.Errorf("not guarded, since bound by another program: %s", strings.Join(listeners, ", ")),
		"let socketbox bind them itself, or have guard = \"auto\"")
}

// isGuarded says whether a listener's socket can't be turned around. What can
// be passed of a Unix listener leads nowhere.
func isGuarded(d listen.Description, fd int) bool {
	return d.Network == listen.Unix || privsep.Guarded(fd)
}

// admit refuses a socket from outside the guard where that is required.
func (b *binder) admit(l *listener) error {
	if b.active.cfg.Guard == config.GuardRequired && !l.guarded {
		return outsideError([]string{l.description.String()})
	}
	return nil
}

// confine moves a new dispatcher out of the guard into a group where it may
// not bind: it is the one that meets the clients.
func (b *binder) confine(pid int) error {
	if b.h.Guard == nil {
		return nil
	}
	if err := b.h.Guard.Place(pid); err != nil {
		return withHint(fmt.Errorf("confine the dispatcher: %w", err), "guard = \"off\" starts without control groups")
	}
	return nil
}

// GuardStatus says whether there is a guard; its mode is Status.Guard.
type GuardStatus struct {
	On     bool   `json:"on"`               // what this instance binds is guarded
	Group  string `json:"group,omitempty"`  // control group, in cgroup v2
	Reason string `json:"reason,omitempty"` // why it is not on although it should

	Refusals privsep.Refusals `json:"refusals"` // so far
}

// guardFDs are what the next stage needs of the guard.
func (h *handover) guardFDs() []int {
	if h.Guard == nil {
		return nil
	}
	return []int{h.Guard.Counters()}
}

func (b *binder) guardStatus() GuardStatus {
	g := GuardStatus{On: b.h.Guard != nil, Reason: b.h.NoGuard, Refusals: b.refusals.Read()}
	if b.h.Guard != nil {
		g.Group = b.h.Guard.Path
	}
	return g
}

func (s *Status) guard() string {
	switch {
	case s.GuardState.On:
		text := "on, control group " + filepath.Base(s.GuardState.Group)
		if r := s.GuardState.Refusals; r != (privsep.Refusals{}) {
			text += fmt.Sprintf(", refused %d connect, %d bind, %d listen, %d send", r.Connect, r.Bind, r.Listen, r.Send)
		}
		return text
	case s.Guard == config.GuardOff:
		return "off"
	}
	return "none: " + s.GuardState.Reason
}
