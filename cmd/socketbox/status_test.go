package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestMainDir(t *testing.T) {
	t.Setenv("SOCKETBOX_DIR", "")
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/12345")
	fallback := "/run/socketbox"
	if os.Geteuid() != 0 {
		fallback = "/run/user/12345/socketbox"
	}
	write := func(name, text string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	named := write("named", "dir = \"/srv/box\"\n[[listener]]\naddress = \":80\"\n")
	silent := write("silent", "[[listener]]\naddress = \":80\"\n")
	broken := write("broken", "dir = ")
	for _, c := range []struct{ flag, env, path, want string }{
		{"/a", "/b", named, "/a"},
		{"", "/b", named, "/b"},
		{"", "", named, "/srv/box"},
		{"", "", silent, fallback},
		{"", "", broken, fallback}, // an earlier version of it is in force
	} {
		t.Setenv("SOCKETBOX_DIR", c.env)
		if got, err := mainDir(c.flag, c.path); err != nil || got != c.want {
			t.Errorf("mainDir(%q, %s) with SOCKETBOX_DIR=%q: %q, %v; want %q", c.flag, filepath.Base(c.path), c.env, got, err, c.want)
		}
	}
	if _, err := mainDir("", filepath.Join(t.TempDir(), "missing")); err == nil {
		t.Error("a file that is not there: no error")
	}
}
