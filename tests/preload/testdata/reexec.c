// PORT: the listener outlives exec: by itself, by fork, and by vfork, whose
// child closes what it does not take along.
#define _GNU_SOURCE
#include "daemon.h"

#include <spawn.h>

extern char **environ;

static int inherited(int fd)
{
	struct sockaddr_storage a;
	socklen_t len = sizeof a;
	int on = 1;
	must(getsockname(fd, (struct sockaddr *)&a, &len) == 0 && a.ss_family == AF_INET);
	must(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0);
	looks_like_tcp(fd, AF_INET);
	serve(fd, 1);
	return 0;
}

int main(int argc, char **argv)
{
	char number[20];
	pid_t pid;
	int status;
	if (argc == 3)
		return inherited(atoi(argv[2]));
	must(argc == 2);
	int fd = listener(AF_INET, atoi(argv[1]), 0);
	sprintf(number, "%d", fd);
	char *args[] = {argv[0], argv[1], number, NULL}, *none[] = {"/bin/true", NULL};
	ready();

	pid = vfork();
	if (pid == 0) {
		close(fd);
		execv("/bin/true", none);
		_exit(1);
	}
	must(waitpid(pid, &status, 0) == pid && status == 0);
	serve(fd, 1);

	must(posix_spawn(&pid, args[0], NULL, NULL, args, environ) == 0);
	must(waitpid(pid, &status, 0) == pid && status == 0);
	serve(fd, 1);

	pid = fork();
	if (pid == 0) {
		execv(args[0], args);
		_exit(1);
	}
	must(waitpid(pid, &status, 0) == pid && status == 0);
	execv(args[0], args);
	return 1;
}
