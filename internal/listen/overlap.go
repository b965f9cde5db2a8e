package listen

// Overlap reports whether the kernel would refuse to let a and b listen at the
// same time, or nothing would tell their clients apart. Names of namespaces are
// compared as they are written.
func Overlap(a, b Description) bool {
	if a.Network != b.Network || a.NetNS != b.NetNS {
		return false
	}
	if a.Network == Unix {
		return a.Path == b.Path
	}
	switch {
	case a.Steered() && b.Steered():
		return a.Prefix.Overlaps(b.Prefix) && a.First <= b.Last && b.First <= a.Last
	case a.Port != b.Port || a.Port == 0:
		return false
	case a.Device != b.Device && a.Device != "" && b.Device != "":
		return false
	case a.Address == b.Address && a.Zone == b.Zone && a.Both == b.Both && a.Device == b.Device:
		return true
	case a.ReusePort && b.ReusePort:
		return false
	}
	return a.covers(b) || b.covers(a)
}

// covers reports whether a's address is b's or holds it. Two link-local
// addresses on different interfaces differ.
func (a Description) covers(b Description) bool {
	switch {
	case a.Both:
		return true
	case a.Address.IsUnspecified():
		return a.Address.Is4() == b.Address.Is4()
	}
	return a.Address == b.Address && a.Zone == b.Zone
}
