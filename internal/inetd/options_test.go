package inetd

import (
	"errors"
	"os"
	"path/filepath"
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
		got, err := FindCommand(tt.name, "/does/not/exist:"+dir)
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
