package binder

import (
	"errors"

	"socketbox/internal/config"
)

// readFiles reads the configuration and its tables with the binder's own
// rights. It runs beside the loop.
func (b *binder) readFiles() (*candidate, error) {
	path := b.h.Options.Config
	if path == "" {
		return nil, errors.New("started without a configuration file: nothing to reload")
	}
	const hint = "the binder runs as another user than root: `socketbox reload` as root reads the file for it"
	text, err := ReadConfigFile(path)
	if err != nil {
		return nil, withHint(err, hint)
	}
	cfg, err := b.parseAnew(text)
	if err != nil {
		return nil, err
	}
	files, err := openTables(cfg)
	if err != nil {
		return nil, withHint(err, hint)
	}
	return newCandidate(cfg, nil, files)
}

// candidate is a configuration that is to be put in force, with what came with
// it. It owns its descriptors.
type candidate struct {
	cfg    *config.Config
	opened map[int]brought // listening sockets, by index in the configuration
	maps   []*mapFile
}

// newCandidate parses the tables of cfg, which may take a second: it runs
// beside the loop. It owns opened and files.
func newCandidate(cfg *config.Config, opened map[int]brought, files []int) (*candidate, error) {
	maps, err := loadTables(cfg, files)
	c := &candidate{cfg, opened, maps}
	if err != nil {
		c.discard()
		return nil, err
	}
	return c, nil
}

// receiveConfig makes a candidate of what a command brought; it owns opened and
// files. It runs beside the loop.
func (b *binder) receiveConfig(text []byte, opened map[int]brought, files []int) (*candidate, error) {
	cfg, err := b.parseAnew(text)
	if err != nil {
		closeAll(files)
		(&candidate{opened: opened}).discard()
		return nil, err
	}
	return newCandidate(cfg, opened, files)
}

func (c *candidate) discard() {
	for _, in := range c.opened {
		in.close()
	}
	releaseAll(c.maps)
}
