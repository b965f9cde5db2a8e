//go:build compat

package compat

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

var mail = []*daemon{{
	name: "Postfix smtpd", packages: "postfix", listens: "46",
	remark: "needs `import_environment`; load: greeting and QUIT; addresses: what a policy server is told",
	reload: syscall.SIGHUP, reloaded: "reload -- version", logFile: "logs/mail.log",
	prepare: preparePostfix,
	ask: func(c net.Conn) error {
		r := bufio.NewReader(c)
		if err := expect(r, "220"); err != nil {
			return err
		}
		io.WriteString(c, "QUIT\r\n")
		return expect(r, "221")
	},
	report:  reportPostfix,
	special: delivered,
}, {
	name: "Dovecot imap", packages: "dovecot-imapd", listens: "46",
	remark: "needs `import_environment`; load: greeting and LOGOUT; addresses: rip, rport, lip, lport of a real login",
	reload: syscall.SIGHUP, reloaded: "SIGHUP received", logFile: "log",
	prepare: prepareDovecot,
	ask: func(c net.Conn) error {
		r := bufio.NewReader(c)
		if err := expect(r, "* OK"); err != nil {
			return err
		}
		io.WriteString(c, "a LOGOUT\r\n")
		return expect(r, "* BYE")
	},
	report: func(i *instance, d *net.Dialer, to string) (*sight, error) {
		s, err := visit(d, i.at(to), func(c net.Conn) error {
			r := bufio.NewReader(c)
			if err := expect(r, "* OK"); err != nil {
				return err
			}
			io.WriteString(c, "a LOGIN probe x\r\n")
			if err := expect(r, "* CAPABILITY", "a OK"); err != nil {
				return err
			}
			io.WriteString(c, "b LOGOUT\r\n")
			return expect(r, "* BYE", "a OK")
		})
		if err != nil {
			return nil, err
		}
		line, err := logged(filepath.Join(i.dir, "log"), fmt.Sprintf("rport=%d,", s.trueClient.Port()))
		if err != nil {
			return nil, err
		}
		told := map[string]string{"rip": "-", "rport": "-", "lip": "-", "lport": "-"}
		for word := range strings.FieldsSeq(line) {
			key, value, _ := strings.Cut(strings.TrimRight(word, ","), "=")
			told[key] = value
		}
		return s, s.fields(told["rip"] + " " + told["rport"] + " " + told["lip"] + " " + told["lport"])
	},
}}

// imported are the variables that must reach the processes of a daemon that
// clears its environment.
const imported = "LD_PRELOAD SOCKETBOX_DIR SOCKETBOX_PORTS SOCKETBOX_HANDOFF SOCKETBOX_DEBUG"

// expect reads a line that begins with one of the texts.
func expect(r *bufio.Reader, texts ...string) error {
	line, err := r.ReadString('\n')
	if err != nil {
		return fmt.Errorf("after %q: %w", line, err)
	}
	for _, text := range texts {
		if strings.HasPrefix(line, text) {
			return nil
		}
	}
	return fmt.Errorf("answer %q", line)
}

func preparePostfix(i *instance) ([]string, error) {
	for name, owner := range map[string]string{"etc": "root", "spool": "root", "lib": "postfix", "mail": "mail", "logs": "root"} {
		if _, err := i.folder(name, owner); err != nil {
			return nil, err
		}
	}
	etc := filepath.Join(i.dir, "etc")
	conf := `
compatibility_level = 3.6
queue_directory = DIR/spool
data_directory = DIR/lib
meta_directory = /etc/postfix
maillog_file_prefixes = DIR
maillog_file = DIR/logs/mail.log
myhostname = compat.test
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = all
inet_protocols = all
smtpd_peername_lookup = no
smtpd_client_connection_count_limit = 0
smtpd_relay_restrictions = reject_unauth_destination
smtpd_recipient_restrictions = check_policy_service unix:DIR/policy
virtual_mailbox_domains = compat.test
virtual_mailbox_base = DIR/mail
virtual_mailbox_maps = static:box/
virtual_minimum_uid = 1
virtual_uid_maps = static:UID
virtual_gid_maps = static:GID
alias_maps =
biff = no
import_environment = MAIL_CONFIG MAIL_LOGTAG TZ LANG=C IMPORTED
`
	uid, gid, err := ids("mail")
	if err != nil {
		return nil, err
	}
	conf = strings.NewReplacer("DIR", i.dir, "UID", strconv.Itoa(uid), "GID", strconv.Itoa(gid), "IMPORTED", imported).Replace(conf)
	i.file("etc/main.cf", conf)
	i.file("etc/master.cf", ports(`
%d        inet  n - n - -    smtpd
cleanup   unix  n - n - 0    cleanup
qmgr      unix  n - n 300 1  qmgr
rewrite   unix  - - n - -    trivial-rewrite
bounce    unix  - - n - 0    bounce
defer     unix  - - n - 0    bounce
trace     unix  - - n - 0    bounce
virtual   unix  - n n - -    virtual
anvil     unix  - - n - 1    anvil
postlog   unix-dgram n - n - 1 postlogd
error     unix  - - n - -    error
retry     unix  - - n - -    error
proxymap  unix  - - n - -    proxymap
`, i.port))
	if out, err := exec.Command("postfix", "-c", etc, "check").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("postfix check: %w: %s", err, out)
	}
	if err := policy(i); err != nil {
		return nil, err
	}
	return []string{"env", "MAIL_CONFIG=" + etc, "/usr/lib/postfix/sbin/master", "-c", etc, "-d"}, nil
}

