package privsep

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

func addressOf(b []byte) uintptr { return uintptr(unsafe.Pointer(&b[0])) }

// Spawn starts a dispatcher of the same uid. It inherits stderr and its end
// of the control pair, nothing else; its scheduling policy is SCHED_BATCH
// (sched(7)): fewer wake-ups, so less CPU for each connection. The caller
// owns the channel's descriptor and waits for the process.
func Spawn() (*exec.Cmd, Channel, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, Channel{}, fmt.Errorf("socketpair: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "control")
	defer theirs.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{string(Dispatcher)}
	cmd.Env = dispatcherEnvironment()
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{theirs}
	if err := startBatch(cmd); err != nil {
		unix.Close(pair[0])
		return nil, Channel{}, fmt.Errorf("start the dispatcher: %w", err)
	}
	return cmd, Channel{FD: pair[0], FromBinder: true}, nil
}

// dispatcherEnvironment keeps what the log needs and nothing that changes how
// the program runs.
func dispatcherEnvironment() []string {
	env := []string{"GOMAXPROCS=2"} // one worker, one for the collector
	if v, ok := os.LookupEnv("JOURNAL_STREAM"); ok {
		env = append(env, "JOURNAL_STREAM="+v)
	}
	return env
}

// startBatch starts cmd from a thread of policy SCHED_BATCH, which the new
// process inherits for all of its threads.
func startBatch(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := setPolicy(unix.SCHED_BATCH); err != nil {
		return err
	}
	defer setPolicy(unix.SCHED_NORMAL)
	return cmd.Start()
}

// setPolicy sets the scheduling policy of the calling thread.
func setPolicy(policy uint32) error {
	attr, err := unix.SchedGetAttr(0, 0) // the nice value is in it, and stays
	if err != nil {
		return fmt.Errorf("sched_getattr: %w", err)
	}
	attr.Policy = policy
	if err := unix.SchedSetAttr(0, attr, 0); err != nil {
		return fmt.Errorf("sched_setattr: %w", err)
	}
	return nil
}
