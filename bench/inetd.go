package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
)

// Clients of the inetd table.
const inetdClients = 16

// unlimited stands for "no limit" where a program wants a number; it is also
// more connections than a run makes.
const unlimited = 1000000

// superServer is one program that spawns another for each connection.
type superServer struct {
	name  string
	start func() (*server, error)
}

// inetdTable measures what spawns a program per connection.
func (b *bench) inetdTable() error {
	servers, notes := b.superServers()
	var group []*variant
	for _, s := range servers {
		group = append(group, &variant{name: s.name, clients: inetdClients, measure: func() (sample, error) {
			return b.sampleServer(s.start, tree, loadSpec{clients: inetdClients, count: b.spawns, limit: b.limit})
		}})
	}
	if err := b.measureRounds("inetd", group); err != nil {
		return err
	}
	b.title("A program per connection", "Each connection spawns a static program that writes one byte. CPU is that of all the server's processes and of the programs that they spawned and waited for, in µs per connection; latencies in µs.")
	base := group[0]
	b.head("variant", "clients", "conn/s", "of "+base.name, "CPU µs", "of "+base.name, "p50", "p99", "lost")
	for _, v := range group {
		b.inetdRow(v, base)
	}
	for _, note := range notes {
		fmt.Fprintf(b.out, "\nLeft out: %s.\n", note)
	}
	b.printResident(group)
	return nil
}

func (b *bench) inetdRow(v, base *variant) {
	if v.err != nil {
		b.failedRow(v)
		return
	}
	b.row(v.name, fmt.Sprint(v.clients),
		whole(v.of(rateOf)), ratio(v, base, rateOf),
		whole(v.of(cpuOf)), ratio(v, base, cpuOf),
		whole(v.of(p50Of)), whole(v.of(p99Of)), v.lost())
}

// superServers returns those that can run here, and why others cannot. The
// first is what the others are compared with.
func (b *bench) superServers() (servers []superServer, notes []string) {
	foreign := []struct {
		name, pkg, program string
		start              func(program string) (*server, error)
	}{
		{"tcpserver", "ucspi-tcp", "usr/bin/tcpserver", b.startTCPServer},
		{"openbsd-inetd", "openbsd-inetd", "usr/sbin/inetd", b.startOpenBSDInetd},
		{"xinetd", "xinetd", "usr/sbin/xinetd", b.startXinetd},
	}
	for _, f := range foreign {
		program, err := b.debianProgram(f.pkg, f.program)
		if err != nil {
			notes = append(notes, fmt.Sprintf("%s: %v", f.name, err))
			fmt.Fprintf(b.log, "inetd: %s left out: %v\n", f.name, err)
			continue
		}
		servers = append(servers, superServer{f.name, func() (*server, error) { return f.start(program) }})
	}
	if !b.reference {
		servers = append(servers, superServer{"socketbox-inetd", b.startSocketboxInetd})
	}
	return servers, notes
}

// startOn starts a program on a free port and waits until it serves; arguments
// makes its arguments for that port.
func (b *bench) startOn(program string, arguments func(port int) ([]string, error)) (_ *server, err error) {
	s := &server{}
	defer func() {
		if err != nil {
			s.stop()
		}
	}()
	if s.port, err = freePorts(1); err != nil {
		return nil, err
	}
	args, err := arguments(s.port)
	if err != nil {
		return nil, err
	}
	p, err := s.add(b, program, args...)
	if err != nil {
		return nil, err
	}
	s.measured = []int{p.pid}
	s.resident = map[string]int{p.name: p.pid}
	return s, s.awaitServed(b, s.port)
}

// startTCPServer starts it without name look-ups (-H -R -l0).
func (b *bench) startTCPServer(program string) (*server, error) {
	return b.startOn(program, func(port int) ([]string, error) {
		return []string{"-H", "-R", "-l0", "-c", "1000", "127.0.0.1", strconv.Itoa(port), b.tool("tiny")}, nil
	})
}

// inetdPIDFile is written by openbsd-inetd as root, wherever its
// configuration is, and removed when it ends.
const inetdPIDFile = "/run/inetd.pid"

// startOpenBSDInetd starts it without its limit of 256 starts a minute.
func (b *bench) startOpenBSDInetd(program string) (*server, error) {
	if _, err := os.Stat(inetdPIDFile); !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is there: another inetd runs on this machine", inetdPIDFile)
	}
	return b.startOn(program, func(port int) ([]string, error) {
		text := fmt.Sprintf("127.0.0.1:%d stream tcp nowait %s %s tiny\n", port, userName(), b.tool("tiny"))
		path, err := b.writeConfig("inetd.conf", text)
		return []string{"-i", "-R", strconv.Itoa(unlimited), path}, err
	})
}

// startXinetd starts it without limits, logging per connection or libwrap.
func (b *bench) startXinetd(program string) (*server, error) {
	const service = `service bench
{
	type        = UNLISTED
	id          = bench
	socket_type = stream
	protocol    = tcp
	bind        = 127.0.0.1
	port        = %d
	wait        = no
	user        = %s
	server      = %s
	instances   = UNLIMITED
	per_source  = UNLIMITED
	cps         = %d 1
	flags       = NOLIBWRAP
}
`
	return b.startOn(program, func(port int) ([]string, error) {
		path, err := b.writeConfig("xinetd.conf", fmt.Sprintf(service, port, userName(), b.tool("tiny"), unlimited))
		return []string{"-f", path, "-dontfork", "-pidfile", path + ".pid", "-filelog", path + ".log"}, err
	})
}

// startSocketboxInetd starts it with its defaults behind `socketbox bind`; the
// CPU of all three processes counts.
func (b *bench) startSocketboxInetd() (_ *server, err error) {
	s := &server{}
	defer func() {
		if err != nil {
			s.stop()
		}
	}()
	dir, err := b.socketDir()
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "bench.sock")
	inetd, err := s.add(b, b.program("socketbox-inetd"), "--socket", path, "--", b.tool("tiny"))
	if err != nil {
		return nil, err
	}
	if err := s.awaitFile(b, path); err != nil {
		return nil, err
	}
	if s.port, err = freePorts(1); err != nil {
		return nil, err
	}
	if err := s.addBinder(b, s.port, "--listen", fmt.Sprintf("127.0.0.1:%d", s.port), "--target", path); err != nil {
		return nil, err
	}
	s.measured = append(append(s.measured, inetd.pid), s.extra...)
	s.extra = nil
	s.resident["socketbox-inetd"] = inetd.pid
	return s, nil
}

// writeConfig writes a configuration file of its own for one start.
func (b *bench) writeConfig(name, text string) (string, error) {
	b.serial++
	path := filepath.Join(b.dir, fmt.Sprintf("%d-%s", b.serial, name))
	return path, os.WriteFile(path, []byte(text), 0o644)
}

// userName is whom the super-servers shall run the program as: nobody else.
func userName() string {
	u, err := user.Current()
	if err != nil {
		return "root"
	}
	return u.Username
}
