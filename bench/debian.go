package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// debianProgram returns a program of a Debian package: the installed one, or
// one unpacked into the cache, since openbsd-inetd and xinetd cannot be
// installed beside each other and neither should start as a service.
func (b *bench) debianProgram(pkg, program string) (string, error) {
	status, err := exec.Command("dpkg-query", "-W", "-f", "${db:Status-Status}", pkg).Output()
	if err == nil && string(status) == "installed" {
		return "/" + program, nil
	}
	cache, err := filepath.Abs(b.cache)
	if err != nil {
		return "", err
	}
	unpacked := filepath.Join(cache, pkg)
	path := filepath.Join(unpacked, program)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := b.unpack(pkg, unpacked); err != nil {
		return "", err
	}
	_, err = os.Stat(path)
	return path, err
}

// unpack downloads a package with apt-get and unpacks it, without running any
// of its scripts. The directory appears only when it is complete.
func (b *bench) unpack(pkg, dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(dir), pkg+"-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	// apt's own user could not write into the work directory.
	if err := b.runIn(work, "apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", pkg); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil || len(files) != 1 {
		return fmt.Errorf("download %s: %d packages came", pkg, len(files))
	}
	tree := filepath.Join(work, "tree")
	if err := b.runIn(work, "dpkg-deb", "-x", files[0], tree); err != nil {
		return err
	}
	return os.Rename(tree, dir)
}

// runIn runs a program in a directory; what it said is part of the error.
func (b *bench) runIn(dir, program string, args ...string) error {
	cmd := exec.CommandContext(b.ctx, program, args...)
	cmd.Dir = dir
	text, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, excerpt(text))
	}
	return nil
}
