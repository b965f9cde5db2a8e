// PORT DIR: changes its root and its user, and forbids itself most system
// calls, once it listens.
#define _GNU_SOURCE
#include "daemon.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

static void forbid(void)
{
	// Everything that opens, makes or names.
	struct sock_filter f[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat, 5, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_socket, 4, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_connect, 3, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_bind, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
	};
	struct sock_fprog p = {sizeof f / sizeof *f, f};
	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &p) == 0);
}

int main(int argc, char **argv)
{
	must(argc == 4);
	int fd = listener(AF_INET6, atoi(argv[1]), 0);
	must(chroot(argv[2]) == 0 && chdir("/") == 0);
	if (strcmp(argv[3], "0") != 0)
		must(setgid((gid_t)atoi(argv[3])) == 0 && setuid((uid_t)atoi(argv[3])) == 0);
	forbid();
	ready();
	serve(fd, 3);
	_exit(0);
}
