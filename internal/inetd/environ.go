package inetd

import (
	"strconv"
	"strings"

	"socketbox/internal/peer"
)

// ours are the variables that describe a connection or that belong to this
// process alone. A child never has them from our own environment: only those
// that apply to its connection, from us.
var ours = map[string]bool{
	// ucspi-tcp, s6-networking; ucspi-unix
	"PROTO":       true,
	"TCPREMOTEIP": true, "TCPREMOTEPORT": true, "TCPREMOTEHOST": true, "TCPREMOTEINFO": true,
	"TCPLOCALIP": true, "TCPLOCALPORT": true, "TCPLOCALHOST": true, "TCPCONNNUM": true,
	"UNIXREMOTEPATH": true, "UNIXREMOTEEUID": true, "UNIXREMOTEEGID": true, "UNIXREMOTEPID": true,
	"UNIXLOCALPATH": true, "UNIXCONNNUM": true,
	// xinetd; systemd, CGI
	"REMOTE_HOST": true, "REMOTE_ADDR": true, "REMOTE_PORT": true,
	"SOCKETBOX_LISTENER": true,
	// between the service manager and us
	"LISTEN_PID": true, "LISTEN_FDS": true, "LISTEN_FDNAMES": true, "LISTEN_PIDFDID": true,
	"NOTIFY_SOCKET": true, "WATCHDOG_PID": true, "WATCHDOG_USEC": true, "MAINPID": true,
}

// baseEnviron returns what all children have: environ without ours, and for
// another user that user's names and home.
func baseEnviron(environ []string, user User) []string {
	replaced := user.environ()
	base := make([]string, 0, len(environ)+len(replaced))
	for _, v := range environ {
		name, _, ok := strings.Cut(v, "=")
		if _, other := replaced[name]; ok && !other && !ours[name] && !strings.ContainsRune(v, 0) {
			base = append(base, v)
		}
	}
	for _, name := range []string{"USER", "LOGNAME", "HOME"} {
		if value, ok := replaced[name]; ok {
			base = append(base, name+"="+value)
		}
	}
	return base
}

// appendVars appends what the child of c has of its own to b, as NUL-ended
// strings. number is how many connections of the source there are, this one
// included.
func appendVars(b []byte, c *connection, number int) []byte {
	b = appendVar(b, "PROTO", c.Network)
	if c.Network == peer.TCP {
		b = appendTCPVars(b, c, number)
	} else {
		b = appendUnixVars(b, c, number)
	}
	if c.listener != "" && !strings.ContainsRune(c.listener, 0) {
		b = appendVar(b, "SOCKETBOX_LISTENER", c.listener)
	}
	return b
}

func appendTCPVars(b []byte, c *connection, number int) []byte {
	remote := c.WithZone(c.Remote.Addr()).String()
	remotePort := strconv.Itoa(int(c.Remote.Port()))
	b = appendVar(b, "TCPREMOTEIP", remote)
	b = appendVar(b, "TCPREMOTEPORT", remotePort)
	b = appendVar(b, "TCPLOCALIP", c.WithZone(c.Local.Addr()).String())
	b = appendVar(b, "TCPLOCALPORT", strconv.Itoa(int(c.Local.Port())))
	b = appendVar(b, "TCPCONNNUM", strconv.Itoa(number))
	b = appendVar(b, "REMOTE_HOST", remote)
	b = appendVar(b, "REMOTE_ADDR", remote)
	return appendVar(b, "REMOTE_PORT", remotePort)
}

// appendUnixVars: an unnamed peer, the usual client, has no REMOTE_ADDR.
func appendUnixVars(b []byte, c *connection, number int) []byte {
	if c.RemotePath != "" {
		b = appendVar(b, "REMOTE_ADDR", c.RemotePath)
		b = appendVar(b, "UNIXREMOTEPATH", c.RemotePath)
	}
	if c.LocalPath != "" {
		b = appendVar(b, "UNIXLOCALPATH", c.LocalPath)
	}
	b = appendVar(b, "UNIXREMOTEEUID", strconv.FormatUint(uint64(c.Cred.Uid), 10))
	b = appendVar(b, "UNIXREMOTEEGID", strconv.FormatUint(uint64(c.Cred.Gid), 10))
	b = appendVar(b, "UNIXREMOTEPID", strconv.Itoa(int(c.Cred.Pid)))
	return appendVar(b, "UNIXCONNNUM", strconv.Itoa(number))
}

// appendVar cuts a value at a NUL, which only a hostile peer's abstract name
// can have.
func appendVar(b []byte, name, value string) []byte {
	value, _, _ = strings.Cut(value, "\x00")
	b = append(b, name...)
	b = append(b, '=')
	b = append(b, value...)
	return append(b, 0)
}
