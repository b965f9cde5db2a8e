//go:build ignore

/*
 * load: N concurrent clients. Each connects, reads one byte and the end (with
 * -q: sends a request, and reads any answer to its end), closes, and begins
 * again, until the count or the time is used up, or a TERM comes. It prints one
 * line of key=value pairs.
 *
 * All clients share one thread and its epoll by default: on a machine that
 * also runs what is measured, clients with a thread each crowd the run queues,
 * and then the server finds several connections at each wake-up that real
 * clients, which are elsewhere, would bring one by one. -m spreads the clients
 * over more threads.
 *
 * A connection that is refused, reset, empty or too slow is counted as lost,
 * by its kind, and not among the latencies.
 *
 * The clients close with SO_LINGER 0: the reset takes the server's side out
 * of FIN_WAIT2 too, so nothing stays in TIME_WAIT and no port runs out.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* A client that waits longer than this, in seconds, gives up: lost. */
#define PATIENCE 10
/* How often, in milliseconds, a thread looks at its clock while it waits. */
#define LOOK 100
/* Events taken at once. */
#define EVENTS 64

enum outcome { OK, REFUSED, RESET, EMPTY, TIMEOUT, OTHER, OUTCOMES };

/* One client: connected (fd >= 0), pausing until due, or done. */
struct client {
	int fd;
	int done;
	int asked;      /* the request has been sent */
	long number;    /* of the connection, by order of begin */
	long bytes;     /* read so far */
	double begun;   /* when connect was called, seconds */
	double due;     /* when the next connection begins, seconds */
};

struct worker {
	pthread_t thread;
	int epoll;
	long clients;
	struct client *client;
};

/* An address of either family: IPv4, or IPv6. */
union address {
	struct sockaddr any;
	struct sockaddr_in in;
	struct sockaddr_in6 in6;
};

static struct {
	union address server;
	unsigned short port;
	long ports;     /* consecutive ports, taken in turn */
	long clients;
	long threads;
	long count;     /* connections at most */
	double seconds; /* time at most */
	long interval;  /* pause of a client between connections, in us */
	union address first; /* source */
	long sources;   /* consecutive addresses, taken in turn; 0: the kernel's choice */
	const char *request; /* NULL: the server speaks first */
} load = { .ports = 1, .clients = 1, .threads = 1, .count = 1000, .seconds = 10 };

static atomic_long taken;              /* connections begun */
static atomic_long outcomes[OUTCOMES];
static atomic_int over;
static double end;                     /* when the time is up, seconds */
static unsigned *latencies;            /* us, by number; 0: lost */

static void die(const char *what)
{
	fprintf(stderr, "load: error: %s: %s\n", what, strerror(errno));
	exit(1);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static enum outcome failure(void)
{
	switch (errno) {
	case ECONNREFUSED:
		return REFUSED;
	case ECONNRESET:
	case EPIPE:
		return RESET;
	case ETIMEDOUT:
		return TIMEOUT;
	default:
		perror("load: client");
		return OTHER;
	}
}

/* finish counts the client's connection, closes it and sets the next's time. */
static void finish(struct client *c, enum outcome outcome)
{
	double t = now();

	atomic_fetch_add(&outcomes[outcome], 1);
	if (outcome == OK)
		latencies[c->number] = (unsigned)((t - c->begun) * 1e6) + 1;
	close(c->fd);
	c->fd = -1;
	c->due = t + (double)load.interval / 1e6;
}

/* parse_address reads an address of either family; 0 if it is none. */
static int parse_address(const char *text, union address *a)
{
	if (inet_pton(AF_INET, text, &a->in.sin_addr) == 1)
		a->any.sa_family = AF_INET;
	else if (inet_pton(AF_INET6, text, &a->in6.sin6_addr) == 1)
		a->any.sa_family = AF_INET6;
	else
		return 0;
	return 1;
}

static socklen_t size_of(const union address *a)
{
	return a->any.sa_family == AF_INET ? sizeof a->in : sizeof a->in6;
}

/* come_from binds a connection's socket to its source, whose port is left to connect. */
static void come_from(int fd, long number)
{
	union address source = load.first;
	in_addr_t *low = source.any.sa_family == AF_INET ? &source.in.sin_addr.s_addr
							 : &source.in6.sin6_addr.s6_addr32[3];
	int on = 1;

	*low = htonl(ntohl(*low) + (in_addr_t)(number % load.sources));
	if (setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on) ||
	    bind(fd, &source.any, size_of(&source)))
		die("bind to a source");
}

