//go:build compat

package compat

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

var stores = []*daemon{
	{
		name: "Redis, protected mode", packages: "redis-server", user: "redis", listens: "46", loopback: true,
		remark: "IPv4 loopback is let in, another address is refused",
		prepare: func(i *instance) ([]string, error) {
			dir, err := i.folder("data", i.user)
			return []string{"redis-server", "--port", strconv.Itoa(i.port), "--bind", "0.0.0.0", "::",
				"--protected-mode", "yes", "--save", "", "--appendonly", "no", "--dir", dir}, err
		},
		ask: func(c net.Conn) error { return exchange(c, "PING\r\n", "+PONG\r\n") },
		report: func(i *instance, d *net.Dialer, to string) (*sight, error) {
			var info string
			s, err := visit(d, i.at(to), func(c net.Conn) error {
				if _, err := io.WriteString(c, "CLIENT INFO\r\n"); err != nil {
					return err
				}
				r := bufio.NewReader(c)
				if first, err := r.ReadString('\n'); err != nil || first[0] != '$' {
					return fmt.Errorf("it answers %q, %v", first, err)
				}
				var err error
				info, err = r.ReadString('\n')
				return err
			})
			if err != nil {
				return nil, err
			}
			for word := range strings.FieldsSeq(info) {
				key, value, _ := strings.Cut(word, "=")
				switch key {
				case "addr":
					s.client, err = netip.ParseAddrPort(value)
				case "laddr":
					s.server, err = netip.ParseAddrPort(value)
				}
				if err != nil {
					return nil, err
				}
			}
			return s, nil
		},
		special: func(i *instance) error {
			_, err := visit(dialer(client4), i.at(server4), func(c net.Conn) error {
				return exchange(c, "PING\r\n", "-DENIED ")
			})
			return err
		},
	}, {
		name: "memcached", packages: "memcached", user: "daemon", listens: "46",
		prepare: func(i *instance) ([]string, error) {
			return []string{"memcached", "-p", strconv.Itoa(i.port), "-l", "0.0.0.0,[::]", "-t", "2", "-c", "1000"}, nil
		},
		ask:    func(c net.Conn) error { return exchange(c, "version\r\n", "VERSION ") },
		report: reportMemcached,
	}, {
		name: "PostgreSQL", packages: "postgresql-15", user: "postgres", listens: "46", loopback: true,
		remark: "pg_hba.conf has 127.0.0.1/32 and ::1/128 alone; after the crash, clients that are told it is starting come again",
		reload: syscall.SIGHUP, reloaded: "received SIGHUP",
		starting: "C57P03",
		prepare:  preparePostgres,
		ask: func(c net.Conn) error {
			_, err := query(c, "select 1")
			return err
		},
		report: func(i *instance, d *net.Dialer, to string) (*sight, error) {
			var answer string
			s, err := visit(d, i.at(to), func(c net.Conn) (err error) {
				answer, err = query(c, "select host(inet_client_addr())||' '||inet_client_port()||' '||host(inet_server_addr())||' '||inet_server_port()")
				return err
			})
			if err != nil {
				return nil, err
			}
			return s, s.fields(answer)
		},
		special: func(i *instance) error {
			_, err := visit(dialer(client4), i.at(server4), func(c net.Conn) error {
				_, err := query(c, "select 1")
				if err == nil || !strings.Contains(err.Error(), "no pg_hba.conf entry for host \""+client4) {
					return fmt.Errorf("a client that pg_hba.conf does not name: %v", err)
				}
				return nil
			})
			return err
		},
	}, {
		name: "MariaDB", packages: "mariadb-server", user: "mysql", listens: "46", loopback: true,
		remark:  "accounts `probe@127.0.0.1` and `probe@::1`",
		prepare: prepareMariaDB,
		ask: func(c net.Conn) error {
			_, err := queryMySQL(c, "select 1")
			return err
		},
		report: func(i *instance, d *net.Dialer, to string) (*sight, error) {
			var host string
			s, err := visit(d, i.at(to), func(c net.Conn) (err error) {
				host, err = queryMySQL(c, "select host from information_schema.processlist where id = connection_id()")
				return err
			})
			if err != nil {
				return nil, err
			}
			colon := strings.LastIndexByte(host, ':')
			if colon < 0 {
				return nil, fmt.Errorf("it says the host %q", host)
			}
			s.client, err = addrPort(host[:colon], host[colon+1:])
			return s, err
		},
	},
}

