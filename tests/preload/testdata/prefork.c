// PORT COUNT: four children accept; their parent has closed the listener.
#define _GNU_SOURCE
#include "daemon.h"

int main(int argc, char **argv)
{
	must(argc == 3);
	int fd = listener(AF_INET, atoi(argv[1]), 0), status;
	for (int i = 0; i < 4; i++) {
		pid_t pid = fork();
		must(pid >= 0);
		if (pid == 0) {
			looks_like_tcp(fd, AF_INET);
			serve(fd, atoi(argv[2]) / 4);
			must(close(fd) == 0);
			exit(0);
		}
	}
	must(close(fd) == 0);
	ready();
	for (int i = 0; i < 4; i++)
		must(wait(&status) > 0 && status == 0);
	return 0;
}
