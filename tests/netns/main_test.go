// Package netns tests socketbox with real programs in real network
// namespaces.
//
// Everything runs on loopback and in namespaces that the tests make
// themselves. As root the tests use the machine's mount and user namespace
// and network namespaces of their own; not root, the whole run enters a user,
// mount and network namespace first. What needs real root (other uids, ports
// below 1024 outside a namespace) calls needRoot: it is skipped elsewhere,
// unless NETNS=require, which makes it fail.
package netns

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// programs is where the built programs are.
var programs string

const insideMark = "SOCKETBOX_TEST_INSIDE"

func TestMain(m *testing.M) {
	// Where Debian has sshd, which su's PATH leaves out.
	os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	if text := os.Getenv(lenderVariable); text != "" {
		fmt.Fprintln(os.Stderr, "lender:", runLender(text))
		os.Exit(1)
	}
	if os.Getuid() != 0 && os.Getenv(insideMark) == "" {
		os.Exit(enter())
	}
	dir, err := filepath.Abs("../../bin")
	if err == nil {
		_, err = os.Stat(filepath.Join(dir, "socketbox"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "tests/netns needs the built programs: make build:", err)
		os.Exit(1)
	}
	programs = dir
	status := m.Run()
	removeGuards()
	os.RemoveAll(webDirectory)
	os.Exit(status)
}

// enter runs the tests again as uid 0 of a user namespace of their own, with
// a network namespace whose lo is up.
func enter() int {
	cmd := exec.Command("unshare", append([]string{"-Urnm", "--", "sh", "-c",
		`ip link set lo up && mount -t tmpfs tmpfs /run && mkdir -p /run/netns && exec "$@"`, "sh", os.Args[0]}, os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), insideMark+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	if exit, ok := err.(*exec.ExitError); ok {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "tests/netns: unshare:", err)
		if os.Getenv("NETNS") == "require" {
			return 1
		}
		fmt.Fprintln(os.Stderr, "tests/netns: skipped, neither root nor user namespaces")
	}
	return 0
}

// needRoot skips a test that needs real root, or fails it where CI requires
// everything.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getenv(insideMark) == "" {
		return
	}
	if os.Getenv("NETNS") == "require" {
		t.Fatal("NETNS=require: this test needs real root")
	}
	t.Skip("needs real root")
}

// needProgram fails the test if a Debian program that it is about is missing;
// `make deps` installs them.
func needProgram(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is missing (make deps installs it): %v", name, err)
	}
	return path
}

// ownGroup puts a command into a process group of its own and ends it when
// the test process dies.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
