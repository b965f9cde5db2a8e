package listen

import (
	"errors"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// namespaceDirs is where ip-netns(8) keeps its names.
var namespaceDirs = []string{"/run/netns/", "/var/run/netns/"}

// inNamespace runs do in the network namespace ns, on a thread that is thrown
// away afterwards. The calling thread and the process stay where they are.
func inNamespace(ns string, do func() error) error {
	fd, err := OpenNamespace(ns)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return onLostThread(func() error {
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return &Error{Op: "enter network namespace", Object: ns, Err: err, hint: hintForSetns(err)}
		}
		return do()
	})
}

// onLostThread runs do on a thread that ends with it: a goroutine that returns
// locked takes its thread along. The first thread of the process can't end and
// is what /proc/self/ns shows, so it is never used.
func onLostThread(do func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// While this goroutine keeps the first thread, the next can't get it.
			result <- onLostThread(do)
			runtime.UnlockOSThread()
			return
		}
		result <- do()
	}()
	return <-result
}

// OpenNamespace opens a network namespace by name or path; the descriptor is
// close-on-exec and the caller's. O_NONBLOCK, lest a FIFO of that name blocks.
func OpenNamespace(ns string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK
	paths := []string{ns}
	if !strings.HasPrefix(ns, "/") {
		paths = []string{namespaceDirs[0] + ns, namespaceDirs[1] + ns}
	}
	var err error
	for _, p := range paths {
		var fd int
		if fd, err = unix.Open(p, flags, 0); err == nil {
			return fd, nil
		}
		if err != unix.ENOENT {
			break
		}
	}
	return -1, &Error{Op: "open network namespace", Object: ns, Err: err, hint: hintForNamespace(ns, err)}
}

func hintForNamespace(ns string, err error) string {
	switch {
	case errors.Is(err, unix.ENOENT) && !strings.HasPrefix(ns, "/"):
		return "see which there are: ip netns list; make it: ip netns add " + ns
	case errors.Is(err, unix.EACCES):
		return "run as root"
	}
	return ""
}

func hintForSetns(err error) string {
	switch {
	case errors.Is(err, unix.EPERM):
		return "run as root"
	case errors.Is(err, unix.EINVAL):
		return "expected a network namespace such as /run/netns/NAME or /proc/PID/ns/net"
	}
	return ""
}

// NamespacePath returns where a namespace that may be given by its bare name
// is to be found.
func NamespacePath(ns string) string {
	if strings.HasPrefix(ns, "/") {
		return ns
	}
	return namespaceDirs[0] + ns
}