/* start begins the client's next connection, unless it was the last. */
static void start(struct worker *w, struct client *c)
{
	static const struct linger reset = { .l_onoff = 1, .l_linger = 0 };
	union address server = load.server;
	struct epoll_event event = { .events = load.request ? EPOLLOUT : EPOLLIN, .data.ptr = c };

	if (atomic_load(&over) || (c->number = atomic_fetch_add(&taken, 1)) >= load.count) {
		c->done = 1;
		return;
	}
	c->fd = socket(server.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (c->fd < 0)
		die("socket");
	if (setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset))
		die("setsockopt");
	if (load.sources)
		come_from(c->fd, c->number);
	server.in.sin_port = /* where sin6_port is, too */
		htons((unsigned short)(load.port + c->number % load.ports));
	c->bytes = 0;
	c->asked = 0;
	c->begun = now();
	if (connect(c->fd, &server.any, size_of(&server)) && errno != EINPROGRESS) {
		finish(c, failure());
		return;
	}
	if (epoll_ctl(w->epoll, EPOLL_CTL_ADD, c->fd, &event))
		die("epoll_ctl");
}

/* ask sends the request, which is short enough for a new connection's buffer. */
static void ask(struct worker *w, struct client *c)
{
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = c };
	size_t length = strlen(load.request);

	if (send(c->fd, load.request, length, MSG_NOSIGNAL) != (ssize_t)length) {
		finish(c, failure());
		return;
	}
	c->asked = 1;
	if (epoll_ctl(w->epoll, EPOLL_CTL_MOD, c->fd, &event))
		die("epoll_ctl");
}

/* progress reads what has come; the end of the answer ends the connection. */
static void progress(struct worker *w, struct client *c)
{
	char bytes[512];
	ssize_t n;

	if (load.request && !c->asked) {
		ask(w, c);
		return;
	}
	while ((n = read(c->fd, bytes, sizeof bytes)) > 0)
		c->bytes += n;
	if (n == 0)
		finish(c, c->bytes == 1 || (load.request && c->bytes > 0) ? OK : EMPTY);
	else if (errno != EAGAIN)
		finish(c, failure());
}

/* tend starts and gives up what is due; 0 once every client is done. */
static int tend(struct worker *w)
{
	double t = now();
	int busy = 0;

	if (t >= end)
		atomic_store(&over, 1);
	for (struct client *c = w->client; c < w->client + w->clients; c++) {
		if (c->fd >= 0 && t - c->begun > PATIENCE)
			finish(c, TIMEOUT);
		if (c->fd < 0 && !c->done && (c->due <= t || atomic_load(&over)))
			start(w, c);
		busy += !c->done;
	}
	return busy;
}

/* until_next returns how long epoll may wait, in milliseconds. */
static int until_next(const struct worker *w)
{
	double t, first;

	if (!load.interval)
		return LOOK;
	t = now();
	first = t + LOOK / 1e3;
	for (const struct client *c = w->client; c < w->client + w->clients; c++)
		if (c->fd < 0 && !c->done && c->due < first)
			first = c->due;
	return first > t ? (int)((first - t) * 1e3) + 1 : 0;
}

static void *work(void *arg)
{
	struct worker *w = arg;
	struct epoll_event events[EVENTS];
	double looked = 0;

	for (;;) {
		int n;

		/* Without pauses the clients are looked over now and then only. */
		if (load.interval || now() - looked > LOOK / 1e3) {
			if (!tend(w))
				return NULL;
			looked = now();
		}
		n = epoll_wait(w->epoll, events, EVENTS, until_next(w));
		if (n < 0 && errno != EINTR)
			die("epoll_wait");
		if (n <= 0)
			looked = 0;
		for (int i = 0; i < n; i++) {
			struct client *c = events[i].data.ptr;

			progress(w, c);
			if (c->fd < 0 && !load.interval)
				start(w, c);
			if (c->done)
				looked = 0; /* it may have been the last */
		}
	}
}