// at joins an address with the instance's port.
func (i *instance) at(address string) string {
	return net.JoinHostPort(address, strconv.Itoa(i.port))
}

// exchange sends a line and expects an answer that begins with want.
func exchange(c net.Conn, send, want string) error {
	if _, err := io.WriteString(c, send); err != nil {
		return err
	}
	b := make([]byte, len(want))
	if n, err := io.ReadFull(c, b); err != nil {
		return fmt.Errorf("answer %q: %w", b[:n], err)
	}
	if string(b) != want {
		return fmt.Errorf("answer %q instead of %q", b, want)
	}
	return nil
}

func reportMemcached(i *instance, d *net.Dialer, to string) (*sight, error) {
	var stats []string
	s, err := visit(d, i.at(to), func(c net.Conn) error {
		if _, err := io.WriteString(c, "stats conns\r\n"); err != nil {
			return err
		}
		for r := bufio.NewScanner(c); r.Scan() && r.Text() != "END"; {
			stats = append(stats, r.Text())
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	// Of a listener: STAT 26:addr tcp:0.0.0.0:11211, STAT 26:state conn_listening.
	// Of the connection: STAT 31:addr tcp:127.0.0.1:4242 … STAT 31:listen_addr tcp:127.0.0.1:11211
	addresses, mine := map[string]string{}, ""
	want := ":" + strconv.Itoa(int(s.trueClient.Port()))
	for _, line := range stats {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		id, key, _ := strings.Cut(f[1], ":")
		switch {
		case key == "addr" && strings.HasSuffix(f[2], want):
			mine = id
			if s.client, err = memcachedAddress(f[2]); err != nil {
				return nil, err
			}
		case key == "listen_addr" && id == mine && mine != "":
			if s.server, err = memcachedAddress(f[2]); err != nil {
				return nil, err
			}
		case key == "addr":
			addresses[id] = strings.ReplaceAll(f[2], strconv.Itoa(i.port), "PORT")
		case key == "state" && f[2] == "conn_listening":
			s.note += addresses[id] + " "
		}
	}
	if !s.client.IsValid() {
		return nil, fmt.Errorf("it does not list the connection: %v", stats)
	}
	return s, nil
}

// memcachedAddress reads tcp:1.2.3.4:5 and tcp6:[::1]:5.
func memcachedAddress(text string) (netip.AddrPort, error) {
	_, address, _ := strings.Cut(text, ":")
	return netip.ParseAddrPort(address)
}

func preparePostgres(i *instance) ([]string, error) {
	dir, err := i.folder("postgres", i.user)
	if err != nil {
		return nil, err
	}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil || len(found) == 0 {
		return nil, fmt.Errorf("no PostgreSQL: %w", err)
	}
	postgres, data := found[0], filepath.Join(dir, "data")
	init := exec.Command("setpriv", "--reuid", i.user, "--regid", i.user, "--clear-groups",
		filepath.Join(filepath.Dir(postgres), "initdb"), "-D", data, "-A", "trust", "-U", "probe", "--no-sync", "--locale=C", "-E", "UTF8")
	init.Dir = "/"
	if out, err := init.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, out)
	}
	i.file("postgres/data/pg_hba.conf", "host all all 127.0.0.1/32 trust\nhost all all ::1/128 trust\n")
	return []string{postgres, "-D", data, "-p", strconv.Itoa(i.port), "-c", "listen_addresses=*",
		"-c", "unix_socket_directories=" + dir, "-c", "fsync=off", "-c", "max_connections=250"}, nil
}

// query is the smallest client of PostgreSQL's protocol 3.0: one simple query,
// its first column.
func query(c net.Conn, sql string) (string, error) {
	start := binary.BigEndian.AppendUint32(nil, 196608)
	start = append(start, "user\x00probe\x00database\x00postgres\x00\x00"...)
	if _, err := c.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(start)+4)), start...)); err != nil {
		return "", err
	}
	r := bufio.NewReader(c)
	answer, asked := "", false
	for {
		head := make([]byte, 5)
		if _, err := io.ReadFull(r, head); err != nil {
			return "", err
		}
		body := make([]byte, min(binary.BigEndian.Uint32(head[1:])-4, 1<<16))
		if _, err := io.ReadFull(r, body); err != nil {
			return "", err
		}
		switch head[0] {
		case 'E':
			return "", fmt.Errorf("%s", strings.ReplaceAll(string(body), "\x00", " "))
		case 'D':
			answer = string(body[6:])
		case 'Z':
			if asked {
				c.Write([]byte{'X', 0, 0, 0, 4})
				return answer, nil
			}
			asked = true
			q := append(binary.BigEndian.AppendUint32([]byte{'Q'}, uint32(len(sql)+5)), sql...)
			if _, err := c.Write(append(q, 0)); err != nil {
				return "", err
			}
		}
	}
}

