// Package receive is what every receiver of hand-offs has in common: where its
// socket is, and the words for its rights on a command line. It runs with the
// privilege of whoever starts the receiver.
package receive

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"socketbox/internal/handoff"
)

// Place is where the receiving socket is.
type Place struct {
	Path      string // absolute
	Inherited int    // a descriptor from the service manager, instead; 0: none
	Make      bool   // make the directory if it is not there
}

// mainDirectory is where root's programs meet.
const mainDirectory = "/run/socketbox"

// PlaceFor finds the receiving socket: socket if given, else port's or, with
// port 0, the default name in dir, else in $SOCKETBOX_DIR, else in the main
// socket directory of root or of this user.
func PlaceFor(socket string, port uint16, dir string, getenv func(string) string) (Place, error) {
	if socket != "" {
		path, err := filepath.Abs(socket)
		return Place{Path: path}, err
	}
	if dir == "" {
		dir = getenv("SOCKETBOX_DIR")
	}
	own := ownDirectory(getenv)
	if dir == "" {
		dir = own
	}
	if dir == "" {
		return Place{}, &handoff.HintError{Err: errors.New("socket directory: unknown, since XDG_RUNTIME_DIR is not set"),
			Text: "log in through a session that sets it, or name a directory with --dir DIR or SOCKETBOX_DIR, the same as for `socketbox bind`"}
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Place{}, fmt.Errorf("socket directory %s: %w", dir, err)
	}
	name := "default.sock"
	if port != 0 {
		name = strconv.Itoa(int(port)) + ".sock"
	}
	return Place{Path: filepath.Join(dir, name), Make: dir == own && dir != mainDirectory}, nil
}

// ownDirectory returns this user's main socket directory, "" if unknown.
func ownDirectory(getenv func(string) string) string {
	if unix.Geteuid() == 0 {
		return mainDirectory
	}
	if run := getenv("XDG_RUNTIME_DIR"); strings.HasPrefix(run, "/") {
		return filepath.Join(run, "socketbox")
	}
	return ""
}

// Open opens the receiver. An error that wraps ErrNoDirectory may be gone a
// moment later: `socketbox bind` makes the directory.
func (p Place) Open(o handoff.Options) (*handoff.Receiver, error) {
	if p.Inherited > 0 {
		return handoff.Inherit(p.Inherited, o)
	}
	dir := filepath.Dir(p.Path)
	if p.Make {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("make socket directory: %w", err)
		}
	}
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNoDirectory, dir)
	}
	return handoff.Listen(p.Path, o)
}

// ErrNoDirectory is waited out: in either order, binder and receiver come to work.
var ErrNoDirectory = errors.New("the socket directory is not there")
