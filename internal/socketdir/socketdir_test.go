package socketdir

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSubordinate(t *testing.T) {
	const lines = "other:1:1\nshop:100000:10\n# a remark\nshop:broken\n1007:200000:65536\nshop:4294967290:10\n"
	names := []string{"shop", "1007"}
	for inside, want := range map[uint32]uint32{1: 100000, 10: 100009, 11: 200000, 65546: 265535} {
		if got, err := subordinate(lines, names, inside); err != nil || got != want {
			t.Errorf("uid %d inside is %d outside (%v), not %d", inside, got, err, want)
		}
	}
	for _, inside := range []uint32{65547, 1 << 31, 1<<32 - 2} {
		if got, err := subordinate(lines, names, inside); err == nil {
			t.Errorf("uid %d inside is %d outside", inside, got)
		}
	}
}

func TestParseOwner(t *testing.T) {
	for _, text := range []string{"", "nosuchuser", "podman:root", "podman::1", "podman:root:x", "podman:nosuchuser:1", "4294967295"} {
		if o, err := ParseOwner(text); err == nil {
			t.Errorf("%q is %+v", text, o)
		}
	}
	for text, want := range map[string]Owner{"root": {0, "root"}, "12345": {12345, "12345"}, "podman:root:0": {0, "0"}} {
		if o, err := ParseOwner(text); err != nil || o != want {
			t.Errorf("%q is %+v (%v), not %+v", text, o, err, want)
		}
	}
}

func TestNames(t *testing.T) {
	for _, name := range []string{"", "/etc", "..", "a/../b", "a//b", "a/", ".a", "a b", "a\n", strings.Repeat("x", 80)} {
		if err := (&Plan{Main: "/run/socketbox", Name: name}).Check(); err == nil {
			t.Errorf("%q is accepted", name)
		}
	}
	for _, name := range []string{"shop", "shop/web", "t/2001-db8--1"} {
		if err := (&Plan{Main: "/run/socketbox", Name: name}).Check(); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// mainDirectory returns a main socket directory of the caller's own.
func mainDirectory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "sbxd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Twice the same command makes one directory, whose inode stays; a wrong right
// is mended, and what leads there is left alone.
func TestCreate(t *testing.T) {
	dir := mainDirectory(t)
	p := &Plan{Main: dir, Name: "shop/web", Owner: Owner{UID: os.Getuid()}}
	create := func(want string) {
		t.Helper()
		var said strings.Builder
		if err := p.Create(&said); err != nil || !strings.Contains(said.String(), want) {
			t.Fatalf("%v, it says %q, not %q", err, &said, want)
		}
	}
	create(dir + "/shop made: ")
	look := func(path string) unix.Stat_t {
		t.Helper()
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, path), &st); err != nil {
			t.Fatal(err)
		}
		return st
	}
	before := look("shop/web")
	if before.Mode&0o7777 != mode || look("shop").Mode&0o7777 != passMode {
		t.Errorf("modes %o, %o", look("shop").Mode, before.Mode)
	}
	create("shop/web is as it should be")
	for path, m := range map[string]uint32{"shop": 0o700, "shop/web": 0o777} {
		if err := unix.Chmod(filepath.Join(dir, path), m); err != nil {
			t.Fatal(err)
		}
	}
	create(fmt.Sprintf("shop/web mended: owner %d", os.Getuid()))
	if after := look("shop/web"); after.Ino != before.Ino || after.Mode&0o7777 != mode || look("shop").Mode&0o7777 != 0o700 {
		t.Errorf("inode %d → %d, modes %o, %o", before.Ino, after.Ino, look("shop").Mode, after.Mode)
	}
}

// A tenant who owns what leads there can't have another directory changed.
func TestCreateFollowsNoLink(t *testing.T) {
	dir, elsewhere := mainDirectory(t), t.TempDir()
	if err := os.Symlink(elsewhere, filepath.Join(dir, "shop")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"shop", "shop/web"} {
		p := &Plan{Main: dir, Name: name, Owner: Owner{UID: os.Getuid()}}
		if err := p.Create(&strings.Builder{}); err == nil {
			t.Errorf("%s: a link is followed", name)
		}
	}
	if found, _ := os.ReadDir(elsewhere); len(found) > 0 {
		t.Errorf("made behind the link: %v", found)
	}
}
