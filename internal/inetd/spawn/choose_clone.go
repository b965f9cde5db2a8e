//go:build amd64 || arm64

package spawn

func choose(c Command, base []string, nullFD int) (starter, error) {
	k, err := newCloner(c, base, nullFD)
	if err != nil {
		return nil, err
	}
	if k != nil {
		return k, nil
	}
	return newForker(c, base, nullFD)
}
