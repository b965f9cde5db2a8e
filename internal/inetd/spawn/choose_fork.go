//go:build !amd64 && !arm64

package spawn

func choose(c Command, base []string, nullFD int) (starter, error) {
	return newForker(c, base, nullFD)
}
