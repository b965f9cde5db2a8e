package config

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"

	"socketbox/internal/rule"
)

// MaxTableFile bounds a table's file, in bytes: four million entries whose
// paths are as long as paths can be.
const MaxTableFile = 512 << 20

// tablePrefix is how a rule's target names a table, and the name of the target
// that the paths of a table share.
const tablePrefix = "table:"

// Table is a large map from addresses to targets, in a file of its own.
type Table struct {
	Name    string
	File    string // relative to the configuration's folder, or absolute
	Target  int    // index of the target that the paths in the file share
	Line    int    // in the configuration
	Content *TableContent
}

// TableContent is what the file of a table says.
type TableContent struct {
	Encoded []byte // a rule.Map, sorted
	Paths   *rule.Paths
	Entries int
}

// TableFile returns where the file of a table is.
func (c *Config) TableFile(t *Table) string {
	if filepath.IsAbs(t.File) {
		return t.File
	}
	return filepath.Join(filepath.Dir(c.Path), t.File)
}

// readTables reads the sections of tables, not their files.
func (p *parser) readTables(top *section) {
	names, sections := top.named("table")
	if len(names) > rule.MaxMaps {
		sections[rule.MaxMaps].header().fail("%d tables, at most %d", len(names), rule.MaxMaps)
	}
	for i, s := range sections {
		name := names[i]
		if err := checkTargetName(name); err != nil {
			s.doc.fail(s.node.keyOffset(), "", "table: %w", err)
		}
		file, v, ok := s.text("file")
		switch {
		case !ok && v.any == nil:
			s.missing("file", `the path of a file of lines "prefix<TAB>target"`)
		case ok && (file == "" || strings.HasSuffix(file, "/")):
			v.fail("%q: expected the path of a file", file)
		}
		hold := readHold(s, p.hold)
		s.refuseRest()
		t := Table{Name: name, File: file, Target: len(p.config.Targets), Line: s.line()}
		p.config.Targets = append(p.config.Targets, Target{Name: tablePrefix + name, Hold: hold, Line: t.Line})
		p.tables[name] = len(p.config.Tables)
		p.config.Tables = append(p.config.Tables, t)
	}
}

// LoadTable makes the content of table i of the text of its file. It fails
// with everything that is wrong in it, one *Error with file and line each, and
// leaves the content that the table had. c must not be in use meanwhile.
func (c *Config) LoadTable(i int, text []byte) error {
	t := &c.Tables[i]
	r := tableReader{name: c.TableFile(t), text: text, targets: map[string]rule.To{}, paths: map[string]rule.To{}}
	r.content.Paths = &rule.Paths{}
	for i, target := range c.Targets {
		r.targets[target.Name] = rule.ToTarget(i)
	}
	r.targets[rejectTarget] = rule.ToReject
	r.read()
	if len(r.errs) > 0 {
		return join(r.errs)
	}
	r.content.Entries = len(r.entries)
	r.content.Encoded = rule.EncodeMap(r.entries)
	r.content.Paths.Clip()
	content := r.content // not a part of r, which is large
	t.Content = &content
	return nil
}

// tableReader reads one file of a table.
type tableReader struct {
	name    string
	text    []byte
	line    int
	targets map[string]rule.To
	paths   map[string]rule.To // the latest of Content.Paths
	entries []rule.MapEntry
	content TableContent
	errs    []*Error
}

func (r *tableReader) fail(line int, format string, args ...any) {
	if len(r.errs) > maxErrors { // one more, so that join says that there are
		return
	}
	r.errs = append(r.errs, &Error{
		Where: fmt.Sprintf("%s:%d", r.name, line), Err: fmt.Errorf(format, args...), position: position{line: line},
	})
}

// read reads all lines. A last line without an end is an error: the file is
// only half written.
func (r *tableReader) read() {
	r.entries = make([]rule.MapEntry, 0, min(bytes.Count(r.text, []byte("\n")), rule.MaxMapEntries))
	for rest := r.text; len(rest) > 0; {
		r.line++
		line, after, ended := bytes.Cut(rest, []byte("\n"))
		if !ended {
			r.fail(r.line, "the last line has no end: the file is not complete")
			return
		}
		rest = after
		if line = bytes.TrimSuffix(line, []byte("\r")); len(line) == 0 || line[0] == '#' {
			continue
		}
		if len(r.entries) == rule.MaxMapEntries {
			r.fail(r.line, "more than %d entries", rule.MaxMapEntries)
			return
		}
		if err := r.entry(line); err != nil {
			r.fail(r.line, "%w", err)
		}
	}
	for _, twice := range rule.SortMap(r.entries) {
		r.fail(twice[1].Line(), "%s is already in line %d", twice[1].Prefix(), twice[0].Line())
	}
}

var errColumns = errors.New(`expected "prefix<TAB>target" or "prefix<TAB>port<TAB>target"`)

// entry reads one line: prefix, target, and a port between them if there is
// one.
func (r *tableReader) entry(line []byte) error {
	first, rest, ok := bytes.Cut(line, []byte("\t"))
	if !ok {
		return errColumns
	}
	prefix, err := tablePrefixOf(string(first))
	if err != nil {
		return err
	}
	port := uint16(0)
	if middle, last, ok := bytes.Cut(rest, []byte("\t")); ok {
		n, err := strconv.ParseUint(string(middle), 10, 16)
		if err != nil || n == 0 {
			return fmt.Errorf("port %.40q: expected 1 to 65535", middle)
		}
		port, rest = uint16(n), last
	}
	if bytes.IndexByte(rest, '\t') >= 0 {
		return errColumns
	}
	to, err := r.to(rest)
	if err != nil {
		return err
	}
	r.entries = append(r.entries, rule.NewMapEntry(prefix, port, to, r.line))
	return nil
}

// tablePrefixOf is parsePrefix without its detours: it is called a million
// times.
func tablePrefixOf(text string) (netip.Prefix, error) {
	if strings.IndexByte(text, '/') < 0 {
		if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" && !a.Is4In6() {
			return netip.PrefixFrom(a, a.BitLen()), nil
		}
	}
	return parsePrefix(text)
}

// fewPaths is how many paths are remembered. A file with so few of them has
// each once in its content; where there are more, sharing them is not worth a
// map of a million paths.
const fewPaths = 4096

// to reads a target's name, "reject", or a path.
func (r *tableReader) to(text []byte) (rule.To, error) {
	if to, ok := r.paths[string(text)]; ok {
		return to, nil
	}
	if len(text) == 0 || text[0] != '/' {
		if to, ok := r.targets[string(text)]; ok && !bytes.HasPrefix(text, []byte(tablePrefix)) {
			return to, nil
		}
		return 0, fmt.Errorf("no target is named %.80q; it may also be an absolute path or \"reject\"", text)
	}
	t, err := rule.ParseTemplate(string(text))
	if err != nil {
		return 0, err
	}
	to := rule.ToPath(r.content.Paths.Add(t))
	if len(r.paths) == fewPaths {
		clear(r.paths)
	}
	r.paths[string(text)] = to
	return to, nil
}
