// PORT: without a free descriptor accept says so and loses nothing.
#define _GNU_SOURCE
#include "daemon.h"

#include <sys/resource.h>

int main(int argc, char **argv)
{
	must(argc == 2);
	struct rlimit r = {24, 24};
	int fd, taken[64], count = 0;
	must(setrlimit(RLIMIT_NOFILE, &r) == 0);
	fd = listener(AF_INET, atoi(argv[1]), 0);
	ready();
	serve(fd, 1);
	while ((taken[count] = dup(1)) >= 0)
		count++;
	must(errno == EMFILE);
	must(accept(fd, NULL, NULL) == -1 && errno == EMFILE);
	wait_for(fd);
	must(accept(fd, NULL, NULL) == -1 && errno == EMFILE);
	must(accept(fd, NULL, NULL) == -1 && errno == EMFILE);
	close(taken[0]);
	int c = accepted(fd);
	must(accept(fd, NULL, NULL) == -1 && errno == EMFILE);
	answer(c);
	serve(fd, 1);
	return 0;
}
