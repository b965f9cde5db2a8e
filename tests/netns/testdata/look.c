/*
 * look: says what its connection, descriptor 0, is like, once the client has
 * spoken: addresses, flags and options as this process finds them.
 *
 * look ADDRESS   first listens there itself, says on which port, and looks at
 *                what accept(2) gives it: the native case to compare with.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define OPTION(level, name) { #name, level, name }
static const struct {
	const char *name;
	int level, option;
} options[] = {
	OPTION(SOL_SOCKET, SO_TYPE), OPTION(SOL_SOCKET, SO_DOMAIN), OPTION(SOL_SOCKET, SO_PROTOCOL),
	OPTION(SOL_SOCKET, SO_ACCEPTCONN), OPTION(SOL_SOCKET, SO_ERROR),
	OPTION(SOL_SOCKET, SO_RCVTIMEO), OPTION(SOL_SOCKET, SO_SNDTIMEO), OPTION(SOL_SOCKET, SO_LINGER),
	OPTION(SOL_SOCKET, SO_KEEPALIVE), OPTION(SOL_SOCKET, SO_REUSEADDR), OPTION(SOL_SOCKET, SO_REUSEPORT),
	OPTION(SOL_SOCKET, SO_RCVBUF), OPTION(SOL_SOCKET, SO_SNDBUF),
	OPTION(SOL_SOCKET, SO_RCVLOWAT), OPTION(SOL_SOCKET, SO_SNDLOWAT),
	OPTION(SOL_SOCKET, SO_PRIORITY), OPTION(SOL_SOCKET, SO_MARK), OPTION(SOL_SOCKET, SO_BINDTODEVICE),
	OPTION(SOL_SOCKET, SO_BROADCAST), OPTION(SOL_SOCKET, SO_DONTROUTE), OPTION(SOL_SOCKET, SO_OOBINLINE),
	OPTION(SOL_SOCKET, SO_TIMESTAMP), OPTION(SOL_SOCKET, SO_BUSY_POLL), OPTION(SOL_SOCKET, SO_ZEROCOPY),
	OPTION(SOL_SOCKET, SO_MAX_PACING_RATE), OPTION(SOL_SOCKET, SO_LOCK_FILTER),
	OPTION(IPPROTO_TCP, TCP_NODELAY), OPTION(IPPROTO_TCP, TCP_CORK), OPTION(IPPROTO_TCP, TCP_QUICKACK),
	OPTION(IPPROTO_TCP, TCP_MAXSEG),
	OPTION(IPPROTO_TCP, TCP_KEEPIDLE), OPTION(IPPROTO_TCP, TCP_KEEPINTVL), OPTION(IPPROTO_TCP, TCP_KEEPCNT),
	OPTION(IPPROTO_TCP, TCP_SYNCNT), OPTION(IPPROTO_TCP, TCP_LINGER2), OPTION(IPPROTO_TCP, TCP_DEFER_ACCEPT),
	OPTION(IPPROTO_TCP, TCP_WINDOW_CLAMP), OPTION(IPPROTO_TCP, TCP_CONGESTION),
	OPTION(IPPROTO_TCP, TCP_USER_TIMEOUT), OPTION(IPPROTO_TCP, TCP_FASTOPEN),
	OPTION(IPPROTO_TCP, TCP_NOTSENT_LOWAT), OPTION(IPPROTO_TCP, TCP_SAVE_SYN),
	OPTION(IPPROTO_IP, IP_TTL), OPTION(IPPROTO_IP, IP_TOS), OPTION(IPPROTO_IP, IP_MTU_DISCOVER),
	OPTION(IPPROTO_IP, IP_RECVERR), OPTION(IPPROTO_IP, IP_FREEBIND), OPTION(IPPROTO_IP, IP_TRANSPARENT),
	OPTION(IPPROTO_IP, IP_PKTINFO), OPTION(IPPROTO_IP, IP_MTU), OPTION(IPPROTO_IP, IP_MINTTL),
	OPTION(IPPROTO_IPV6, IPV6_V6ONLY), OPTION(IPPROTO_IPV6, IPV6_UNICAST_HOPS),
	OPTION(IPPROTO_IPV6, IPV6_TCLASS), OPTION(IPPROTO_IPV6, IPV6_MTU_DISCOVER),
	OPTION(IPPROTO_IPV6, IPV6_RECVERR), OPTION(IPPROTO_IPV6, IPV6_RECVPKTINFO),
};

static void die(const char *what)
{
	perror(what);
	exit(1);
}

/* native makes descriptor 0 a connection that accept(2) gave. */
static void native(const char *text)
{
	struct sockaddr_in6 six = { .sin6_family = AF_INET6 };
	struct sockaddr_in four = { .sin_family = AF_INET };
	int is_six = inet_pton(AF_INET6, text, &six.sin6_addr) || !inet_pton(AF_INET, text, &four.sin_addr);
	struct sockaddr *address = is_six ? (struct sockaddr *)&six : (struct sockaddr *)&four;
	socklen_t size = is_six ? sizeof six : sizeof four;
	int one = 1, no = 0, connection, s = socket(address->sa_family, SOCK_STREAM, 0);

	setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	setsockopt(s, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof no);
	if (bind(s, address, size) || listen(s, 5) || getsockname(s, address, &size))
		die("listen");
	printf("port %d\n", ntohs(is_six ? six.sin6_port : four.sin_port));
	fflush(stdout);
	if ((connection = accept(s, NULL, NULL)) < 0)
		die("accept");
	close(s);
	dup2(connection, 0);
	close(connection);
}

