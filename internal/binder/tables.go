package binder

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"socketbox/internal/config"
	"socketbox/internal/privsep"
)

// The file of a [table.NAME] is opened by whoever reads the configuration, with
// that one's rights: the privileged stage, `socketbox reload`, on HUP the
// binder. It travels as a sealed memory file, and is parsed by the binder: it may
// be large, and the privileged stage is to be short. Parsing takes place beside
// the binder's loop, which answers the dispatcher meanwhile.

// mapFile is what a table says, made ready for dispatchers. Configurations that
// follow one another share it while it stays the same.
type mapFile struct {
	id      uint32 // for the dispatcher, never used twice
	fd      int    // sealed memory file with a rule.Map; owned
	sum     [sha256.Size]byte
	entries int
	shares  int // of tables
}

func (m *mapFile) release() {
	if m.shares--; m.shares <= 0 {
		unix.Close(m.fd)
	}
}

func releaseAll(maps []*mapFile) {
	for _, m := range maps {
		m.release()
	}
}

// openTables returns sealed copies of the files of cfg's tables, in order. The
// caller owns them.
func openTables(cfg *config.Config) (fds []int, err error) {
	var errs []error
	for i := range cfg.Tables {
		fd, err := copyTable(cfg.TableFile(&cfg.Tables[i]))
		if err != nil {
			errs = append(errs, fmt.Errorf("table %s: %w", cfg.Tables[i].Name, err))
			continue
		}
		fds = append(fds, fd)
	}
	if len(errs) > 0 {
		closeAll(fds)
		return nil, errors.Join(errs...)
	}
	return fds, nil
}

// copyTable copies a file, and refuses it if it is written meanwhile.
func copyTable(path string) (int, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a FIFO must not block
	if err != nil {
		return -1, err
	}
	defer file.Close()
	before, err := file.Stat()
	if err != nil {
		return -1, err
	}
	if !before.Mode().IsRegular() {
		return -1, fmt.Errorf("%s is no regular file", path)
	}
	fd, err := privsep.SealedCopy(file, config.MaxTableFile)
	if err != nil {
		return -1, fmt.Errorf("read %s: %w", path, err)
	}
	after, err := file.Stat()
	if err == nil && (after.Size() != before.Size() || !after.ModTime().Equal(before.ModTime())) {
		err = withHint(fmt.Errorf("%s changed while it was read", path), "write a new file beside it, and rename that")
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// loadTables parses the files that openTables has copied into cfg. It closes
// them. The caller owns what it returns, in the order of cfg's tables.
func loadTables(cfg *config.Config, files []int) (maps []*mapFile, err error) {
	defer closeAll(files)
	if len(files) != len(cfg.Tables) {
		return nil, fmt.Errorf("%d files for %d tables", len(files), len(cfg.Tables))
	}
	if len(files) == 0 {
		return nil, nil
	}
	defer debug.FreeOSMemory() // parsing takes several times what stays
	var errs []error
	for i, fd := range files {
		m, err := loadTable(cfg, i, fd)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		maps = append(maps, m)
	}
	if len(errs) > 0 {
		releaseAll(maps)
		return nil, errors.Join(errs...)
	}
	return maps, nil
}

func loadTable(cfg *config.Config, i, file int) (*mapFile, error) {
	text, unmap, err := privsep.MapSealed(file, config.MaxTableFile)
	if err != nil {
		return nil, fmt.Errorf("table %s: %w", cfg.Tables[i].Name, err)
	}
	defer unmap()
	if err := cfg.LoadTable(i, text); err != nil {
		return nil, err
	}
	content := cfg.Tables[i].Content
	m := &mapFile{sum: sha256.Sum256(content.Encoded), entries: content.Entries, shares: 1}
	if m.fd, err = privsep.SealedFile(content.Encoded); err != nil {
		return nil, fmt.Errorf("table %s: %w", cfg.Tables[i].Name, err)
	}
	content.Encoded = nil // it is in the file now
	return m, nil
}

// shareMaps gives t its maps: those that the table in force has already where
// they are the same, so that no dispatcher needs to compile them again.
func (b *binder) shareMaps(t *table, maps []*mapFile) {
	for _, m := range maps {
		if b.active != nil {
			for _, old := range b.active.maps {
				if old.sum == m.sum && old != m {
					old.shares++
					m.release()
					m = old
					break
				}
			}
		}
		if m.id == 0 {
			b.lastMap++
			m.id = b.lastMap
		}
		t.maps = append(t.maps, m)
		t.plan.Maps = append(t.plan.Maps, m.id)
	}
}

// mapSizes are the numbers of entries of t's tables, for the log.
func (t *table) mapSizes() []any {
	var sizes []any
	for i, m := range t.maps {
		sizes = append(sizes, "table:"+t.plan.Table.Maps[i].Name, m.entries)
	}
	return sizes
}

// noteMaps remembers which maps dispatcher c has, now that t is in force.
func (c *child) noteMaps(t *table) {
	c.maps = map[uint32]bool{}
	for _, m := range t.maps {
		c.maps[m.id] = true
	}
}

// readTables reads and parses the files of cfg's tables, for commands that only
// look. The caller owns what it returns.
func readTables(cfg *config.Config) ([]*mapFile, error) {
	files, err := openTables(cfg)
	if err != nil {
		return nil, err
	}
	return loadTables(cfg, files)
}
