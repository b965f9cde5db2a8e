package binder

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"socketbox/internal/listen"
	"socketbox/internal/sockdiag"
)

// This file is about listeners that an earlier run has lent and that are still
// out: the binder was killed, its borrower serves on. The new run binds beside
// it. The kernel gives every client to the older socket until that is closed,
// and from then on to the new one (listen.OpenBeside).

// elder is a socket of an earlier run that has the address of a listener.
type elder struct {
	Socket sockdiag.Socket
	Holder string // whose it is, as far as /proc tells; for people
}

// openAll opens ds as listen.OpenAll does, those beside a loan that is still
// out included. elders tells of these, by key of description. dir is the main
// socket directory.
func openAll(ds []listen.Description, dir string) (fds []int, elders map[string][]elder, err error) {
	elders = map[string][]elder{}
	var problems []error
	for _, d := range ds {
		fd, err := listen.Open(d)
		if errors.Is(err, unix.EADDRINUSE) && wasLent(d, dir) {
			before := eldersOf(d)
			var besideErr error
			if fd, besideErr = listen.OpenBeside(d); besideErr == nil {
				err = nil
				elders[keyOf(d)] = before
			}
		}
		if err != nil {
			problems = append(problems, err)
			continue
		}
		fds = append(fds, fd)
	}
	if len(problems) > 0 {
		closeAll(fds)
		return nil, nil, errors.Join(problems...)
	}
	return fds, elders, nil
}

// wasLent says whether an earlier run has left a socket at which d was lent. A
// clean end leaves it only with a loan out; whoever killed the binder left them
// all. Without it, an address in use is what it always is: an error.
func wasLent(d listen.Description, dir string) bool {
	for _, name := range loanNames(&listener{description: d, bound: d.Port}) {
		fd, err := dialControl(filepath.Join(dir, name))
		if err == nil {
			unix.Close(fd)
		}
		if errors.Is(err, unix.ECONNREFUSED) {
			return true
		}
	}
	return false
}

// eldersOf finds the listening sockets that are in the way of d. Not those in
// other network namespaces, and not UDP: sock_diag is asked for TCP here.
func eldersOf(d listen.Description) []elder {
	if d.NetNS != "" || d.Network != listen.TCP {
		return nil
	}
	var found []elder
	sockets, _ := listeningOn(d.Port)
	for _, s := range sockets {
		if local := s.Local.Addr(); local == d.Address || local.IsUnspecified() || d.Address.IsUnspecified() {
			found = append(found, elder{s, holderOf(s.Inode)})
		}
	}
	return found
}

// listeningOn returns the TCP sockets of the process's network namespace that listen
// on port.
func listeningOn(port uint16) (all []sockdiag.Socket, err error) {
	diag, err := sockdiag.Open()
	if err != nil {
		return nil, err
	}
	defer unix.Close(diag)
	err = sockdiag.Dump(diag, sockdiag.Query{States: sockdiag.Listening, LocalPort: port}, func(s *sockdiag.Socket) error {
		all = append(all, *s)
		return nil
	})
	return all, err
}

// holderOf names a process that has the socket with that inode: the first one
// in /proc whose descriptors the caller may see.
func holderOf(inode uint32) string {
	link := fmt.Sprintf("socket:[%d]", inode)
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, process := range processes {
		fds, err := os.ReadDir(process + "/fd")
		if err != nil {
			continue
		}
		for _, fd := range fds {
			if target, err := os.Readlink(process + "/fd/" + fd.Name()); err == nil && target == link {
				pid := strings.TrimPrefix(process, "/proc/")
				name, _ := os.ReadFile(process + "/comm")
				return fmt.Sprintf("pid %s (%s)", pid, strings.Map(printable, strings.TrimSpace(string(name))))
			}
		}
	}
	return "a process out of sight"
}

// eldersEvery is how often the binder looks whether elder sockets are gone: for
// status alone, the kernel needs nobody to tell it.
const eldersEvery = time.Second

// checkElders forgets the elder sockets that are gone, and says so.
func (b *binder) checkElders() {
	if !b.nextElders.IsZero() && time.Now().Before(b.nextElders) {
		return
	}
	b.nextElders = time.Time{}
	for _, l := range b.active.listeners {
		if st := l.standing; len(st.Elders) > 0 {
			st.Elders = livingElders(st.Elders)
			if len(st.Elders) > 0 {
				b.nextElders = time.Now().Add(eldersEvery)
				continue
			}
			b.log.Info("the loan of an earlier run has ended: its clients come here now", "listener", l.description.Name)
		}
	}
}

// livingElders returns those of all that still listen. It looks for their cookies
// among all sockets with their port: asked for one by its address, the kernel looks
// at one of the elder and the younger alone, on some machines always at the younger,
// beside which the elder would seem gone.
func livingElders(all []elder) []elder {
	sockets, err := listeningOn(all[0].Socket.Local.Port())
	if err != nil {
		return all
	}
	return slices.DeleteFunc(slices.Clone(all), func(e elder) bool {
		return !slices.ContainsFunc(sockets, func(s sockdiag.Socket) bool { return s.Cookie == e.Socket.Cookie })
	})
}

// besideText says of whom a listener is the younger one, "" if of nobody.
func (s *standing) besideText() string {
	var holders []string
	for _, e := range s.Elders {
		holders = append(holders, e.Holder)
	}
	if holders == nil {
		return ""
	}
	return "; until it ends, clients go to what an earlier run lent to " + strings.Join(holders, ", ")
}

// warnOfElders says at start what an administrator should know.
func warnOfElders(name string, all []elder) string {
	holders := "somebody"
	if len(all) > 0 {
		holders = all[0].Holder
	}
	return fmt.Sprintf("listener %s is still lent by an earlier run, to %s: clients go there until that ends", name, holders)
}
