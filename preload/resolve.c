#define _GNU_SOURCE
#include <dlfcn.h>

#include "preload.h"

// glibc 2.34 moved dlsym into libc under a new version; the old one is there
// as well, and is what a library for older systems may ask for.
#if defined(__GLIBC__) && defined(__x86_64__)
__asm__(".symver dlsym, dlsym@GLIBC_2.2.5");
#elif defined(__GLIBC__) && defined(__aarch64__)
__asm__(".symver dlsym, dlsym@GLIBC_2.17");
#endif

static struct real table;
static _Atomic bool complete;

static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }

const struct real *real(void)
{
	if (atomic_load_explicit(&complete, memory_order_acquire))
		return &table;
	struct real t = {0};
// A pointer to an object becomes one to a function as POSIX has it.
#define FIND(name) *(void **)&t.name = next(#name)
	FIND(bind);
	FIND(listen);
	FIND(accept4);
	FIND(connect);
	FIND(socket);
	FIND(getsockname);
	FIND(getpeername);
	FIND(getsockopt);
	FIND(setsockopt);
	FIND(shutdown);
	FIND(recvmsg);
	FIND(sendmsg);
	FIND(close);
	FIND(dup);
	FIND(dup2);
	FIND(dup3);
	FIND(fcntl);
	FIND(syscall);
	FIND(execve);
	FIND(execvpe);
	FIND(fexecve);
	FIND(posix_spawn);
	FIND(posix_spawnp);
#undef FIND
	table = t; // threads that meet here write the same
	atomic_store_explicit(&complete, true, memory_order_release);
	return &table;
}