static int by_value(const void *a, const void *b)
{
	unsigned x = *(const unsigned *)a, y = *(const unsigned *)b;

	return (x > y) - (x < y);
}

/* report prints the line; the latencies are sorted, the lost first as 0. */
static void report(double seconds)
{
	long ok = atomic_load(&outcomes[OK]);
	unsigned *served;

	qsort(latencies, (size_t)load.count, sizeof *latencies, by_value);
	served = latencies + (load.count - ok);
	printf("ok=%ld refused=%ld reset=%ld empty=%ld timeout=%ld other=%ld seconds=%.6f p50=%u p99=%u p999=%u\n",
	       ok, atomic_load(&outcomes[REFUSED]), atomic_load(&outcomes[RESET]),
	       atomic_load(&outcomes[EMPTY]), atomic_load(&outcomes[TIMEOUT]),
	       atomic_load(&outcomes[OTHER]), seconds,
	       ok ? served[ok / 2] : 0, ok ? served[ok * 99 / 100] : 0,
	       ok ? served[ok * 999 / 1000] : 0);
}

static void usage(void)
{
	fputs("usage: load [-a ADDRESS] -p PORT [-k PORTS] [-c CLIENTS] [-m THREADS]\n"
	      "            [-n COUNT] [-t SECONDS] [-i USEC] [-q REQUEST]\n"
	      "            [-s FIRST-SOURCE -o SOURCES]\n", stderr);
	exit(2);
}

static void parse(int argc, char **argv)
{
	const char *address = "127.0.0.1", *first = "0.0.0.0";
	int option;

	while ((option = getopt(argc, argv, "a:p:k:c:m:n:t:i:q:s:o:")) != -1) {
		switch (option) {
		case 'a': address = optarg; break;
		case 'p': load.port = (unsigned short)atoi(optarg); break;
		case 'k': load.ports = atol(optarg); break;
		case 'c': load.clients = atol(optarg); break;
		case 'm': load.threads = atol(optarg); break;
		case 'n': load.count = atol(optarg); break;
		case 't': load.seconds = atof(optarg); break;
		case 'i': load.interval = atol(optarg); break;
		case 'q': load.request = optarg; break;
		case 's': first = optarg; break;
		case 'o': load.sources = atol(optarg); break;
		default: usage();
		}
	}
	if (!parse_address(address, &load.server) || !load.port ||
	    !parse_address(first, &load.first) || load.sources < 0 ||
	    load.ports < 1 || load.clients < 1 || load.threads < 1 ||
	    load.count < 1 || load.seconds <= 0 || load.interval < 0)
		usage();
	if (load.threads > load.clients)
		load.threads = load.clients;
}

static void stop(int unused)
{
	(void)unused;
	atomic_store(&over, 1);
}

/* prepare gives a worker its share of the clients. */
static void prepare(struct worker *w, long share)
{
	w->clients = share;
	w->client = calloc((size_t)share, sizeof *w->client);
	w->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (!w->client || w->epoll < 0)
		die("prepare a worker");
	for (long i = 0; i < share; i++)
		w->client[i].fd = -1;
}

int main(int argc, char **argv)
{
	struct worker *workers;
	double begun;

	parse(argc, argv);
	signal(SIGTERM, stop);
	signal(SIGINT, stop);
	latencies = calloc((size_t)load.count, sizeof *latencies);
	workers = calloc((size_t)load.threads, sizeof *workers);
	if (!latencies || !workers)
		die("calloc");
	for (long i = 0; i < load.threads; i++)
		prepare(&workers[i], load.clients / load.threads + (i < load.clients % load.threads));

	begun = now();
	end = begun + load.seconds;
	for (long i = 1; i < load.threads; i++)
		if ((errno = pthread_create(&workers[i].thread, NULL, work, &workers[i])))
			die("pthread_create");
	work(&workers[0]);
	for (long i = 1; i < load.threads; i++)
		pthread_join(workers[i].thread, NULL);
	report(now() - begun);
	return 0;
}
