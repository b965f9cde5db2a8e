#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "preload.h"

struct settings settings = {.from = -1, .keep = -1, .every_port = true, .wait = 3000};

// A variable that can't be understood ends the program: a guess would bind
// something that nobody asked for.
static _Noreturn void malformed(const char *name, const char *value, const char *want)
{
	say("error: %s=%s: %s", name, value, want);
	_exit(1);
}

// number reads a decimal of at most limit and moves *s behind it.
static bool number(const char **s, unsigned long limit, unsigned long *n)
{
	const char *start = *s;
	*n = 0;
	while (**s >= '0' && **s <= '9') {
		*n = *n * 10 + (unsigned long)(*(*s)++ - '0');
		if (*n > limit)
			return false;
	}
	return *s > start;
}

static bool port(const char **s, uint16_t *p)
{
	unsigned long n;
	if (!number(s, 65535, &n) || n == 0)
		return false;
	*p = (uint16_t)n;
	return true;
}

// read_port_entry reads 80, 443=8443 or 8000-8010.
static bool read_port_entry(const char **s)
{
	if (settings.ports == MAX_PORTS)
		return false;
	__typeof__(settings.port[0]) *e = &settings.port[settings.ports++];
	if (!port(s, &e->first))
		return false;
	e->last = e->first;
	if (**s == '-') {
		++*s;
		return port(s, &e->last) && e->last >= e->first;
	}
	if (**s == '=') {
		++*s;
		return port(s, &e->outside);
	}
	return true;
}

static void read_ports(const char *value)
{
	const char *s = value;
	if (!value || strcmp(value, "all") == 0)
		return;
	settings.every_port = false;
	do {
		if (!read_port_entry(&s) || (*s && *s != ','))
			malformed("SOCKETBOX_PORTS", value, "want all, or up to 64 of PORT, PORT=OUTSIDE, FIRST-LAST with commas between");
	} while (*s++ == ',');
}

// read_bind_entry reads an address with or without /BITS.
static bool read_bind_entry(const char *s, size_t len)
{
	char buffer[64];
	unsigned long bits = 128;
	if (len == 0 || len >= sizeof buffer || settings.binds == MAX_BINDS)
		return false;
	memcpy(buffer, s, len);
	buffer[len] = 0;
	char *slash = strchr(buffer, '/');
	if (slash) {
		const char *digits = slash + 1;
		*slash = 0;
		if (!number(&digits, 128, &bits) || *digits)
			return false;
	}
	__typeof__(settings.bind[0]) *e = &settings.bind[settings.binds++];
	struct in_addr v4;
	if (inet_pton(AF_INET6, buffer, &e->address) == 1) {
		e->bits = (int)bits;
		return true;
	}
	if (inet_pton(AF_INET, buffer, &v4) != 1 || (slash && bits > 32))
		return false;
	memset(&e->address, 0, sizeof e->address);
	e->address.s6_addr[10] = e->address.s6_addr[11] = 0xff;
	memcpy(&e->address.s6_addr[12], &v4, 4);
	e->bits = slash ? (int)bits + 96 : 128;
	return true;
}

static void read_binds(const char *value)
{
	if (!value)
		return;
	for (const char *s = value;; s++) {
		size_t len = strcspn(s, ",");
		if (!read_bind_entry(s, len))
			malformed("SOCKETBOX_BIND", value, "want up to 32 addresses or prefixes with commas between");
		s += len;
		if (!*s)
			return;
	}
}

static void read_dir(const char *value)
{
	size_t len = 0;
	if (value) {
		if (*value != '/' || strlen(value) >= sizeof settings.dir)
			malformed("SOCKETBOX_DIR", value, "want the absolute path of a socket directory");
		len = text(settings.dir, sizeof settings.dir, "%s", value);
	} else if (geteuid() == 0) {
		len = text(settings.dir, sizeof settings.dir, "/run/socketbox");
	} else if ((value = getenv("XDG_RUNTIME_DIR")) && *value == '/' && strlen(value) < sizeof settings.dir - 16) {
		len = text(settings.dir, sizeof settings.dir, "%s/socketbox", value);
	}
	while (len > 1 && settings.dir[len - 1] == '/')
		settings.dir[--len] = 0;
}

