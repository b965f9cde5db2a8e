package privsep

import (
	"fmt"

	"github.com/landlock-lsm/go-landlock/landlock"
)

// RestrictAll denies this process every file, TCP bind and connect, abstract
// Unix socket and signal that Landlock knows to deny (landlock(7)): a ruleset
// without a rule. On a kernel without Landlock it does nothing.
func RestrictAll() error {
	if err := landlock.V10.BestEffort().Restrict(); err != nil {
		return fmt.Errorf("restrict by Landlock: %w", err)
	}
	return nil
}