func prepareMariaDB(i *instance) ([]string, error) {
	dir, err := i.folder("mariadb", i.user)
	if err != nil {
		return nil, err
	}
	data := filepath.Join(dir, "data")
	init := exec.Command("mariadb-install-db", "--no-defaults", "--user="+i.user, "--datadir="+data,
		"--auth-root-authentication-method=normal", "--skip-test-db", "--innodb-log-file-size=8M")
	init.Dir = "/"
	if out, err := init.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("mariadb-install-db: %w: %.2000s", err, out)
	}
	accounts := i.file("accounts.sql", "CREATE USER probe@'127.0.0.1';\nCREATE USER probe@'::1';\n")
	return []string{"/usr/sbin/mariadbd", "--no-defaults", "--datadir=" + data, "--socket=" + dir + "/sock", "--pid-file=" + dir + "/pid",
		"--port=" + strconv.Itoa(i.port), "--bind-address=*", "--skip-name-resolve", "--max-connections=300",
		"--innodb-log-file-size=8M", "--innodb-flush-log-at-trx-commit=0", "--init-file=" + accounts}, nil
}

// queryMySQL is the smallest client of MySQL's protocol: an account without
// password, one query, its first column.
func queryMySQL(c net.Conn, sql string) (string, error) {
	r := bufio.NewReader(c)
	if _, err := packetMySQL(r); err != nil { // greeting
		return "", fmt.Errorf("greeting: %w", err)
	}
	const capabilities = 0x1 | 0x200 | 0x8000 | 0x80000 // long password, 4.1, secure connection, plugin auth
	login := binary.LittleEndian.AppendUint32(nil, capabilities)
	login = binary.LittleEndian.AppendUint32(login, 1<<24)
	login = append(login, 33)
	login = append(login, make([]byte, 23)...)
	login = append(login, "probe\x00\x00mysql_native_password\x00"...)
	if err := sendMySQL(c, 1, login); err != nil {
		return "", err
	}
	if _, err := packetMySQL(r); err != nil {
		return "", fmt.Errorf("login: %w", err)
	}
	if err := sendMySQL(c, 0, append([]byte{3}, sql...)); err != nil {
		return "", err
	}
	// column count, column, EOF, row
	var row []byte
	for range 4 {
		var err error
		if row, err = packetMySQL(r); err != nil {
			return "", err
		}
	}
	sendMySQL(c, 0, []byte{1}) // quit
	if len(row) < 1 || int(row[0]) > len(row)-1 {
		return "", fmt.Errorf("row %q", row)
	}
	return string(row[1 : 1+row[0]]), nil
}

func sendMySQL(c net.Conn, number byte, b []byte) error {
	_, err := c.Write(append([]byte{byte(len(b)), byte(len(b) >> 8), 0, number}, b...))
	return err
}

func packetMySQL(r *bufio.Reader) ([]byte, error) {
	head := make([]byte, 4)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	b := make([]byte, int(head[0])|int(head[1])<<8)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	if len(b) > 3 && b[0] == 0xff {
		return nil, fmt.Errorf("error %s", b[3:])
	}
	return b, nil
}
