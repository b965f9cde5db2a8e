#define _GNU_SOURCE
#include <errno.h>
#include <netinet/tcp.h>
#include <string.h>

#include "preload.h"

// Options of a listener are tried on a scratch TCP socket, whose answer the
// daemon gets, remembered, and given to accepted sockets where TCP would have
// passed them on. The receiving socket itself gets none of them but a time
// limit for accept.

// Names that not every libc has.
#ifndef SO_ATTACH_REUSEPORT_CBPF
#define SO_ATTACH_REUSEPORT_CBPF 51
#endif
#ifndef SO_ATTACH_REUSEPORT_EBPF
#define SO_ATTACH_REUSEPORT_EBPF 52
#endif
#ifndef SO_ATTACH_BPF
#define SO_ATTACH_BPF 50
#endif
#ifndef SO_LOCK_FILTER
#define SO_LOCK_FILTER 44
#endif
#ifndef TCP_MD5SIG_EXT
#define TCP_MD5SIG_EXT 32
#endif
#ifndef TCP_NOTSENT_LOWAT
#define TCP_NOTSENT_LOWAT 25
#endif
#define TCP_AO_FIRST 38
#define TCP_AO_LAST 43

static const struct {
	int level, name;
	bool carry;   // TCP passes it from a listener to what it accepts
	bool doubled; // reads as twice what was set
} inherited[] = {
	{SOL_SOCKET, SO_KEEPALIVE, true, false},
	{SOL_SOCKET, SO_LINGER, true, false},
	{SOL_SOCKET, SO_RCVBUF, true, true},
	{SOL_SOCKET, SO_SNDBUF, true, true},
	{SOL_SOCKET, SO_RCVTIMEO, true, false},
	{SOL_SOCKET, SO_SNDTIMEO, true, false},
	{SOL_SOCKET, SO_RCVLOWAT, true, false},
	{SOL_SOCKET, SO_OOBINLINE, true, false},
	{SOL_SOCKET, SO_PRIORITY, true, false},
	{SOL_SOCKET, SO_REUSEADDR, false, false},
	{SOL_SOCKET, SO_REUSEPORT, false, false},
	{IPPROTO_TCP, TCP_NODELAY, true, false},
	{IPPROTO_TCP, TCP_CORK, true, false},
	{IPPROTO_TCP, TCP_KEEPIDLE, true, false},
	{IPPROTO_TCP, TCP_KEEPINTVL, true, false},
	{IPPROTO_TCP, TCP_KEEPCNT, true, false},
	{IPPROTO_TCP, TCP_USER_TIMEOUT, true, false},
	{IPPROTO_TCP, TCP_MAXSEG, true, false},
	{IPPROTO_TCP, TCP_CONGESTION, true, false},
	{IPPROTO_TCP, TCP_LINGER2, true, false},
	{IPPROTO_TCP, TCP_WINDOW_CLAMP, true, false},
	{IPPROTO_TCP, TCP_NOTSENT_LOWAT, true, false},
	{IPPROTO_TCP, TCP_DEFER_ACCEPT, false, false},
	{IPPROTO_TCP, TCP_FASTOPEN, false, false},
	{IPPROTO_TCP, TCP_SYNCNT, false, false},
	{IPPROTO_IP, IP_TOS, true, false},
	{IPPROTO_IP, IP_TTL, true, false},
	{IPPROTO_IP, IP_MINTTL, true, false},
	{IPPROTO_IP, IP_FREEBIND, false, false},
	{IPPROTO_IP, IP_TRANSPARENT, false, false},
	{IPPROTO_IPV6, IPV6_TCLASS, true, false},
	{IPPROTO_IPV6, IPV6_UNICAST_HOPS, true, false},
	{IPPROTO_IPV6, IPV6_V6ONLY, false, false},
};
enum { INHERITED = sizeof inherited / sizeof *inherited };

static bool carried(int level, int name)
{
	for (int i = 0; i < INHERITED; i++)
		if (inherited[i].level == level && inherited[i].name == name)
			return inherited[i].carry;
	return false;
}

struct value {
	unsigned char bytes[OPTION_SIZE];
	socklen_t len; // 0: could not be read
};

static struct value read_option(int fd, int level, int name)
{
	struct value v = {.len = OPTION_SIZE};
	if (raw(SYS_getsockopt, fd, level, name, v.bytes, &v.len) < 0)
		v.len = 0;
	return v;
}

