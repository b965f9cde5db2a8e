// Package preload tests the preload library with small daemons, each about
// one behaviour of the C library that daemons count on, and with real ones.
//
//	client ──TCP──► socketbox bind ──hand-off──► daemon + libsocketbox-preload.so
//	                these tests' namespace       a namespace with only lo
//
// The small daemons are in testdata, one file each; they check what they see
// and end with 0. They run as they are, under valgrind, and with the library
// built with AddressSanitizer and UBSan.
package preload

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

var (
	programs string // where the built programs are
	daemons  string // where the test daemons are
)

const insideMark = "SOCKETBOX_TEST_INSIDE"

func TestMain(m *testing.M) {
	if os.Getuid() != 0 && os.Getenv(insideMark) == "" {
		os.Exit(enter())
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	var err error
	if programs, err = filepath.Abs("../../bin"); err == nil {
		_, err = os.Stat(filepath.Join(programs, "socketbox"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "tests/preload needs the built programs: make build:", err)
		return 1
	}
	if daemons, err = os.MkdirTemp("", "sbxp-daemons-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(daemons)
	os.Chmod(daemons, 0o755)
	if err := compile(); err != nil {
		fmt.Fprintln(os.Stderr, "tests/preload:", err)
		return 1
	}
	return m.Run()
}

// compile builds the library, plain and with sanitizers, and the daemons.
func compile() error {
	out, err := exec.Command("make", "-s", "-C", "../../preload", "OUT="+daemons, "all", "asan").CombinedOutput()
	if err != nil {
		return fmt.Errorf("build the library: %w\n%s", err, out)
	}
	sources, err := filepath.Glob("testdata/*.c")
	if err != nil {
		return err
	}
	for _, source := range sources {
		program := filepath.Join(daemons, strings.TrimSuffix(filepath.Base(source), ".c"))
		out, err := exec.Command("cc", "-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-o", program, source, "-lpthread").CombinedOutput()
		if err != nil {
			return fmt.Errorf("compile %s: %w\n%s", source, err, out)
		}
	}
	return nil
}

// enter runs the tests again as uid 0 of a user namespace of their own, with
// a network namespace whose lo is up.
func enter() int {
	cmd := exec.Command("unshare", append([]string{"-Urnm", "--", "sh", "-c",
		`ip link set lo up && exec "$@"`, "sh", os.Args[0]}, os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), insideMark+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	if exit, ok := err.(*exec.ExitError); ok {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "tests/preload: unshare:", err)
		if os.Getenv("NETNS") == "require" {
			return 1
		}
		fmt.Fprintln(os.Stderr, "tests/preload: skipped, neither root nor user namespaces")
	}
	return 0
}

// ownGroup puts a command into a process group of its own and ends it when
// the test process dies.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// needProgram skips a test whose program is missing, or fails it where
// everything is required.
func needProgram(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err == nil {
			continue
		}
		if os.Getenv("NETNS") == "require" {
			t.Fatalf("NETNS=require: %s is missing", name)
		}
		t.Skipf("%s is missing", name)
	}
}
