// Package config turns a configuration file, or the few flags that stand for
// one, into typed values that were checked as a whole: what it returns can be
// bound and dispatched as far as that can be known without asking the kernel.
//
// It makes no system call and looks up no environment variable. It runs as
// root in the privileged stage of `socketbox bind` and in `socketbox reload`,
// as any user in `socketbox check`.
package config
