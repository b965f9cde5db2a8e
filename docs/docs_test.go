// Package docs_test holds the documentation to what the programs do: examples
// are run, lists are compared with the code, names of files are looked up.
package docs_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// bin is where TestMain has built the programs.
var bin string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	var err error
	if bin, err = os.MkdirTemp("", "socketbox-docs"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(bin)
	if err := os.Chmod(bin, 0o755); err != nil { // whoever the binder becomes has to pass
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	build := exec.Command("go", "build", "-tags", "osusergo,netgo", "-o", bin+"/", "../cmd/...")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n%s", build, err, out)
		return 1
	}
	return m.Run()
}

// read returns a file of the repository, named from its top.
func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// pages returns the names of all Markdown pages.
func pages(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/decisions/*.md"} {
		found, err := filepath.Glob(filepath.Join("..", pattern))
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: %d pages, %v", pattern, len(found), err)
		}
		for _, path := range found {
			all = append(all, strings.TrimPrefix(path, "../"))
		}
	}
	return all
}

// blocks returns the fenced blocks of a language, each behind its place.
func blocks(t *testing.T, language string) map[string]string {
	t.Helper()
	fence := regexp.MustCompile("(?ms)^```" + language + "\n(.*?)^```$")
	found := map[string]string{}
	for _, page := range pages(t) {
		text := read(t, page)
		for _, at := range fence.FindAllStringSubmatchIndex(text, -1) {
			place := fmt.Sprintf("%s:%d", page, 1+strings.Count(text[:at[2]], "\n"))
			found[place] = text[at[2]:at[3]]
		}
	}
	return found
}

// TestConfigurationExamples: socketbox check takes every example, and the one
// that make install puts down.
func TestConfigurationExamples(t *testing.T) {
	examples := blocks(t, "toml")
	if len(examples) < 5 {
		t.Fatalf("%d examples found", len(examples))
	}
	examples["packaging/socketbox.toml.example"] = read(t, "packaging/socketbox.toml.example")
	for place, text := range examples {
		dir := t.TempDir()
		file := filepath.Join(dir, "example.toml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, table := range blocks(t, "tsv") { // that an example names
			if err := os.WriteFile(filepath.Join(dir, "tenants.tsv"), []byte(table), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		check := exec.Command(filepath.Join(bin, "socketbox"), "check", file)
		check.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+t.TempDir())
		if out, err := check.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", place, err, out)
		}
	}
}

// named matches a file or folder of this repository in running text.
var named = regexp.MustCompile("`((?:internal|cmd|docs|packaging|scripts|tests|bench|\\.ci)/[A-Za-z0-9_./@-]+?)/?`")

// link matches a link to another page of this repository, or a place in it.
var link = regexp.MustCompile(`\]\(([^)]+)\)`)

// TestFilesThatPagesName: what a page names is there.
func TestFilesThatPagesName(t *testing.T) {
	count := 0
	for _, page := range pages(t) {
		text := read(t, page)
		for _, m := range named.FindAllStringSubmatch(text, -1) {
			count++
			if _, err := os.Stat(filepath.Join("..", m[1])); err != nil {
				t.Errorf("%s names %s: %v", page, m[1], err)
			}
		}
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			count++
			checkLink(t, page, m[1])
		}
	}
	if count < 50 {
		t.Errorf("only %d names and links found", count)
	}
}

func checkLink(t *testing.T, page, to string) {
	if strings.Contains(to, "://") {
		return
	}
	path, place, _ := strings.Cut(to, "#")
	target := page
	if path != "" {
		target = filepath.Join(filepath.Dir(page), path)
	}
	info, err := os.Stat(filepath.Join("..", target))
	if err != nil {
		t.Errorf("%s links to %s: %v", page, to, err)
		return
	}
	if place != "" && !info.IsDir() && !hasHeading(read(t, target), place) {
		t.Errorf("%s links to %s: no such heading", page, to)
	}
}

// hasHeading looks for a heading by the anchor that Markdown viewers make of
// it: lower case, spaces to dashes, other marks dropped.
func hasHeading(text, anchor string) bool {
	for line := range strings.Lines(text) {
		if title := strings.TrimLeft(line, "#"); title != line && anchorOf(title) == anchor {
			return true
		}
	}
	return false
}

func anchorOf(title string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-' || r == '_' || 'a' <= r && r <= 'z' || '0' <= r && r <= '9':
			return r
		}
		return -1
	}, strings.ToLower(strings.TrimSpace(title)))
}
