// PORT COUNT: as many descriptors after many accepts as before.
#define _GNU_SOURCE
#include "daemon.h"

int main(int argc, char **argv)
{
	must(argc == 3);
	int fd = listener(AF_INET6, atoi(argv[1]), 0), before = open_files();
	ready();
	serve(fd, atoi(argv[2]));
	must(open_files() == before);
	return 0;
}
