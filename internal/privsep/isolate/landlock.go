package isolate

import (
	"fmt"

	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// tcpVersion is the Landlock ABI that knows TCP bind and connect.
const tcpVersion = 4

func landlockVersion() int {
	version, err := ll.LandlockGetABIVersion()
	if err != nil {
		return 0
	}
	return version
}

// restrictTCP denies the calling thread TCP connect, in mode Strict bind too,
// but for the ports of o. The library's own Restrict would do it for all
// threads, by cgo or by stopping the world; exec makes that superfluous.
func restrictTCP(o Options) error {
	attr := ll.RulesetAttr{HandledAccessNet: ll.AccessNetConnectTCP}
	if o.Mode == Strict {
		attr.HandledAccessNet |= ll.AccessNetBindTCP
	}
	rules, err := ll.LandlockCreateRuleset(&attr, 0)
	if err != nil {
		return fmt.Errorf("landlock_create_ruleset: %w", err)
	}
	defer unix.Close(rules)
	for _, allowed := range []struct {
		access uint64
		ports  []uint16
	}{{ll.AccessNetConnectTCP, o.AllowConnect}, {ll.AccessNetBindTCP, o.AllowBind}} {
		for _, port := range allowed.ports {
			rule := ll.NetPortAttr{AllowedAccess: allowed.access, Port: uint64(port)}
			if err := ll.LandlockAddNetPortRule(rules, &rule, 0); err != nil {
				return fmt.Errorf("landlock_add_rule, port %d: %w", port, err)
			}
		}
	}
	if err := ll.LandlockRestrictSelf(rules, 0); err != nil {
		return fmt.Errorf("landlock_restrict_self: %w", err)
	}
	return nil
}
