#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

#include "preload.h"

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

static int number_option(int fd, int level, int name)
{
	int value = 0;
	socklen_t len = sizeof value;
	return raw(SYS_getsockopt, fd, level, name, &value, &len) < 0 ? -1 : value;
}

static bool is_tcp(int fd)
{
	int protocol = number_option(fd, SOL_SOCKET, SO_PROTOCOL);
	return number_option(fd, SOL_SOCKET, SO_TYPE) == SOCK_STREAM && (protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP);
}

static bool is_udp(int fd)
{
	return number_option(fd, SOL_SOCKET, SO_TYPE) == SOCK_DGRAM && number_option(fd, SOL_SOCKET, SO_PROTOCOL) == IPPROTO_UDP;
}

static bool is_bound(int fd)
{
	union address a;
	socklen_t len = sizeof a;
	return raw(SYS_getsockname, fd, &a, &len) < 0 || a.in.sin_port != 0;
}

// asked reads what the daemon binds; false if that is none of ours.
static bool asked(int fd, const struct sockaddr *sa, socklen_t len, struct bound *b)
{
	if (!sa || len < sizeof(struct sockaddr_in) || (sa->sa_family != AF_INET && sa->sa_family != AF_INET6) ||
	    (sa->sa_family == AF_INET6 && len < sizeof(struct sockaddr_in6)))
		return false;
	memset(b, 0, sizeof *b);
	b->family = sa->sa_family;
	memcpy(&b->address, sa, address_size((const union address *)sa));
	struct in6_addr address = as_ipv6(b);
	if (port_of(b) == 0 || !outside_port(port_of(b)) || !binds_here(&address))
		return false;
	if (number_option(fd, SOL_SOCKET, SO_DOMAIN) != b->family || is_bound(fd))
		return false;
	b->v6only = b->family == AF_INET6 && number_option(fd, IPPROTO_IPV6, IPV6_V6ONLY) == 1;
	b->reuseport = number_option(fd, SOL_SOCKET, SO_REUSEPORT) == 1;
	return true;
}

// adopt puts a borrowed socket in the place of the daemon's own one. From then
// on the daemon's calls are the kernel's business, as if it had bound it itself.
static int adopt(int fd, int lent, const struct bound *b)
{
	options_lend(fd, lent);
	int r = replace(fd, lent, NULL);
	trace("bind: descriptor %d, port %u, is the listener of port %u, borrowed", fd, (unsigned)port_of(b), (unsigned)outside_port(port_of(b)));
	return r;
}

static int take_connections(int fd, const struct bound *b)
{
	struct listener *l = listener_new();
	if (!l) {
		say("error: bind to port %u: more than %d listeners", (unsigned)port_of(b), MAX_LISTENERS);
		return -ENOBUFS;
	}
	l->bound = *b;
	l->outside = outside_port(port_of(b));
	int share = -1, receiving = place(l, &share);
	if (share >= 0)
		receiving = share;
	if (receiving < 0) {
		listener_free(l);
		return receiving;
	}
	options_copy(l, fd);
	int r = replace(fd, receiving, l);
	if (r < 0) {
		unplace(l);
		listener_free(l);
	}
	return r;
}

// answer returns NONE_OF_OURS for what the kernel is to bind.
enum { NONE_OF_OURS = TAKE_CONNECTIONS };

static int answer(int fd, const struct bound *b)
{
	bool udp = is_udp(fd);
	if (!udp && !is_tcp(fd))
		return NONE_OF_OURS;
	int lent = borrow(fd, outside_port(port_of(b)));
	if (lent >= 0)
		return adopt(fd, lent, b);
	return lent == TAKE_CONNECTIONS && !udp ? take_connections(fd, b) : lent;
}

EXPORT int bind(int fd, const struct sockaddr *sa, socklen_t len)
{
	struct bound b;
	if (fd_listener(fd))
		return (int)fail(-EINVAL); // bound already
	if (!asked(fd, sa, len, &b))
		return real()->bind(fd, sa, len);
	int r = answer(fd, &b);
	return r == NONE_OF_OURS ? real()->bind(fd, sa, len) : (int)fail(r);
}

// renew gives a listener that was shut down a new receiving socket.
static int renew(int fd, struct listener *l)
{
	struct bound b = l->bound;
	int share = -1;
	struct listener *n = listener_new();
	if (!n)
		return -ENOBUFS;
	n->bound = b;
	n->outside = l->outside;
	memcpy(n->options, l->options, sizeof n->options);
	int receiving = place(n, &share);
	if (share >= 0)
		receiving = share;
	int r = receiving < 0 ? receiving : replace(fd, receiving, n);
	if (r < 0) {
		listener_free(n);
		return r;
	}
	atomic_fetch_or(&n->flags, LISTENING);
	return 0;
}

EXPORT int listen(int fd, int backlog)
{
	struct listener *l = fd_listener(fd);
	if (!l) {
		int r = real()->listen(fd, backlog);
		if (r == 0 || errno != EOPNOTSUPP)
			return r;
		if (!(l = recover(fd)))
			return (int)fail(-EOPNOTSUPP);
	}
	if (atomic_load(&listener_base(l)->flags) & DOWN)
		return (int)fail(renew(fd, l));
	atomic_fetch_or(&l->flags, LISTENING);
	return 0;
}

// give_back makes fd a TCP socket again: it was bound to connect from there.
static int give_back(int fd, struct listener *l)
{
	struct bound b = l->bound;
	int on = 1, tcp = (int)raw(SYS_socket, b.family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (tcp < 0)
		return tcp;
	raw(SYS_setsockopt, tcp, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	options_carry(l, tcp, b.family);
	long r = raw(SYS_bind, tcp, &b.address, address_size(&b.address));
	if (r == 0)
		r = replace(fd, tcp, NULL);
	else
		raw(SYS_close, tcp);
	return (int)r;
}

EXPORT int connect(int fd, const struct sockaddr *sa, socklen_t len)
{
	struct listener *l = fd_listener(fd);
	if (!l)
		return real()->connect(fd, sa, len);
	if (atomic_load(&l->flags) & LISTENING)
		return (int)fail(-EISCONN);
	int r = give_back(fd, l);
	return r < 0 ? (int)fail(r) : real()->connect(fd, sa, len);
}