// policy is a policy server that lets everything pass and writes down what
// Postfix says of the connection.
func policy(i *instance) error {
	path := filepath.Join(i.dir, "policy")
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	i.t.Cleanup(func() { l.Close() })
	if err := os.Chmod(path, 0o666); err != nil {
		return err
	}
	told, err := os.Create(filepath.Join(i.dir, "told.log"))
	if err != nil {
		return err
	}
	i.t.Cleanup(func() { told.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go answerPolicy(c, told)
		}
	}()
	return nil
}

func answerPolicy(c net.Conn, told io.Writer) {
	defer c.Close()
	attributes := map[string]string{}
	for r := bufio.NewScanner(c); r.Scan(); {
		key, value, _ := strings.Cut(r.Text(), "=")
		if key != "" {
			attributes[key] = value
			continue
		}
		fmt.Fprintf(told, "%s %s %s %s\n", attributes["client_address"], attributes["client_port"], attributes["server_address"], attributes["server_port"])
		io.WriteString(c, "action=DUNNO\n\n")
	}
}

// mailFrom sends a mail with the given subject.
func mailFrom(c net.Conn, subject string) error {
	t := textproto.NewConn(c)
	if _, _, err := t.ReadResponse(220); err != nil {
		return err
	}
	for _, step := range []struct {
		line string
		code int
	}{
		{"EHLO client.test", 250}, {"MAIL FROM:<sender@client.test>", 250}, {"RCPT TO:<box@compat.test>", 250}, {"DATA", 354},
		{"Subject: " + subject + "\r\n\r\nhello\r\n.", 250}, {"QUIT", 221},
	} {
		if err := t.PrintfLine("%s", step.line); err != nil {
			return err
		}
		if _, _, err := t.ReadResponse(step.code); err != nil {
			return fmt.Errorf("%.20s: %w", step.line, err)
		}
	}
	return nil
}

func reportPostfix(i *instance, d *net.Dialer, to string) (*sight, error) {
	s, err := visit(d, i.at(to), func(c net.Conn) error { return mailFrom(c, "from "+to) })
	if err != nil {
		return nil, err
	}
	line, err := logged(filepath.Join(i.dir, "told.log"), fmt.Sprintf(" %d ", s.trueClient.Port()))
	if err != nil {
		return nil, err
	}
	return s, s.fields(line)
}

// delivered checks that the mails of reportPostfix are in the mailbox and name
// their clients.
func delivered(i *instance) error {
	return within(20*time.Second, func() error {
		found, err := filepath.Glob(filepath.Join(i.dir, "mail/box/new/*"))
		if err != nil {
			return err
		}
		for _, want := range []string{"[" + client4 + "]", "[IPv6:" + client6 + "]"} {
			ok := false
			for _, file := range found {
				b, err := os.ReadFile(file)
				ok = ok || err == nil && strings.Contains(string(b), want)
			}
			if !ok {
				return fmt.Errorf("%d mails delivered, none received from %s", len(found), want)
			}
		}
		return nil
	})
}

func prepareDovecot(i *instance) ([]string, error) {
	for name, owner := range map[string]string{"run": "root", "mail": "mail"} {
		if _, err := i.folder(name, owner); err != nil {
			return nil, err
		}
	}
	conf := `
base_dir = DIR/run
state_dir = DIR/run
protocols = imap
listen = 0.0.0.0, ::
ssl = no
disable_plaintext_auth = no
log_path = DIR/log
login_log_format_elements = rip=%r rport=%b lip=%l lport=%a end
mail_location = maildir:DIR/mail
mail_access_groups = mail
first_valid_uid = 1
first_valid_gid = 1
import_environment = TZ CORE_OUTOFMEM CORE_ERROR IMPORTED
service imap-login {
  inet_listener imap {
    port = PORT
  }
  inet_listener imaps {
    port = 0
  }
  process_limit = 256
}
service stats {
  unix_listener stats-writer {
    mode = 0666
  }
}
passdb {
  driver = static
  args = nopassword=y
}
userdb {
  driver = static
  args = uid=mail gid=mail home=DIR/mail
}
`
	conf = strings.NewReplacer("DIR", i.dir, "PORT", strconv.Itoa(i.port), "IMPORTED", imported).Replace(conf)
	return []string{"dovecot", "-F", "-c", i.file("dovecot.conf", conf)}, nil
}
