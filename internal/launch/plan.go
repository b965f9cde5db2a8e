package launch

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"socketbox/internal/handoff"
	"socketbox/internal/inetd"
	"socketbox/internal/listen"
	"socketbox/internal/privsep/isolate"
)

// plan is what Options come to on this machine, for every start of the daemon.
type plan struct {
	via     Via
	looks   looks
	path    string // of the program
	env     []string
	newNet  bool
	newUser bool
	maps    []idMap
	netns   int      // a namespace to enter, -1: none
	missing []string // what --isolate can't do here
}

// newPlan looks at the program and at what this process may do.
func newPlan(o *Options, log func(string, ...any)) (*plan, error) {
	p := &plan{newNet: o.NewNet, newUser: o.NewUser, netns: -1}
	if p.newNet && !hasCapability(unix.CAP_SYS_ADMIN) {
		p.newUser = true
	}
	var err error
	if p.path, err = inetd.FindCommand(o.Command[0], variable(o.Environ, "PATH")); err != nil {
		return nil, err
	}
	if err := p.chooseVia(o, log); err != nil {
		return nil, err
	}
	o.Isolate.KeepCaps = o.KeepCaps
	if p.missing, err = isolate.Check(o.Isolate); err != nil {
		return nil, err
	}
	if p.newUser {
		if o.User.Credential != nil && int(o.User.Credential.UID) != unix.Geteuid() {
			o.MapRoot = true // becoming somebody else takes a root who may
		}
		if p.maps, err = userMaps(o); err != nil {
			return nil, err
		}
	}
	if o.NetNS != "" {
		if p.netns, err = listen.OpenNamespace(o.NetNS); err != nil {
			return nil, err
		}
	}
	return p, p.environment(o)
}

// environment is that of the daemon.
func (p *plan) environment(o *Options) error {
	env := withoutVariables(o.Environ, "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
	if u := o.User; u.Name != "" {
		env = append(withoutVariables(env, "USER", "LOGNAME", "HOME"), "USER="+u.Name, "LOGNAME="+u.Name, "HOME="+u.Home)
	}
	for _, entry := range o.Env {
		name, _, _ := strings.Cut(entry, "=")
		env = append(withoutVariables(env, name), entry)
	}
	if p.via == ViaPreload {
		var err error
		if env, err = preloadEnvironment(env, o, p.looks.musl); err != nil {
			return err
		}
	}
	p.env = env
	return nil
}

// chooseVia decides how binds are answered.
func (p *plan) chooseVia(o *Options, log func(string, ...any)) error {
	p.via = o.Via
	if o.OnDemand && o.Ports.All {
		return &handoff.HintError{Err: errors.New("--on-demand looks at the listeners of the daemon's ports, and no port is named"), Text: "name them: --ports 80,443"}
	}
	if o.Via == ViaListenFDs && o.Ports.All {
		return &handoff.HintError{Err: errors.New("--via listen-fds passes listening sockets, and no port is named"), Text: "name them: --ports 80,443"}
	}
	if o.Via != ViaAuto && o.Via != ViaPreload {
		return nil
	}
	found, err := inspect(p.path)
	if err != nil {
		return fmt.Errorf("look at %s: %w", p.path, err)
	}
	p.looks = found
	switch {
	case o.Via == ViaPreload && found.why != "":
		return &handoff.HintError{Err: fmt.Errorf("the preload library has no effect on %s: %s", p.path, found.why), Text: "--via notify"}
	case o.Via == ViaPreload:
		return nil
	case found.foreign:
		return &handoff.HintError{Err: fmt.Errorf("%s: %s: neither the preload library nor the filter is made for it", p.path, found.why), Text: "--via listen-fds, or --via none"}
	case found.why != "":
		p.via = ViaNotify
	default:
		p.via = ViaPreload
		if _, err := findLibrary(o.Library, variable(o.Environ, "SOCKETBOX_PRELOAD"), found.musl); err != nil {
			if o.Library != "" || !found.musl {
				return err
			}
			p.via, found.why = ViaNotify, "there is no preload library for musl here"
		}
	}
	log("via "+string(p.via), "program", p.path, "why", found.reason())
	return nil
}

// looks is what matters of a program for how it can be served.
type looks struct {
	why     string // why the preload library has no effect on it; "": it has
	foreign bool   // of another architecture
	musl    bool
}

func (l looks) reason() string {
	if l.why != "" {
		return l.why
	}
	return "dynamically linked"
}

// maxInterpreters is how many scripts the kernel follows to an interpreter.
const maxInterpreters = 5

// inspect reads the head of a program: of ELF, or a script whose interpreter is.
func inspect(path string) (looks, error) {
	for range maxInterpreters {
		file, err := os.Open(path)
		if errors.Is(err, os.ErrPermission) {
			return looks{why: "it can be executed and not read"}, nil
		}
		if err != nil {
			return looks{}, errors.Unwrap(err)
		}
		interpreter, found, err := inspectFile(file)
		file.Close()
		if interpreter == "" {
			return found, err
		}
		path = interpreter
	}
	return looks{}, errors.New("scripts that are interpreted by scripts, without an end")
}

func inspectFile(file *os.File) (interpreter string, found looks, err error) {
	head := make([]byte, 256)
	n, _ := file.ReadAt(head, 0)
	if text := string(head[:n]); strings.HasPrefix(text, "#!") {
		line, _, _ := strings.Cut(text[2:], "\n")
		if words := strings.Fields(line); len(words) > 0 {
			return throughEnv(words), looks{}, nil
		}
	}
	info, err := file.Stat()
	if err != nil {
		return "", looks{}, err
	}
	binary, err := elf.NewFile(file)
	if err != nil {
		return "", looks{why: "it is neither ELF nor a script"}, nil
	}
	return "", inspectELF(binary, info.Mode(), hasFileCapabilities(file)), nil
}

// throughEnv returns the interpreter that a script's first line names, behind
// `/usr/bin/env` if that is there.
func throughEnv(words []string) string {
	if filepath.Base(words[0]) != "env" {
		return words[0]
	}
	for _, word := range words[1:] {
		if strings.HasPrefix(word, "-") || strings.Contains(word, "=") {
			continue
		}
		if path, err := inetd.FindCommand(word, os.Getenv("PATH")); err == nil {
			return path
		}
		break
	}
	return words[0]
}

func inspectELF(f *elf.File, mode os.FileMode, fileCaps bool) looks {
	if !native(f) {
		return looks{why: fmt.Sprintf("a program for %s", strings.TrimPrefix(f.Machine.String(), "EM_")), foreign: true}
	}
	interpreter := ""
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP && p.Filesz < 4096 {
			text := make([]byte, p.Filesz)
			p.ReadAt(text, 0)
			interpreter = strings.TrimRight(string(text), "\x00")
		}
	}
	switch {
	case interpreter == "":
		return looks{why: "statically linked"}
	case mode&(os.ModeSetuid|os.ModeSetgid) != 0:
		return looks{why: "setuid: the loader ignores LD_PRELOAD"}
	case fileCaps:
		return looks{why: "it has file capabilities: the loader ignores LD_PRELOAD"}
	}
	return looks{musl: strings.Contains(filepath.Base(interpreter), "ld-musl")}
}

// native tells whether a program is of this program's own architecture.
func native(f *elf.File) bool {
	own, err := elf.Open("/proc/self/exe")
	if err != nil {
		return true
	}
	defer own.Close()
	return own.Machine == f.Machine && own.Class == f.Class
}

func hasFileCapabilities(file *os.File) bool {
	n, err := unix.Fgetxattr(int(file.Fd()), "security.capability", nil)
	return err == nil && n > 0
}
