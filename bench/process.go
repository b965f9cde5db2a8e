package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// A process that has not ended this long after TERM is killed.
const endPatience = 3 * time.Second

// process is a child of the bench. Whoever starts one stops it.
type process struct {
	name   string
	pid    int
	output string        // file that takes its standard output and error
	ended  chan struct{} // closed once it has been reaped
	err    error         // how it ended, once ended is closed
}

// start runs a program in a process group of its own, so that a Ctrl-C at the
// terminal reaches the bench alone, which ends its children in order.
func (b *bench) start(program string, args ...string) (*process, error) {
	if err := b.ctx.Err(); err != nil {
		return nil, err
	}
	b.serial++
	name := filepath.Base(program)
	output, err := os.Create(filepath.Join(b.dir, fmt.Sprintf("%s-%d.log", name, b.serial)))
	if err != nil {
		return nil, err
	}
	defer output.Close()

	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = output, output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name: name, pid: cmd.Process.Pid, output: output.Name(), ended: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// stop ends the process, if it still runs, and returns once it has gone. The
// pid stays this process's until ended is closed, as nobody else reaps it.
func (p *process) stop() {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if p.hasEnded() {
			return
		}
		syscall.Kill(p.pid, signal) // fails only when it has ended meanwhile
		select {
		case <-p.ended:
		case <-time.After(endPatience):
		}
	}
	<-p.ended
}

func (p *process) hasEnded() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// failure says that the process ended before its time, and its words.
func (p *process) failure() error {
	text, err := os.ReadFile(p.output)
	if err != nil {
		return fmt.Errorf("%s ended: %w", p.name, errors.Join(p.err, err))
	}
	return fmt.Errorf("%s ended (%v): %s", p.name, p.err, excerpt(text))
}

// excerpt returns what tells the reason in a log, as one line of bounded
// length: the begin of a Go program's crash report, or else the end.
func excerpt(text []byte) string {
	const most = 500
	for _, crash := range []string{"panic: ", "fatal error: "} {
		if i := bytes.Index(text, []byte(crash)); i >= 0 {
			text = text[i:min(i+most, len(text))]
		}
	}
	text = bytes.TrimSpace(text)
	text = text[max(0, len(text)-most):]
	return string(bytes.ReplaceAll(text, []byte("\n"), []byte("; ")))
}
