#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "preload.h"

// The socket directory is opened once, in the constructor: a daemon that
// changes its root or its user before it binds would not find it later. It
// may have been closed since by a daemon that closes all it does not know.
static int directory = -1;
static struct stat directory_was;

static bool same_file(const struct stat *a, const struct stat *b)
{
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

long look(int dir, const char *path, struct stat *st, int flags)
{
	return raw(SYS_newfstatat, dir, path, st, flags);
}

// out_of_the_way moves a descriptor to where daemons don't count on numbers.
static int out_of_the_way(int fd)
{
	static const int places[] = {1000, 200, 50};
	for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
		long high = raw(SYS_fcntl, fd, F_DUPFD_CLOEXEC, places[i]);
		if (high >= 0) {
			raw(SYS_close, fd);
			return (int)high;
		}
	}
	return fd;
}

int open_directory(void)
{
	struct stat st;
	if (directory >= 0 && look(directory, "", &st, AT_EMPTY_PATH) == 0 && same_file(&st, &directory_was))
		return directory;
	if (!settings.dir[0])
		return -ENOENT;
	long fd = raw(SYS_openat, AT_FDCWD, settings.dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return (int)fd;
	directory = out_of_the_way((int)fd);
	look(directory, "", &directory_was, AT_EMPTY_PATH);
	return directory;
}

// lock_directory takes the lock under which receivers take and leave paths. A
// descriptor of its own, since copies of one description share its locks.
// Whoever may not list the directory goes without, as all receivers do.
int lock_directory(int dir)
{
	long fd = raw(SYS_openat, dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	while (raw(SYS_flock, fd, LOCK_EX) == -EINTR) {
	}
	return (int)fd;
}

void unlock_directory(int fd)
{
	if (fd >= 0)
		raw(SYS_close, fd);
}

// address_in makes the Unix address of name in the socket directory; by way
// of /proc where the directory's own path is too long or leads elsewhere by
// now.
int address_in(int dir, const char *name, struct sockaddr_un *sun)
{
	struct stat st;
	memset(sun, 0, sizeof *sun);
	sun->sun_family = AF_UNIX;
	if (strlen(settings.dir) + 1 + strlen(name) < sizeof sun->sun_path &&
	    look(AT_FDCWD, settings.dir, &st, 0) == 0 && same_file(&st, &directory_was))
		text(sun->sun_path, sizeof sun->sun_path, "%s/%s", settings.dir, name);
	else if (text(sun->sun_path, sizeof sun->sun_path, "/proc/self/fd/%d/%s", dir, name) == sizeof sun->sun_path - 1)
		return -ENAMETOOLONG;
	return 0;
}

int datagram_socket(void)
{
	return (int)raw(SYS_socket, AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
}

// connect_to returns a socket connected to the receiver at name, or -errno.
int connect_to(int dir, const char *name)
{
	struct sockaddr_un sun;
	int error = address_in(dir, name, &sun), fd;
	if (error || (fd = datagram_socket()) < 0)
		return error ? error : fd;
	long r = raw(SYS_connect, fd, &sun, sizeof sun);
	if (r == 0)
		return fd;
	raw(SYS_close, fd);
	return (int)r;
}
