package binder

import (
	"encoding/json"
	"os"

	"golang.org/x/sys/unix"
)

// lineReader reads JSON values from a pipe.
type lineReader struct {
	*json.Decoder
	file *os.File
}

// newLineReader takes over fd.
func newLineReader(fd int) *lineReader {
	unix.SetNonblock(fd, true)
	file := os.NewFile(uintptr(fd), "decisions")
	return &lineReader{json.NewDecoder(file), file}
}

func (l *lineReader) Close() error { return l.file.Close() }