static void read_handoff(const char *value)
{
	if (!value || strcmp(value, "auto") == 0)
		return;
	if (strcmp(value, "connection") == 0)
		settings.handoff = HANDOFFS;
	else if (strcmp(value, "listener") == 0)
		settings.handoff = LOANS;
	else
		malformed("SOCKETBOX_HANDOFF", value, "want auto, connection or listener");
}

// read_wait reads 3s, 500ms, 1m or 0.
static void read_wait(const char *value)
{
	unsigned long n, unit = 0;
	const char *s = value;
	if (!value)
		return;
	if (number(&s, 1000000, &n)) {
		if (strcmp(s, "ms") == 0 || (n == 0 && !*s))
			unit = 1;
		else if (strcmp(s, "s") == 0)
			unit = 1000;
		else if (strcmp(s, "m") == 0)
			unit = 60000;
	}
	if (!unit || n * unit > 3600000)
		malformed("SOCKETBOX_WAIT", value, "want a time of at most an hour: 3s, 500ms, 1m, or 0");
	settings.wait = (long)(n * unit);
}

static void read_from(const char *value)
{
	unsigned long uid;
	const char *s = value;
	if (!value)
		return;
	if (!number(&s, 0xfffffffe, &uid) || *s)
		malformed("SOCKETBOX_FROM", value, "want a numeric user id");
	settings.from = (long)uid;
}

// read_keep takes a descriptor that this program has; a supervisor's variable
// that came further than its descriptor is no error.
static void read_keep(const char *value)
{
	unsigned long n;
	const char *s = value;
	int type = 0;
	socklen_t len = sizeof type;
	if (!value)
		return;
	if (!number(&s, MAX_FDS, &n) || *s)
		malformed("SOCKETBOX_KEEP", value, "want the number of a descriptor");
	if (raw(SYS_getsockopt, n, SOL_SOCKET, SO_TYPE, &type, &len) == 0 && type == SOCK_SEQPACKET)
		settings.keep = (int)n;
}

static bool read_switch(const char *name, const char *off, const char *on, const char *want)
{
	const char *value = getenv(name);
	if (!value || strcmp(value, off) == 0)
		return false;
	if (strcmp(value, on) != 0)
		malformed(name, value, want);
	return true;
}

void read_settings(void)
{
	settings.debug = read_switch("SOCKETBOX_DEBUG", "0", "1", "want 0 or 1");
	settings.reject6 = read_switch("SOCKETBOX_V6", "map", "reject", "want map or reject");
	read_dir(getenv("SOCKETBOX_DIR"));
	read_ports(getenv("SOCKETBOX_PORTS"));
	read_binds(getenv("SOCKETBOX_BIND"));
	read_handoff(getenv("SOCKETBOX_HANDOFF"));
	read_wait(getenv("SOCKETBOX_WAIT"));
	read_keep(getenv("SOCKETBOX_KEEP"));
	read_from(getenv("SOCKETBOX_FROM"));
}

uint16_t outside_port(uint16_t p)
{
	if (settings.every_port)
		return p;
	for (int i = 0; i < settings.ports; i++)
		if (p >= settings.port[i].first && p <= settings.port[i].last)
			return settings.port[i].outside ? settings.port[i].outside : p;
	return 0;
}

static bool within(const struct in6_addr *a, const struct in6_addr *prefix, int bits)
{
	int whole = bits / 8, rest = bits % 8;
	if (memcmp(a, prefix, (size_t)whole) != 0)
		return false;
	return rest == 0 || (a->s6_addr[whole] ^ prefix->s6_addr[whole]) >> (8 - rest) == 0;
}

bool binds_here(const struct in6_addr *address)
{
	for (int i = 0; i < settings.binds; i++)
		if (within(address, &settings.bind[i].address, settings.bind[i].bits))
			return true;
	return settings.binds == 0;
}
