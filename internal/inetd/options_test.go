package inetd

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseLimit(t *testing.T) {
	const unlimited = unix.RLIM_INFINITY
	valid := map[string]struct {
		resource   int
		soft, hard uint64
	}{
		"nofile=64":              {unix.RLIMIT_NOFILE, 64, 64},
		"RLIMIT_NOFILE=64:128":   {unix.RLIMIT_NOFILE, 64, 128},
		"core=0:unlimited":       {unix.RLIMIT_CORE, 0, unlimited},
		"as=512M":                {unix.RLIMIT_AS, 512 << 20, 512 << 20},
		"data=1k:2G":             {unix.RLIMIT_DATA, 1 << 10, 2 << 30},
		"cpu=infinity":           {unix.RLIMIT_CPU, unlimited, unlimited},
		"stack=8388608:16777216": {unix.RLIMIT_STACK, 8 << 20, 16 << 20},
	}
	for text, want := range valid {
		got, err := ParseLimit(text)
		if err != nil || got.Resource != want.resource || got.Cur != want.soft || got.Max != want.hard {
			t.Errorf("%q: got %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "nofile", "nofile=", "nofile=x", "files=3", "nofile=5:4", "nofile=1:", "nofile=-1",
		"as=99999999999G", "nofile=1:2:3", "nofile=unlimited:1", "=4"} {
		if got, err := ParseLimit(text); err == nil {
			t.Errorf("%q: got %+v, no error", text, got)
		}
	}
}

func TestParseUser(t *testing.T) {
	root, err := ParseUser("root")
	if err != nil || root.Credential.UID != 0 || root.Credential.GID != 0 || root.Name != "root" || root.Home == "" {
		t.Errorf("root: got %+v, %v", root, err)
	}
	number, err := ParseUser("54321:54322")
	if err != nil || number.Credential.UID != 54321 || number.Credential.GID != 54322 || len(number.Credential.Groups) != 0 || number.Name != "" {
		t.Errorf("numbers: got %+v, %v", number, err)
	}
	group, err := ParseUser(":54322")
	if err != nil || int(group.Credential.UID) != os.Geteuid() || group.Credential.GID != 54322 {
		t.Errorf("group alone: got %+v, %v", group, err)
	}
	for _, text := range []string{"no such user", "54321", "root:no such group", "4294967295:0", "-1:0", "root:"} {
		if got, err := ParseUser(text); err == nil {
			t.Errorf("%q: got %+v, no error", text, got)
		}
	}
}

func TestPlaceFor(t *testing.T) {
	getenv := func(vars ...string) func(string) string {
		return func(name string) string {
			for _, v := range vars {
				if value, ok := strings.CutPrefix(v, name+"="); ok {
					return value
				}
			}
			return ""
		}
	}
	tests := []struct {
		socket string
		port   uint16
		dir    string
		env    []string
		want   Place
	}{
		{"/x/y.sock", 0, "", nil, Place{Path: "/x/y.sock"}},
		{"", 0, "/d", nil, Place{Path: "/d/default.sock"}},
		{"", 80, "/d/", nil, Place{Path: "/d/80.sock"}},
		{"", 80, "", []string{"SOCKETBOX_DIR=/e", "XDG_RUNTIME_DIR=/run/user/1"}, Place{Path: "/e/80.sock"}},
		{"", 65535, "/d", []string{"SOCKETBOX_DIR=/e"}, Place{Path: "/d/65535.sock"}},
	}
	own := Place{Path: "/run/socketbox/80.sock"}
	if os.Geteuid() != 0 {
		own = Place{Path: "/run/user/1/socketbox/80.sock", Make: true}
	}
	tests = append(tests, struct {
		socket string
		port   uint16
		dir    string
		env    []string
		want   Place
	}{"", 80, "", []string{"XDG_RUNTIME_DIR=/run/user/1"}, own})
	for _, tt := range tests {
		got, err := PlaceFor(tt.socket, tt.port, tt.dir, getenv(tt.env...))
		if err != nil || got != tt.want {
			t.Errorf("%+v: got %+v, %v", tt, got, err)
		}
	}
	if os.Geteuid() != 0 {
		_, err := PlaceFor("", 80, "", getenv())
		var hint interface{ Hint() string }
		if !errors.As(err, &hint) {
			t.Errorf("without XDG_RUNTIME_DIR: %v", err)
		}
	}
}

func TestFindCommand(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"program": 0o755, "file": 0o644} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	tests := []struct {
		name string
		want string
		code int
	}{
		{"program", filepath.Join(dir, "program"), 0},
		{"./program", filepath.Join(dir, "program"), 0},
		{filepath.Join(dir, "program"), filepath.Join(dir, "program"), 0},
		{"file", "", 126},
		{"./file", "", 126},
		{"/", "", 126},
		{"absent", "", 127},
		{"./absent", "", 127},
		{"./file/absent", "", 127},
		{"", "", 127},
	}
	for _, tt := range tests {
		got, err := findCommand(tt.name, "/does/not/exist:"+dir)
		var failed *CommandError
		code := 0
		if errors.As(err, &failed) {
			code = failed.ExitCode
		}
		if got != tt.want || code != tt.code {
			t.Errorf("%q: got %q, %v", tt.name, got, err)
		}
	}
}
