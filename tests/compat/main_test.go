//go:build compat

package compat

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
	output = flag.String("table", "", "write the table to this file, if every daemon ran")
	// A table of natives shows what of a red cell is the tests' own doing.
	control = flag.Bool("control", false, "run the second daemon natively too")
	bin     = flag.String("bin", "../../bin", "folder of the built programs and the library")
)

const insideMark = "SOCKETBOX_COMPAT_INSIDE"

// The clients' namespace has loopback addresses that the daemons' namespaces
// don't have, so that a right answer can't come from there.
const (
	client4, server4 = "127.80.80.2", "127.80.80.1"
	client6, server6 = "2001:db8:80::2", "2001:db8:80::1"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv(insideMark) == "" {
		os.Exit(enter())
	}
	for _, file := range []string{"socketbox", "libsocketbox-preload.so"} {
		if _, err := os.Stat(filepath.Join(*bin, file)); err != nil {
			fmt.Fprintln(os.Stderr, "tests/compat needs what `make build` makes:", err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// enter runs the tests again in namespaces of their own.
func enter() int {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "tests/compat: needs root, since sshd, postfix and dovecot do")
		return 1
	}
	script := `ip link set lo up && ip addr add ` + client6 + `/128 dev lo && ip addr add ` + server6 + `/128 dev lo && exec "$@"`
	args := []string{"-n", "-m", "-i", "-p", "--fork", "--kill-child", "--mount-proc", "--", "sh", "-c", script, "sh"}
	cmd := exec.Command("unshare", append(append(args, os.Args[0]), os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), insideMark+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// What runs inside ends with this process, however that ends. The signal
	// comes when the thread that started it ends.
	runtime.LockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if exit, ok := err.(*exec.ExitError); ok {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "tests/compat: unshare:", err)
		return 1
	}
	return 0
}
