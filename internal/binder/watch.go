package binder

import (
	"fmt"

	"github.com/fsnotify/fsnotify"
)

// watcher watches socket directories by inotify(7), each once however many
// routes need it.
type watcher struct {
	*fsnotify.Watcher
	users map[string]int
}

func newWatcher() (*watcher, error) {
	w, err := fsnotify.NewBufferedWatcher(256)
	if err != nil {
		return nil, fmt.Errorf("watch directories: %w", err)
	}
	return &watcher{Watcher: w, users: map[string]int{}}, nil
}

// add begins to watch dir for one more user. On an error the directory is
// counted all the same, so that remove stays its counterpart.
func (w *watcher) add(dir string) error {
	w.users[dir]++
	if w.users[dir] > 1 {
		return nil
	}
	return w.Watcher.Add(dir)
}

func (w *watcher) remove(dir string) {
	if w.users[dir]--; w.users[dir] <= 0 {
		delete(w.users, dir)
		w.Watcher.Remove(dir)
	}
}

// renew watches dir, which something happened to, again: another directory may
// have taken its place. That it is gone is for others to find out.
func (w *watcher) renew(dir string) { w.Watcher.Add(dir) }

func (w *watcher) has(dir string) bool { return w.users[dir] > 0 }

// keep stops watching everything that is not in dirs.
func (w *watcher) keep(dirs map[string]bool) {
	for dir := range w.users {
		if !dirs[dir] {
			delete(w.users, dir)
			w.Watcher.Remove(dir)
		}
	}
}
