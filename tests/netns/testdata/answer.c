/*
 * answer NAME [MILLISECONDS [JOURNAL]]: writes NAME and its client's address
 * to the client, after a while. The journal gets a line "+ ADDRESS" at the
 * start and "- ADDRESS" at the end.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	union {
		struct sockaddr any;
		struct sockaddr_in four;
		struct sockaddr_in6 six;
	} peer = { 0 };
	socklen_t size = sizeof peer;
	char address[INET6_ADDRSTRLEN] = "unix";
	int journal = argc > 3 ? open(argv[3], O_WRONLY | O_APPEND | O_CREAT, 0666) : -1;

	if (getpeername(0, &peer.any, &size))
		perror("getpeername");
	if (peer.any.sa_family == AF_INET)
		inet_ntop(AF_INET, &peer.four.sin_addr, address, sizeof address);
	if (peer.any.sa_family == AF_INET6)
		inet_ntop(AF_INET6, &peer.six.sin6_addr, address, sizeof address);
	if (journal >= 0)
		dprintf(journal, "+ %s\n", address);
	if (argc > 2)
		usleep(1000 * atoi(argv[2]));
	if (peer.any.sa_family == AF_INET)
		dprintf(1, "%s %s:%d\n", argv[1], address, ntohs(peer.four.sin_port));
	else if (peer.any.sa_family == AF_INET6)
		dprintf(1, "%s [%s]:%d\n", argv[1], address, ntohs(peer.six.sin6_port));
	else
		dprintf(1, "%s unix\n", argv[1]);
	if (journal >= 0)
		dprintf(journal, "- %s\n", address);
	return 0;
}
