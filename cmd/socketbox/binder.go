package main

import (
	"log/slog"
	"os"

	"socketbox/internal/binder"
	"socketbox/internal/logging"
	"socketbox/internal/privsep"
)

// runBinder is the role that the privileged stage of `socketbox bind` becomes.
func runBinder() error { return binder.Run(roleLog(privsep.Binder)) }

// roleLog returns what makes a role's logger. The stage before has checked
// format and level.
func roleLog(role privsep.Role) func(format, level string) *slog.Logger {
	return func(format, level string) *slog.Logger {
		log, err := logging.New(os.Stderr, format, level, string(role))
		if err != nil {
			return slog.Default()
		}
		return log
	}
}
