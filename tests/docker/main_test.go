//go:build docker

package docker

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
)

var (
	bin      = flag.String("bin", "../../bin", "folder of the built programs and the library")
	examples = flag.String("examples", "../../docs/examples", "folder of the examples")
)

const insideMark = "SOCKETBOX_DOCKER_INSIDE"

// Addresses of the host's namespace that a container's does not have.
const (
	client4, server4 = "127.80.80.2", "127.80.80.1"
	client6, server6 = "2001:db8:80::2", "2001:db8:80::1"
)

// cgroupParent is where the test's containers are, in every hierarchy.
var cgroupParent = fmt.Sprintf("socketbox-test-%d", os.Getpid())

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv(insideMark) == "" {
		os.Exit(enter())
	}
	cgroupParent = os.Getenv(insideMark)
	for _, path := range []*string{bin, examples} {
		if absolute, err := filepath.Abs(*path); err == nil {
			*path = absolute
		}
	}
	for _, file := range []string{"socketbox", "socketbox-launch", "socketbox-inetd", "libsocketbox-preload.so"} {
		if _, err := os.Stat(filepath.Join(*bin, file)); err != nil {
			fmt.Fprintln(os.Stderr, "tests/docker needs what `make build` makes:", err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// enter runs the tests again in namespaces of their own, and removes the
// containers' cgroups when they have ended.
func enter() int {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "tests/docker: needs root, since dockerd does")
		return 1
	}
	script := `ip link set lo up && ip addr add ` + client6 + `/128 dev lo && ip addr add ` + server6 + `/128 dev lo && mount -t tmpfs -o mode=755 tmpfs /run && exec "$@"`
	args := []string{"-n", "-m", "-p", "--fork", "--kill-child", "--mount-proc", "--", "sh", "-c", script, "sh"}
	cmd := exec.Command("unshare", append(append(args, os.Args[0]), os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), insideMark+"="+cgroupParent)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// What runs inside ends with this process, however that ends. The signal
	// comes when the thread that started it ends.
	runtime.LockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	removeCgroups()
	if exit, ok := err.(*exec.ExitError); ok {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "tests/docker: unshare:", err)
		return 1
	}
	return 0
}

func removeCgroups() {
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		for _, below := range []string{"/*", ""} {
			found, _ := filepath.Glob(pattern + cgroupParent + below)
			for _, dir := range found {
				os.Remove(dir) // what are files goes with its folder
			}
		}
	}
}