static bool equal(const struct value *a, const struct value *b)
{
	return a->len == b->len && memcmp(a->bytes, b->bytes, a->len) == 0;
}

static int scratch(const struct listener *l)
{
	return (int)raw(SYS_socket, l->bound.family, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

// halved returns what to set for an option that reads as twice that.
static struct value halved(struct value v)
{
	int n;
	memcpy(&n, v.bytes, sizeof n);
	n /= 2;
	memcpy(v.bytes, &n, sizeof n);
	return v;
}

// ---- what is remembered

static uint64_t key_of(int level, int name) { return (uint64_t)(unsigned)level << 32 | (unsigned)name | 1ull << 63; }

static struct option *find(struct listener *l, int level, int name)
{
	for (int i = 0; i < MAX_OPTIONS; i++)
		if (atomic_load_explicit(&l->options[i].key, memory_order_acquire) == key_of(level, name))
			return &l->options[i];
	return NULL;
}

static struct option *find_or_add(struct listener *l, int level, int name)
{
	struct option *o = find(l, level, name);
	for (int i = 0; i < MAX_OPTIONS && !o; i++) {
		uint64_t none = 0;
		if (atomic_compare_exchange_strong(&l->options[i].key, &none, key_of(level, name)))
			o = &l->options[i];
	}
	return o;
}

static void remember(struct listener *l, int level, int name, const struct value *set, const struct value *got, bool carry)
{
	struct option *o = find_or_add(l, level, name);
	if (!o)
		return; // more kinds of options than there are
	atomic_store(&o->carry, false);
	memcpy(o->value, set->bytes, OPTION_SIZE);
	memcpy(o->got, got->bytes, OPTION_SIZE);
	o->len = (unsigned char)set->len;
	o->gotlen = (unsigned char)got->len;
	atomic_store_explicit(&o->carry, carry, memory_order_release);
}

void options_copy(struct listener *l, int fd)
{
	int fresh = scratch(l);
	if (fresh < 0)
		return;
	for (int i = 0; i < INHERITED; i++) {
		int level = inherited[i].level, name = inherited[i].name;
		if (level == IPPROTO_IPV6 && l->bound.family == AF_INET)
			continue;
		struct value was = read_option(fd, level, name), plain = read_option(fresh, level, name);
		if (was.len == 0 || equal(&was, &plain))
			continue;
		struct value set = inherited[i].doubled ? halved(was) : was;
		remember(l, level, name, &set, &was, inherited[i].carry);
	}
	raw(SYS_close, fresh);
}

// What a UDP server sets before it binds, beyond the above: all are numbers.
static const struct {
	int level, name;
} datagram[] = {
	{SOL_SOCKET, SO_BROADCAST}, {SOL_SOCKET, SO_TIMESTAMP}, {SOL_SOCKET, SO_TIMESTAMPNS},
	{IPPROTO_IP, IP_PKTINFO}, {IPPROTO_IP, IP_RECVTTL}, {IPPROTO_IP, IP_RECVTOS}, {IPPROTO_IP, IP_RECVERR}, {IPPROTO_IP, IP_MTU_DISCOVER},
	{IPPROTO_IPV6, IPV6_RECVPKTINFO}, {IPPROTO_IPV6, IPV6_RECVHOPLIMIT}, {IPPROTO_IPV6, IPV6_RECVTCLASS}, {IPPROTO_IPV6, IPV6_RECVERR},
	{IPPROTO_IPV6, IPV6_MTU_DISCOVER},
};
enum { DATAGRAM = sizeof datagram / sizeof *datagram };

// lend_option sets an option of the daemon's own socket on the borrowed one, if
// it is not what a new socket has.
static void lend_option(int own, int fresh, int lent, int level, int name, bool doubled)
{
	struct value was = read_option(own, level, name), plain = read_option(fresh, level, name);
	if (was.len == 0 || equal(&was, &plain))
		return;
	if (doubled)
		was = halved(was);
	raw(SYS_setsockopt, lent, level, name, was.bytes, was.len);
}

void options_lend(int own, int lent)
{
	int domain = AF_INET, type = SOCK_STREAM;
	socklen_t len = sizeof domain;
	raw(SYS_getsockopt, own, SOL_SOCKET, SO_DOMAIN, &domain, &len);
	raw(SYS_getsockopt, own, SOL_SOCKET, SO_TYPE, &type, &len);
	int fresh = (int)raw(SYS_socket, domain, type | SOCK_CLOEXEC, 0);
	if (fresh < 0)
		return;
	for (int i = 0; i < INHERITED; i++)
		if (inherited[i].carry && !(inherited[i].level == IPPROTO_IPV6 && domain == AF_INET))
			lend_option(own, fresh, lent, inherited[i].level, inherited[i].name, inherited[i].doubled);
	for (int i = 0; i < DATAGRAM && type == SOCK_DGRAM; i++)
		if (!(datagram[i].level == IPPROTO_IPV6 && domain == AF_INET))
			lend_option(own, fresh, lent, datagram[i].level, datagram[i].name, false);
	raw(SYS_close, fresh);
}

void options_carry(struct listener *l, int fd, int domain)
{
	for (int i = 0; i < MAX_OPTIONS; i++) {
		struct option *o = &l->options[i];
		uint64_t key = atomic_load_explicit(&o->key, memory_order_relaxed) & ~(1ull << 63);
		if (key == 0)
			return; // they are filled from the first
		if (!atomic_load_explicit(&o->carry, memory_order_acquire))
			continue;
		int level = (int)(key >> 32), name = (int)(key & 0xffffffff);
		if (level == IPPROTO_IPV6 && domain == AF_INET) {
			level = IPPROTO_IP;
			name = name == IPV6_TCLASS ? IP_TOS : IP_TTL;
		}
		raw(SYS_setsockopt, fd, level, name, o->value, o->len);
	}
}

// ---- a listener's options

// protects says that an option keeps others out, which can't be done here:
// better no than a yes that is not true.
static bool protects(int level, int name)
{
	if (level == SOL_SOCKET)
		return name == SO_ATTACH_FILTER || name == SO_ATTACH_BPF || name == SO_LOCK_FILTER;
	if (level == IPPROTO_TCP)
		return name == TCP_MD5SIG || name == TCP_MD5SIG_EXT || (name >= TCP_AO_FIRST && name <= TCP_AO_LAST);
	return false;
}

// idle says that an option is about devices or processors, and nothing here
// answers to it: the connections come from elsewhere.
static bool idle(int level, int name)
{
	return level == SOL_SOCKET && (name == SO_ATTACH_REUSEPORT_CBPF || name == SO_ATTACH_REUSEPORT_EBPF ||
				       name == SO_BINDTODEVICE || name == SO_MARK);
}

static int listener_set(int fd, struct listener *l, int level, int name, const void *value, socklen_t len)
{
	if (protects(level, name))
		return (int)fail(-ENOPROTOOPT);
	if (idle(level, name))
		return 0;
	if (level == SOL_SOCKET && (name == SO_RCVTIMEO))
		raw(SYS_setsockopt, fd, level, name, value, len);
	struct value before = {.len = 0}, after, set = {.len = len < OPTION_SIZE ? len : OPTION_SIZE};
	int s = scratch(l);
	if (s >= 0) {
		before = read_option(s, level, name);
		long r = raw(SYS_setsockopt, s, level, name, value, len);
		after = read_option(s, level, name);
		raw(SYS_close, s);
		if (r < 0)
			return (int)fail(r);
	} else if (!value) {
		return (int)fail(-EFAULT);
	}
	if (!value || len > OPTION_SIZE)
		return 0;
	memcpy(set.bytes, value, len);
	if (s < 0)
		after = set; // under a filter that forbids socket(2)
	remember(l, level, name, &set, &after, carried(level, name) && !equal(&before, &after));
	return 0;
}

static int hand_out(void *to, socklen_t *len, const void *bytes, socklen_t size)
{
	if (size > *len)
		size = *len;
	memcpy(to, bytes, size);
	*len = size;
	return 0;
}

// identity answers what a TCP listener would say of itself.
static bool identity(const struct listener *l, int level, int name, int *value)
{
	if (level != SOL_SOCKET)
		return false;
	switch (name) {
	case SO_DOMAIN:
		*value = l->bound.family;
		return true;
	case SO_TYPE:
		*value = SOCK_STREAM;
		return true;
	case SO_PROTOCOL:
		*value = IPPROTO_TCP;
		return true;
	case SO_ACCEPTCONN:
		*value = (atomic_load(&l->flags) & LISTENING) != 0;
		return true;
	case SO_ERROR:
		*value = 0;
		return true;
	}
	return false;
}

static int listener_get(struct listener *l, int level, int name, void *to, socklen_t *len)
{
	int value = 0;
	if (!to || !len)
		return (int)fail(-EFAULT);
	if (identity(l, level, name, &value))
		return hand_out(to, len, &value, sizeof value);
	struct option *o = find(l, level, name);
	if (o)
		return hand_out(to, len, o->got, o->gotlen);
	int s = scratch(l);
	if (s < 0)
		return hand_out(to, len, &value, sizeof value);
	long r = raw(SYS_getsockopt, s, level, name, to, len);
	raw(SYS_close, s);
	if (r == 0 && level == IPPROTO_TCP && name == TCP_INFO && *len > 0)
		*(unsigned char *)to = TCP_LISTEN;
	return (int)fail(r);
}

// ---- accepted connections of another family than their listener

// other_name translates the few options of one level that mean something at
// the other; 0: none.
static int other_name(int level, int name)
{
	if (level == IPPROTO_IPV6)
		return name == IPV6_TCLASS ? IP_TOS : name == IPV6_UNICAST_HOPS ? IP_TTL : 0;
	return name == IP_TOS ? IPV6_TCLASS : name == IP_TTL ? IPV6_UNICAST_HOPS : 0;
}

static bool foreign(int state, int level)
{
	return (state == SHOWN_AS_6 && level == IPPROTO_IPV6) || (state == SHOWN_AS_4 && level == IPPROTO_IP);
}

static int foreign_set(int fd, int level, int name, const void *value, socklen_t len)
{
	int other = other_name(level, name);
	if (!other)
		return 0; // about a family that this connection has not
	return real()->setsockopt(fd, level == IPPROTO_IPV6 ? IPPROTO_IP : IPPROTO_IPV6, other, value, len);
}

static int foreign_get(int fd, int level, int name, void *to, socklen_t *len)
{
	int other = other_name(level, name), none = 0;
	if (other)
		return real()->getsockopt(fd, level == IPPROTO_IPV6 ? IPPROTO_IP : IPPROTO_IPV6, other, to, len);
	return hand_out(to, len, &none, sizeof none);
}

// ---- the hooks

EXPORT int setsockopt(int fd, int level, int name, const void *value, socklen_t len)
{
	int state = fd_state(fd);
	struct listener *l = fd_listener(fd);
	if (l)
		return listener_set(fd, l, level, name, value, len);
	if (foreign(state, level))
		return foreign_set(fd, level, name, value, len);
	int r = real()->setsockopt(fd, level, name, value, len);
	if (r == 0 || (errno != EOPNOTSUPP && errno != ENOPROTOOPT))
		return r;
	int why = errno;
	l = recover(fd);
	return l ? listener_set(fd, l, level, name, value, len) : (int)fail(-why);
}

static bool asks_identity(int level, int name)
{
	return level == SOL_SOCKET && (name == SO_DOMAIN || name == SO_TYPE || name == SO_PROTOCOL || name == SO_ACCEPTCONN);
}

EXPORT int getsockopt(int fd, int level, int name, void *to, socklen_t *len)
{
	int state = fd_state(fd);
	struct listener *l = fd_listener(fd);
	if (l)
		return listener_get(l, level, name, to, len);
	if (to && len && foreign(state, level))
		return foreign_get(fd, level, name, to, len);
	if (to && len && state >= SHOWN_AS_6 && level == SOL_SOCKET && name == SO_DOMAIN) {
		int domain = state == SHOWN_AS_6 ? AF_INET6 : AF_INET;
		return hand_out(to, len, &domain, sizeof domain);
	}
	socklen_t given = len ? *len : 0;
	int entered = errno, r = real()->getsockopt(fd, level, name, to, len), why = errno;
	bool suspect = r == 0 ? asks_identity(level, name) : why == EOPNOTSUPP || why == ENOPROTOOPT;
	if (!suspect || !(l = recover(fd))) {
		errno = r == 0 ? entered : why;
		return r;
	}
	errno = entered;
	*len = given;
	return listener_get(l, level, name, to, len);
}
