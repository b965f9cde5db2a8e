#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "preload.h"

#ifndef SYS_fchmodat2
#define SYS_fchmodat2 452
#endif

static void file_name(const struct listener *l, char name[32])
{
	static const char *const ends[] = {[BOTH] = ".sock", [ONLY4] = ".ipv4.sock", [ONLY6] = ".ipv6.sock"};
	text(name, 32, "%u%s", (unsigned)l->outside, ends[kind_of(&l->bound)]);
}

// set_mode gives a new socket file its mode whatever the umask. Not by path:
// in another user's directory that user could put a link in its place.
static long set_mode(int dir, const char *name, mode_t mode)
{
	struct stat st;
	long fd = raw(SYS_openat, dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return fd;
	long r = look((int)fd, "", &st, AT_EMPTY_PATH);
	if (r == 0 && !S_ISSOCK(st.st_mode))
		r = -EADDRINUSE;
	if (r == 0 && (st.st_mode & 07777) != mode) {
		r = raw(SYS_fchmodat2, fd, "", mode, AT_EMPTY_PATH);
		if (r < 0) { // before Linux 6.6, or a filter that does not know it
			char path[32];
			text(path, sizeof path, "/proc/self/fd/%d", (int)fd);
			r = raw(SYS_fchmodat, AT_FDCWD, path, mode);
		}
	}
	raw(SYS_close, fd);
	return r;
}

static uint64_t unique(void)
{
	uint64_t n = 0;
	if (raw(SYS_getrandom, &n, sizeof n, 1 /* GRND_NONBLOCK */) != sizeof n) {
		static _Atomic unsigned count;
		struct { long s, ns; } now = {0, 0};
		raw(SYS_clock_gettime, 0, &now);
		n = (uint64_t)raw(SYS_getpid) << 40 ^ (uint64_t)now.s << 20 ^ (uint64_t)now.ns ^ atomic_fetch_add(&count, 1);
	}
	return n;
}

// The file is never there with another mode than it shall have: it gets that
// under the name it is born with.
static const mode_t file_mode = 0660;

static long bind_file(int fd, int dir, struct listener *l, const char *name)
{
	char born[NAME_SIZE];
	struct sockaddr_un sun;
	struct stat st;
	l->bound.id = unique();
	name_write(born, &l->bound);
	long r = address_in(dir, born, &sun);
	if (r == 0)
		r = raw(SYS_fchmod, fd, file_mode);
	if (r == 0)
		r = raw(SYS_bind, fd, &sun, sizeof sun);
	if (r < 0)
		return r;
	r = set_mode(dir, born, file_mode);
	if (r == 0)
		r = look(dir, born, &st, AT_SYMLINK_NOFOLLOW);
	if (r == 0)
		r = raw(SYS_renameat, dir, born, dir, name);
	if (r < 0) {
		raw(SYS_unlinkat, dir, born, 0);
		return r;
	}
	l->maker = (int)raw(SYS_getpid);
	atomic_store(&l->device, (uint64_t)st.st_dev);
	atomic_store(&l->inode, (uint64_t)st.st_ino);
	return 0;
}

static int make(struct listener *l, int dir, const char *name)
{
	int fd = datagram_socket(), on = 1;
	if (fd < 0)
		return fd;
	long r = 0;
	if (settings.from >= 0)
		r = raw(SYS_setsockopt, fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof on);
	if (r == 0)
		r = bind_file(fd, dir, l, name);
	if (r == 0)
		return fd;
	raw(SYS_close, fd);
	return (int)r;
}

// same_bind says whether two daemons have bound alike.
static bool same_bind(const struct bound *a, const struct bound *b)
{
	struct in6_addr x = as_ipv6(a), y = as_ipv6(b);
	return a->family == b->family && a->v6only == b->v6only && a->reuseport == b->reuseport && port_of(a) == port_of(b) &&
	       IN6_ARE_ADDR_EQUAL(&x, &y);
}

// is_at says whether fd, of that name at birth, is what is reached at name.
static bool is_at(int dir, const char *name, const struct bound *b)
{
	struct sockaddr_un sun;
	struct bound there;
	socklen_t len = sizeof sun;
	int fd = connect_to(dir, name);
	if (fd < 0)
		return false;
	bool same = raw(SYS_getpeername, fd, &sun, &len) == 0 && name_read(&sun, len, &there) && there.id == b->id;
	raw(SYS_close, fd);
	return same;
}

// resume takes the receiving socket that an earlier run of this daemon has left
// with the supervisor, with what waits in it. -1: there is none that fits.
static int resume(struct listener *l, int dir, const char *name)
{
	struct sockaddr_un sun;
	struct bound b;
	struct stat st;
	char byte;
	socklen_t len = sizeof sun;
	int fd = kept(name);
	if (fd < 0)
		return -1;
	if (raw(SYS_getsockname, fd, &sun, &len) == 0 && name_read(&sun, len, &b) && same_bind(&b, &l->bound) && is_at(dir, name, &b) &&
	    raw(SYS_recvfrom, fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT, NULL, NULL) != 0 && // not shut down
	    look(dir, name, &st, AT_SYMLINK_NOFOLLOW) == 0) {
		l->bound = b;
		atomic_store(&l->device, (uint64_t)st.st_dev);
		atomic_store(&l->inode, (uint64_t)st.st_ino);
		trace("port %u: what waited with the supervisor goes on", (unsigned)l->outside);
		return fd;
	}
	raw(SYS_close, fd);
	return -1;
}

static void explain(const struct listener *l, const char *name, int error)
{
	if (!settings.dir[0]) {
		say("error: bind to port %u: no socket directory; hint: set SOCKETBOX_DIR, or XDG_RUNTIME_DIR", (unsigned)port_of(&l->bound));
		return;
	}
	const char *hint = "";
	switch (error) {
	case EADDRINUSE:
		hint = "; hint: another receiver is live there, `ss -xlp` names it";
		break;
	case ENOENT:
		hint = "; hint: the directory is not there: start `socketbox bind`, mount it into the container, or set SOCKETBOX_DIR";
		break;
	case EACCES:
	case EPERM:
		hint = "; hint: the daemon's user must own the directory: install -d -m 2750 -o USER -g GROUP-OF-SOCKETBOX, and set SOCKETBOX_DIR";
		break;
	case EROFS:
		hint = "; hint: mount the directory read-write";
		break;
	}
	say("error: bind %s/%s as uid %u: %s%s", settings.dir, name, (unsigned)raw(SYS_geteuid), error_text(error), hint);
}

// take_path returns a receiving socket whose path is name; or 0 with *share.
static int take_path(struct listener *l, int dir, const char *name, int *share)
{
	int fd = resume(l, dir, name);
	if (fd < 0) {
		int r = probe(l, dir, name, share);
		if (r != 0)
			return r < 0 ? r : 0;
		if ((fd = make(l, dir, name)) < 0)
			return fd;
		keep(name, fd);
	}
	if (settings.keep >= 0)
		atomic_fetch_or(&l->flags, SHARED); // the supervisor ends it
	return fd;
}

int place(struct listener *l, int *share)
{
	char name[32];
	file_name(l, name);
	int r = share_here(l, share);
	if (r != 0)
		return r < 0 ? r : 0;
	int dir = open_directory();
	if (dir < 0) {
		explain(l, name, -dir);
		return dir;
	}
	int locked = lock_directory(dir);
	r = take_path(l, dir, name, share);
	unlock_directory(locked);
	if (r < 0)
		explain(l, name, -r);
	return r;
}

static bool is_ours(const struct listener *l, int dir, const char *name)
{
	struct stat st;
	return look(dir, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && (uint64_t)st.st_dev == atomic_load(&l->device) &&
	       (uint64_t)st.st_ino == atomic_load(&l->inode);
}

void unplace(struct listener *l)
{
	char name[32];
	int dir = atomic_load(&l->inode) ? open_directory() : -1;
	if (dir < 0)
		return;
	file_name(l, name);
	int locked = lock_directory(dir);
	if (is_ours(l, dir, name))
		raw(SYS_unlinkat, dir, name, 0);
	unlock_directory(locked);
}

int successor(const struct listener *l)
{
	char name[32];
	int dir = atomic_load(&l->inode) ? open_directory() : -1;
	if (dir < 0)
		return -1;
	file_name(l, name);
	return is_ours(l, dir, name) ? -1 : connect_to(dir, name);
}
