package rule

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Families of a connection, as {family} and the names in a socket directory
// spell them.
const (
	IPv4 = "ipv4"
	IPv6 = "ipv6"
	Unix = "unix"
)

// maxPath is what sun_path holds beside its NUL (unix(7)). A template whose
// plain text alone is longer can never be connected to.
const maxPath = 107

// maxTemplate bounds a template with its words: it is a target's name too.
const maxTemplate = maxName

// words are the template words and the facts that they show.
var words = map[string]Keys{
	"port":     KeyPort,
	"local":    KeyLocal,
	"remote":   KeyRemote,
	"family":   KeyFamily,
	"listener": KeyListener,
}

// Facts is what a template can show of a connection. Addresses are invalid
// for a connection of a Unix listener.
type Facts struct {
	Listener      string
	Port          uint16
	Local, Remote netip.Addr
	Family        string // IPv4, IPv6 or Unix
}

// Template is an absolute path in which words in braces stand for facts of a
// connection. A trailing slash makes it a socket directory. Templates compare
// with ==.
type Template struct {
	text string
	keys Keys
}

// ParseTemplate reads an absolute path with the words {port} {local} {remote}
// {family} {listener}. Doubled slashes become one; "." and ".." are refused,
// since a path of the configuration should say where it leads.
func ParseTemplate(s string) (Template, error) {
	if !strings.HasPrefix(s, "/") {
		return Template{}, fmt.Errorf("path %q is not absolute: it must begin with \"/\"", s)
	}
	if len(s) > maxTemplate {
		return Template{}, fmt.Errorf("path %.40q... is too long: at most %d bytes", s, maxTemplate)
	}
	if i := strings.IndexFunc(s, isControl); i >= 0 {
		return Template{}, fmt.Errorf("path %q has a control character at byte %d", s, i+1)
	}
	keys, plain, err := scanWords(s)
	if err != nil {
		return Template{}, fmt.Errorf("path %q: %w", s, err)
	}
	if plain > maxPath {
		return Template{}, fmt.Errorf("path %q is too long: a Unix socket's path has at most %d bytes", s, maxPath)
	}
	text, err := squeeze(s)
	if err != nil {
		return Template{}, fmt.Errorf("path %q: %w", s, err)
	}
	t := Template{text: text, keys: keys}
	if t.IsDir() {
		// The names searched in a directory have the port and the family.
		t.keys |= KeyPort | KeyFamily
	}
	return t, nil
}

// scanWords returns the facts that s shows and the length of its plain text.
func scanWords(s string) (keys Keys, plain int, err error) {
	for s != "" {
		open := strings.IndexAny(s, "{}")
		if open < 0 {
			return keys, plain + len(s), nil
		}
		if s[open] == '}' {
			return 0, 0, errors.New(`"}" without "{"`)
		}
		word, rest, closed := strings.Cut(s[open+1:], "}")
		if !closed {
			return 0, 0, errors.New(`"{" without "}"`)
		}
		key, known := words[word]
		if !known {
			return 0, 0, fmt.Errorf("unknown word {%s}: expected {port}, {local}, {remote}, {family} or {listener}", word)
		}
		keys |= key
		plain += open
		s = rest
	}
	return keys, plain, nil
}

// squeeze drops empty components and refuses those that walk.
func squeeze(s string) (string, error) {
	if !strings.Contains(s, "//") && !strings.Contains(s, "/.") {
		return s, nil
	}
	var b strings.Builder
	for part := range strings.SplitSeq(s, "/") {
		switch part {
		case "":
			continue
		case ".", "..":
			return "", fmt.Errorf("component %q is not allowed", part)
		}
		b.WriteByte('/')
		b.WriteString(part)
	}
	if strings.HasSuffix(s, "/") {
		b.WriteByte('/')
	}
	return b.String(), nil
}

func isControl(r rune) bool { return r < 0x20 || r == 0x7f }

// Keys returns the facts that choose the path.
func (t Template) Keys() Keys { return t.keys }

// IsDir reports whether the path is a socket directory.
func (t Template) IsDir() bool { return strings.HasSuffix(t.text, "/") }

// String returns the template as ParseTemplate reads it.
func (t Template) String() string { return t.text }

// Expand returns the path for one connection. It is absolute and has no "."
// and no ".." component whatever the facts are: a listener's name or an
// address can't lead out of the directories that the template names.
func (t Template) Expand(f Facts) string {
	if !strings.Contains(t.text, "{") {
		return t.text
	}
	return strings.NewReplacer(
		"{port}", strconv.Itoa(int(f.Port)),
		"{local}", pathAddr(f.Local),
		"{remote}", pathAddr(f.Remote),
		"{family}", pathWord(f.Family),
		"{listener}", pathWord(f.Listener),
	).Replace(t.text)
}

// pathAddr spells an address for a path, without its zone.
func pathAddr(a netip.Addr) string {
	if !a.IsValid() {
		return Unix
	}
	return pathWord(a.Unmap().WithZone("").String())
}

// pathWord makes s fit for a part of a path component. The result is never
// empty and never begins with a dot, so that no component can become "..".
func pathWord(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == '/' || r == ':' || isControl(r) {
			return '-'
		}
		return r
	}, s)
	switch {
	case s == "":
		return "-"
	case s[0] == '.':
		return "-" + s[1:]
	}
	return s
}

// FamilyOf returns the family of a connection by its local address, which is
// unmapped, or invalid for a connection of a Unix listener.
func FamilyOf(local netip.Addr) string {
	switch {
	case local.Is4():
		return IPv4
	case local.Is6():
		return IPv6
	}
	return Unix
}

// Candidates returns the paths of the sockets in dir that may take a
// connection, best first. An IPv6 connection goes to a receiver of IPv4 before
// it goes to the default, since receivers map the address.
func Candidates(dir string, port uint16, family string) []string {
	if !strings.HasSuffix(dir, "/") {
		dir += "/"
	}
	plain := dir + strconv.Itoa(int(port))
	switch family {
	case IPv4:
		return []string{plain + ".ipv4.sock", plain + ".sock", dir + "default.sock"}
	case IPv6:
		return []string{plain + ".ipv6.sock", plain + ".sock", plain + ".ipv4.sock", dir + "default.sock"}
	}
	return []string{dir + "default.sock"}
}