static void print_address(FILE *out, const char *name, int (*get)(int, struct sockaddr *, socklen_t *))
{
	struct sockaddr_storage a = { 0 };
	socklen_t size = sizeof a;
	char text[INET6_ADDRSTRLEN] = "";

	if (get(0, (struct sockaddr *)&a, &size))
		fprintf(out, "%s %s\n", name, strerror(errno));
	else if (a.ss_family == AF_INET6)
		fprintf(out, "%s AF_INET6 %s\n", name,
			inet_ntop(AF_INET6, &((struct sockaddr_in6 *)&a)->sin6_addr, text, sizeof text));
	else if (a.ss_family == AF_INET)
		fprintf(out, "%s AF_INET %s\n", name,
			inet_ntop(AF_INET, &((struct sockaddr_in *)&a)->sin_addr, text, sizeof text));
	else
		fprintf(out, "%s family %d\n", name, a.ss_family);
}

static int peer(int fd, struct sockaddr *a, socklen_t *size) { return getpeername(fd, a, size); }
static int local(int fd, struct sockaddr *a, socklen_t *size) { return getsockname(fd, a, size); }

int main(int argc, char **argv)
{
	char *report, said[100];
	size_t length, i, j;
	struct timespec before, after;

	if (argc > 1)
		native(argv[1]);
	FILE *out = open_memstream(&report, &length);
	print_address(out, "peer", peer);
	print_address(out, "local", local);
	fprintf(out, "F_GETFL %#x\nO_NONBLOCK %d\n", fcntl(0, F_GETFL), !!(fcntl(0, F_GETFL) & O_NONBLOCK));
	fprintf(out, "F_GETOWN %d\n", fcntl(0, F_GETOWN));
	for (i = 0; i < sizeof options / sizeof *options; i++) {
		unsigned char value[64] = { 0 };
		socklen_t size = sizeof value;
		fprintf(out, "%s", options[i].name);
		if (getsockopt(0, options[i].level, options[i].option, value, &size))
			fprintf(out, " errno %d", errno);
		else
			for (j = 0; j < size && j < sizeof value; j++)
				fprintf(out, " %02x", value[j]);
		fputc('\n', out);
	}
	clock_gettime(CLOCK_MONOTONIC, &before);
	ssize_t n = read(0, said, sizeof said);
	clock_gettime(CLOCK_MONOTONIC, &after);
	if (n < 0)
		fprintf(out, "read %s\n", strerror(errno));
	else
		fprintf(out, "read %.*s\n", (int)n, said);
	fprintf(out, "waited %ld\n", (after.tv_sec - before.tv_sec) * 1000 + (after.tv_nsec - before.tv_nsec) / 1000000);
	fclose(out);
	for (i = 0; i < length; i += n)
		if ((n = write(0, report + i, length - i)) < 0)
			die("write");
	return 0;
}
