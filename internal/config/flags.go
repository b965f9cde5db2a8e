package config

import (
	"errors"
	"fmt"

	"socketbox/internal/listen"
	"socketbox/internal/rule"
)

// FromFlags makes the configuration that --listen (each address once) and
// --target stand for: one rule for everything, or none where target is "" and
// the main socket directory takes it all. All errors are *Error, joined.
func FromFlags(addresses []string, target string, defaults Defaults) (*Config, error) {
	c := &Config{User: defaults.User, Dir: defaults.Dir, Guard: GuardAuto}
	c.Targets = []Target{{Name: mainTarget, Hold: defaultHold}}
	var errs []error
	fail := func(flag string, err error) {
		errs = append(errs, &Error{Where: flag, Err: err})
	}
	if len(addresses) > rule.MaxListeners {
		fail("--listen", fmt.Errorf("%d addresses, at most %d", len(addresses), rule.MaxListeners))
		addresses = nil
	}
	for _, address := range addresses {
		for _, err := range c.addListener(address) {
			fail("--listen", err)
		}
	}
	if target != "" {
		r, err := c.pointAllTo(target)
		if err != nil {
			fail("--target", err)
		}
		c.Rules = []rule.Rule{r}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return c, nil
}

func (c *Config) addListener(address string) []error {
	d, err := listen.ParseAddress(address)
	if err != nil {
		return []error{err}
	}
	var errs []error
	for _, wrong := range d.Check() {
		errs = append(errs, fmt.Errorf("address %q: %w", address, wrong.Err))
	}
	for _, other := range c.Listeners {
		if listen.Overlap(d, other.Description) {
			errs = append(errs, fmt.Errorf("address %q: %s is taken by listener %q", address, d, other.Name))
		}
	}
	c.Listeners = append(c.Listeners, Listener{Description: d, Handoff: HandoffAuto})
	return errs
}

// pointAllTo returns the rule that sends everything to target.
func (c *Config) pointAllTo(target string) (rule.Rule, error) {
	var r rule.Rule
	if target != rejectTarget {
		if _, err := rule.ParseTemplate(target); err != nil {
			return r, err
		}
	}
	p := &parser{config: c, hold: defaultHold, targets: map[string]int{}}
	err := p.pointTo(target, 0, &r)
	return r, err
}
