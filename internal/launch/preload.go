package launch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"socketbox/internal/handoff"
)

const libraryName = "libsocketbox-preload.so"

// findLibrary returns the path of the preload library: named, or beside this
// program, or where it is installed.
func findLibrary(named, variable string, musl bool) (string, error) {
	for _, path := range []string{named, variable} {
		if path == "" {
			continue
		}
		path, err := filepath.Abs(path)
		if err == nil {
			_, err = os.Stat(path)
		}
		if err != nil {
			return "", fmt.Errorf("the preload library: %w", err)
		}
		return path, nil
	}
	var looked []string
	if own, err := os.Executable(); err == nil {
		dir := filepath.Dir(own)
		looked = append(looked, dir, filepath.Join(dir, "../lib/socketbox"))
	}
	looked = append(looked, "/usr/lib/socketbox")
	for _, dir := range looked {
		if musl {
			dir = filepath.Join(dir, "musl")
		}
		path := filepath.Join(dir, libraryName)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	kind := libraryName
	if musl {
		kind = "musl/" + libraryName
	}
	return "", &handoff.HintError{Err: fmt.Errorf("%s is in none of %s", kind, strings.Join(looked, ", ")),
		Text: "name it with --preload PATH; `make build` and `make install` put it there"}
}

// preloadEnvironment has the daemon load the library, and tells that where to
// meet socketbox.
func preloadEnvironment(env []string, o *Options, musl bool) ([]string, error) {
	library, err := findLibrary(o.Library, variable(o.Environ, "SOCKETBOX_PRELOAD"), musl)
	if err != nil {
		return nil, err
	}
	if strings.ContainsAny(library, ": ") {
		return nil, errors.New("the preload library's path has a space or a colon, at which the loader would divide it: " + library)
	}
	if others := variable(env, "LD_PRELOAD"); others != "" {
		library += ":" + others
	}
	env = withoutVariables(env, "LD_PRELOAD", "SOCKETBOX_DIR", "SOCKETBOX_PORTS", "SOCKETBOX_PRELOAD")
	env = append(env, "LD_PRELOAD="+library, "SOCKETBOX_DIR="+o.Dir)
	if !o.Ports.All {
		env = append(env, "SOCKETBOX_PORTS="+o.Ports.String())
	}
	return env, nil
}

// variable returns the value of a variable in an environment.
func variable(env []string, name string) string {
	for _, entry := range env {
		if value, ok := strings.CutPrefix(entry, name+"="); ok {
			return value
		}
	}
	return ""
}
