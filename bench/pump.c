//go:build ignore

/*
 * pump: bytes as fast as they go. With -s it is the sink: it reads all that
 * its connections bring and answers each with the number of bytes when the
 * client has ended. Without, it fills N connections for a time, ends them, and
 * reads the answers: a byte that was lost or made up on the way shows. It
 * prints one line of key=value pairs.
 *
 * Both ends copy, as real programs do, in pieces of 128 KiB, with a thread per
 * connection.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PIECE (128 * 1024)
#define MOST 256

static struct sockaddr_in server;
static double until;
static atomic_ullong total;
static atomic_long bad;
static char zeros[PIECE];

static void die(const char *what)
{
	fprintf(stderr, "pump: error: %s: %s\n", what, strerror(errno));
	exit(1);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void *sink(void *arg)
{
	int fd = (int)(intptr_t)arg;
	static __thread char piece[PIECE];
	uint64_t got = 0;
	ssize_t n;
	while ((n = recv(fd, piece, sizeof piece, 0)) > 0)
		got += n;
	if (n == 0 && send(fd, &got, sizeof got, MSG_NOSIGNAL) != sizeof got)
		perror("pump: answer");
	close(fd);
	return NULL;
}

static void serve(void)
{
	int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		die("socket");
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(fd, (struct sockaddr *)&server, sizeof server) || listen(fd, 1024))
		die("listen");
	for (;;) {
		int c = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
		pthread_t thread;
		if (c < 0)
			continue;
		if (pthread_create(&thread, NULL, sink, (void *)(intptr_t)c))
			die("thread");
		pthread_detach(thread);
	}
}

static void *fill(void *arg)
{
	int fd = (int)(intptr_t)arg;
	uint64_t sent = 0, got = 0;
	while (now() < until) {
		ssize_t n = send(fd, zeros, sizeof zeros, MSG_NOSIGNAL);
		if (n <= 0)
			break;
		sent += n;
	}
	shutdown(fd, SHUT_WR);
	if (recv(fd, &got, sizeof got, MSG_WAITALL) != sizeof got || got != sent)
		atomic_fetch_add(&bad, 1);
	close(fd);
	atomic_fetch_add(&total, sent);
	return NULL;
}

int main(int argc, char **argv)
{
	int option, sinks = 0, streams = 1;
	double seconds = 1, begun;
	pthread_t threads[MOST];

	server.sin_family = AF_INET;
	server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	while ((option = getopt(argc, argv, "sp:c:t:")) != -1)
		switch (option) {
		case 's': sinks = 1; break;
		case 'p': server.sin_port = htons(atoi(optarg)); break;
		case 'c': streams = atoi(optarg); break;
		case 't': seconds = atof(optarg); break;
		default: return 2;
		}
	if (sinks)
		serve();
	if (streams < 1 || streams > MOST)
		return 2;
	begun = now();
	until = begun + seconds;
	for (int i = 0; i < streams; i++) {
		int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (fd < 0 || connect(fd, (struct sockaddr *)&server, sizeof server))
			die("connect");
		if (pthread_create(&threads[i], NULL, fill, (void *)(intptr_t)fd))
			die("thread");
	}
	for (int i = 0; i < streams; i++)
		pthread_join(threads[i], NULL);
	printf("bytes=%llu seconds=%.6f bad=%ld\n", (unsigned long long)total, now() - begun, (long)bad);
	return 0;
}
