#define _GNU_SOURCE
#include <arpa/inet.h>
#include <string.h>
#include <sys/un.h>

#include "preload.h"

// The name that a receiving socket is bound with, before it is renamed to
// that which senders look for, is where the kernel keeps what the daemon
// bound:
//
//	.sbx1-FKR-ADDRESS-PORT-SCOPE-ID
//
//	F        family of the daemon's socket, 4 or 6
//	K        o: IPV6_V6ONLY, b: not
//	R        r: SO_REUSEPORT, n: not
//	ADDRESS  32 hexadecimal digits, IPv4 as v4-mapped
//	PORT     4, SCOPE 8 (of a link-local address), ID 16
static const char prefix[] = ".sbx1-";
static const char digits[] = "0123456789abcdef";

static char *put_hex(char *at, uint64_t n, int count)
{
	for (int i = count - 1; i >= 0; i--, n >>= 4)
		at[i] = digits[n & 15];
	return at + count;
}

// The readers pass NULL on, so that one check at the end is enough.
static const char *get_hex(const char *at, const char *end, int count, uint64_t *n)
{
	*n = 0;
	if (!at || end - at < count)
		return NULL;
	for (; count > 0; count--, at++) {
		const char *digit = memchr(digits, *at, 16);
		if (!digit)
			return NULL;
		*n = *n << 4 | (uint64_t)(digit - digits);
	}
	return at;
}

static const char *dash(const char *at, const char *end)
{
	return at && at < end && *at == '-' ? at + 1 : NULL;
}

struct in6_addr as_ipv6(const struct bound *b)
{
	if (b->address.sa.sa_family == AF_INET6)
		return b->address.in6.sin6_addr;
	struct in6_addr a = {0};
	a.s6_addr[10] = a.s6_addr[11] = 0xff;
	memcpy(&a.s6_addr[12], &b->address.in.sin_addr, 4);
	return a;
}

// The port is at the same place in both families.
uint16_t port_of(const struct bound *b) { return ntohs(b->address.in.sin_port); }

enum kind kind_of(const struct bound *b)
{
	if (b->family == AF_INET || is_mapped(&b->address))
		return ONLY4;
	return b->v6only ? ONLY6 : BOTH;
}

void name_write(char name[NAME_SIZE], const struct bound *b)
{
	struct in6_addr a = as_ipv6(b);
	char *at = name + text(name, NAME_SIZE, "%s%s%s%s-", prefix, b->family == AF_INET ? "4" : "6",
			       b->v6only ? "o" : "b", b->reuseport ? "r" : "n");
	for (int i = 0; i < 16; i++)
		at = put_hex(at, a.s6_addr[i], 2);
	*at++ = '-';
	at = put_hex(at, port_of(b), 4);
	*at++ = '-';
	at = put_hex(at, b->family == AF_INET ? 0 : b->address.in6.sin6_scope_id, 8);
	*at++ = '-';
	*put_hex(at, b->id, 16) = 0;
}

static void set_address(struct bound *b, const struct in6_addr *a, uint16_t port, uint32_t scope)
{
	memset(&b->address, 0, sizeof b->address);
	b->address.in.sin_port = htons(port);
	b->address.sa.sa_family = (sa_family_t)b->family;
	if (b->family == AF_INET) {
		memcpy(&b->address.in.sin_addr, &a->s6_addr[12], 4);
	} else {
		b->address.in6.sin6_addr = *a;
		b->address.in6.sin6_scope_id = scope;
	}
}

static bool read_fields(const char *at, const char *end, struct bound *b)
{
	struct in6_addr a;
	uint64_t n, port, scope;
	b->family = at[0] == '4' ? AF_INET : AF_INET6;
	b->v6only = at[1] == 'o';
	b->reuseport = at[2] == 'r';
	at = dash(at + 3, end);
	for (int i = 0; i < 16; i++) {
		at = get_hex(at, end, 2, &n);
		a.s6_addr[i] = (uint8_t)n;
	}
	at = get_hex(dash(at, end), end, 4, &port);
	at = get_hex(dash(at, end), end, 8, &scope);
	if (get_hex(dash(at, end), end, 16, &b->id) != end)
		return false;
	set_address(b, &a, (uint16_t)port, (uint32_t)scope);
	return true;
}

bool name_read(const void *address, socklen_t len, struct bound *b)
{
	const struct sockaddr_un *sun = address;
	const socklen_t head = offsetof(struct sockaddr_un, sun_path);
	if (len <= head || len > sizeof *sun || sun->sun_family != AF_UNIX || !sun->sun_path[0])
		return false;
	const char *path = sun->sun_path, *end = path + strnlen(path, len - head);
	const char *slash = memrchr(path, '/', (size_t)(end - path));
	const char *at = slash ? slash + 1 : path;
	const size_t fixed = sizeof prefix - 1;
	if ((size_t)(end - at) < fixed + 3 || memcmp(at, prefix, fixed) != 0)
		return false;
	return read_fields(at + fixed, end, b);
}

// adopt makes fd a copy of a listener that this process did not bind.
static struct listener *adopt(int fd, const struct bound *b)
{
	struct listener *l = listener_by_id(b->id);
	if (!l) {
		l = listener_new();
		if (!l)
			return NULL;
		l->bound = *b;
		l->outside = outside_port(port_of(b));
		atomic_store(&l->flags, SHARED | LISTENING);
		atomic_store(&l->state, 2);
	}
	fd_become(fd, l->number);
	trace("descriptor %d is a listener on port %u that came from elsewhere", fd, (unsigned)port_of(b));
	return l;
}

struct listener *recover(int fd)
{
	struct sockaddr_un sun;
	socklen_t len = sizeof sun;
	struct bound b;
	if (raw(SYS_getsockname, fd, &sun, &len) != 0 || !name_read(&sun, len, &b))
		return NULL;
	if (!own_memory())
		return listener_by_id(b.id);
	return adopt(fd, &b);
}
