// PORT: what is none of the library's: a port that is bound to connect from,
// port 0, datagrams, and sockets of this namespace.
#define _GNU_SOURCE
#include "daemon.h"

int main(int argc, char **argv)
{
	must(argc == 2);
	int port = atoi(argv[1]), from = tcp_socket(AF_INET, 0), udp = socket(AF_INET, SOCK_DGRAM, 0), any = tcp_socket(AF_INET, 0);
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}, peer;
	socklen_t len = sizeof to;
	must(bind_any(udp, AF_INET, port) == 0);
	must(bind(any, (struct sockaddr *)&to, sizeof to) == 0 && listen(any, 5) == 0);
	must(getsockname(any, (struct sockaddr *)&to, &len) == 0 && to.sin_port != 0);
	must(bind_any(from, AF_INET, port) == 0);
	must(connect(from, (struct sockaddr *)&to, sizeof to) == 0);
	len = sizeof peer;
	int c = accept(any, (struct sockaddr *)&peer, &len);
	must(c >= 0 && ntohs(peer.sin_port) == port);
	must(getpeername(from, (struct sockaddr *)&peer, &len) == 0 && peer.sin_port == to.sin_port);
	must(close(c) == 0 && close(from) == 0 && close(any) == 0 && close(udp) == 0);
	int fd = listener(AF_INET, port, 0);
	ready();
	serve(fd, 1);
	return 0;
}
