// PORT COUNT: two children that were forked before each bind the port with
// SO_REUSEPORT. Both must get connections.
#define _GNU_SOURCE
#include "daemon.h"

static int child(int port, int ready_to, int go)
{
	int on = 1, count = 0, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	char byte = 0;
	must(setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) == 0);
	must(bind_any(fd, AF_INET, port) == 0 && listen(fd, 10) == 0);
	must(write(ready_to, &byte, 1) == 1);
	for (;;) {
		struct pollfd p[2] = {{fd, POLLIN, 0}, {go, POLLIN, 0}};
		must(poll(p, 2, 20000) > 0);
		int c = accept(fd, NULL, NULL);
		if (c >= 0) {
			usleep(2000); // so that one alone can't keep up
			answer(c);
			count++;
		} else if (p[1].revents) {
			return count > 0 ? 0 : 3;
		}
	}
}

int main(int argc, char **argv)
{
	must(argc == 2);
	int up[2], go[2], status;
	char byte;
	must(pipe(up) == 0 && pipe(go) == 0);
	for (int i = 0; i < 2; i++) {
		if (fork() == 0) {
			close(go[1]);
			exit(child(atoi(argv[1]), up[1], go[0]));
		}
		must(read(up[0], &byte, 1) == 1);
	}
	ready();
	must(read(0, &byte, 1) >= 0);
	close(go[1]);
	for (int i = 0; i < 2; i++)
		must(wait(&status) > 0 && status == 0);
	return 0;
}
