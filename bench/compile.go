package main

import (
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// The C programs travel inside the bench, so that it runs from any folder.
var (
	//go:embed ref.c
	refSource []byte
	//go:embed receiver.c
	receiverSource []byte
	//go:embed load.c
	loadSource []byte
	//go:embed tiny.c
	tinySource []byte
	//go:embed pump.c
	pumpSource []byte
)

// buildPrograms compiles the C programs into the temporary folder.
func (b *bench) buildPrograms() error {
	for _, p := range []struct {
		name   string
		source []byte
		flags  []string
	}{
		{"ref", refSource, nil},
		{"receiver", receiverSource, nil},
		{"load", loadSource, []string{"-pthread"}},
		{"tiny", tinySource, []string{"-static"}},
		{"pump", pumpSource, []string{"-pthread"}},
	} {
		if err := b.compile(p.name, p.source, p.flags...); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) compile(name string, source []byte, flags ...string) error {
	file := filepath.Join(b.dir, name+".c")
	if err := os.WriteFile(file, source, 0o644); err != nil {
		return err
	}
	args := append([]string{"-O2", "-Wall", "-Wextra", "-Werror", "-o", b.tool(name), file}, flags...)
	if text, err := exec.CommandContext(b.ctx, "cc", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("compile %s.c: %w\n%s", name, err, text)
	}
	return nil
}

// tool returns the path of a compiled C program.
func (b *bench) tool(name string) string {
	return filepath.Join(b.dir, name)
}
