package binder

import (
	"os"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"socketbox/internal/fdpass"
	"socketbox/internal/listen"
)

// storeName names a listener in the service manager's store of descriptors: it
// may not have a colon (sd_pid_notify_with_fds(3), FDNAME=).
func storeName(d listen.Description) string {
	return "listener-" + strings.ReplaceAll(d.String(), ":", "_")
}

// store gives the listeners to the service manager, which passes them to the
// next start (LISTEN_FDS): clients who come while it restarts wait in the
// backlog. A manager that keeps nothing ignores it.
func (b *binder) store(listeners []*listener) {
	for _, l := range listeners {
		b.notifyFD("FDSTORE=1\nFDNAME="+storeName(l.description), l.fd)
	}
}

// unstore has the service manager forget listeners that are closed for good.
func (b *binder) unstore(listeners []*listener) {
	for _, l := range listeners {
		b.notify("FDSTOREREMOVE=1", "FDNAME="+storeName(l.description))
	}
}

// forget has the service manager close a socket that it passed and nobody
// wants, lest it pass it at each start.
func forget(name string) {
	if name != "" {
		daemon.SdNotify(false, "FDSTOREREMOVE=1\nFDNAME="+name)
	}
}

// notifyFD is sd_pid_notify_with_fds(3); go-systemd has only the form without.
func (b *binder) notifyFD(state string, fd int) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(s)
		if err = unix.Connect(s, &unix.SockaddrUnix{Name: path}); err == nil {
			err = fdpass.Send(s, []byte(state), fd)
		}
	}
	if err != nil {
		b.log.Warn("can't give a listener to the service manager", "reason", err)
	}
}
