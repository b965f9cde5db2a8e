#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "preload.h"

static _Atomic uint16_t fds[MAX_FDS]; // what each descriptor is
static _Atomic int highest;           // no descriptor above is anything
static struct listener *listeners;    // shared by the processes of one tree
static _Atomic int mine[MAX_LISTENERS + 1]; // copies that this process has
static _Atomic int owner;             // the process that this memory belongs to

// The thread that forks remembers what it counted as forking.
static _Thread_local bool counted[MAX_LISTENERS + 1];

void table_open(void)
{
	long m = raw(SYS_mmap, 0, sizeof *listeners * MAX_LISTENERS, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (m < 0 && m > -4096) {
		say("error: no memory for listeners: %s", error_text((int)-m));
		return;
	}
	listeners = (struct listener *)m;
	atomic_store(&owner, (int)raw(SYS_getpid));
}

bool own_memory(void) { return raw(SYS_getpid) == atomic_load(&owner); }

// ---- listeners

struct listener *listener_by_number(int number)
{
	return listeners && number >= 1 && number <= MAX_LISTENERS ? &listeners[number - 1] : NULL;
}

struct listener *listener_base(struct listener *l) { return listener_by_number(l->base); }

bool held_here(const struct listener *l) { return atomic_load(&mine[l->number]) > 0; }

// abandoned tells whether every process that held l has ended unseen.
static bool abandoned(struct listener *l)
{
	return atomic_load(&l->state) == 2 && !(atomic_load(&l->flags) & SHARED) && !held_here(l) &&
	       !holder_alive(l) && atomic_load(&l->forking) == 0;
}

static bool claim(struct listener *l)
{
	int from = 0;
	if (atomic_compare_exchange_strong(&l->state, &from, 1))
		return true;
	from = 2;
	return abandoned(l) && atomic_compare_exchange_strong(&l->state, &from, 1);
}

struct listener *listener_new(void)
{
	for (int n = 1; listeners && n <= MAX_LISTENERS; n++) {
		struct listener *l = listener_by_number(n);
		if (!claim(l))
			continue;
		memset((char *)l + sizeof l->state, 0, sizeof *l - sizeof l->state);
		l->number = l->base = n;
		return l;
	}
	return NULL;
}

void listener_free(struct listener *l) { atomic_store(&l->state, 0); }

struct listener *listener_by_id(uint64_t id)
{
	for (int n = 1; listeners && n <= MAX_LISTENERS; n++)
		if (atomic_load(&listeners[n - 1].state) == 2 && listeners[n - 1].bound.id == id)
			return &listeners[n - 1];
	return NULL;
}

// ---- who holds a listener

static void add_holder(struct listener *l, int pid)
{
	for (int try = 0; try < 2; try++) {
		for (int i = 0; i < MAX_HOLDERS; i++) {
			int none = 0;
			if (atomic_compare_exchange_strong(&l->holders[i], &none, pid))
				return;
		}
		holder_alive(l); // makes room
	}
	atomic_fetch_or(&l->flags, SHARED); // more than can be counted
}

static void remove_holder(struct listener *l, int pid)
{
	for (int i = 0; i < MAX_HOLDERS; i++) {
		int is = pid;
		if (atomic_compare_exchange_strong(&l->holders[i], &is, 0))
			return;
	}
}

int holder_alive(struct listener *l)
{
	int self = atomic_load(&owner), alive = 0;
	for (int i = 0; i < MAX_HOLDERS; i++) {
		int pid = atomic_load(&l->holders[i]);
		if (pid == 0 || pid == self)
			continue;
		if (raw(SYS_kill, pid, 0) != -ESRCH)
			alive = pid;
		else
			atomic_compare_exchange_strong(&l->holders[i], &pid, 0);
	}
	return alive;
}

static void hold(struct listener *l)
{
	if (atomic_fetch_add(&mine[l->number], 1) == 0)
		add_holder(l, atomic_load(&owner));
}

// release returns true if nobody has a copy any more. It errs to the other
// side: a listener that is taken for dead would never be served again.
static bool release(struct listener *l)
{
	if (atomic_fetch_sub(&mine[l->number], 1) != 1)
		return false;
	remove_holder(l, atomic_load(&owner));
	return !(atomic_load(&l->flags) & SHARED) && atomic_load(&l->forking) == 0 && !holder_alive(l);
}

// A child exists before it can say so; the count of those keeps its parent
// from ending a listener meanwhile.
void before_fork(void)
{
	for (int n = 1; listeners && n <= MAX_LISTENERS; n++) {
		counted[n] = atomic_load(&mine[n]) > 0;
		if (counted[n])
			atomic_fetch_add(&listeners[n - 1].forking, 1);
	}
}

void after_fork(void)
{
	int self = (int)raw(SYS_getpid);
	atomic_store(&owner, self);
	for (int n = 1; listeners && n <= MAX_LISTENERS; n++) {
		if (atomic_load(&mine[n]) > 0)
			add_holder(&listeners[n - 1], self);
		if (counted[n])
			atomic_fetch_sub(&listeners[n - 1].forking, 1);
	}
}

// ---- descriptors

int fd_state(int fd)
{
	if (fd < 0 || fd >= MAX_FDS)
		return NOTHING;
	return atomic_load_explicit(&fds[fd], memory_order_relaxed);
}

struct listener *fd_listener(int fd)
{
	int state = fd_state(fd);
	return state == NOTHING || state >= SHOWN_AS_6 ? NULL : listener_by_number(state);
}

static void raise_highest(int fd)
{
	int h = atomic_load(&highest);
	while (h < fd && !atomic_compare_exchange_weak(&highest, &h, fd)) {
	}
}

void fd_become(int fd, int state)
{
	if (fd >= 0 && fd < MAX_FDS && state >= SHOWN_AS_6 && fd_state(fd) == NOTHING) {
		raise_highest(fd);
		atomic_store_explicit(&fds[fd], (uint16_t)state, memory_order_relaxed);
		return; // on accept, where no child of vfork is
	}
	if (fd < 0 || fd >= MAX_FDS || (state == NOTHING && fd_state(fd) == NOTHING) || !own_memory())
		return;
	fd_leave(fd); // only if it was closed in a way that can't be seen
	if (state == NOTHING)
		return;
	raise_highest(fd);
	atomic_store(&fds[fd], (uint16_t)state);
	struct listener *l = fd_listener(fd);
	if (!l)
		return;
	hold(l);
	if (l->base != l->number)
		hold(listener_base(l));
}

// is_receiving tells whether fd still is a receiving socket.
static bool is_receiving(int fd)
{
	int domain = 0;
	socklen_t len = sizeof domain;
	return raw(SYS_getsockopt, fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0 && domain == AF_UNIX;
}

// end closes the intake first: who sends from then on keeps what he has.
static void end(int fd, struct listener *l)
{
	trace("port %u: last copy closed", (unsigned)l->outside);
	unplace(l);
	if (is_receiving(fd)) {
		raw(SYS_shutdown, fd, SHUT_RD);
		end_queue(fd, l);
	}
	listener_free(l);
}

void fd_leave(int fd)
{
	if (fd_state(fd) == NOTHING || !own_memory())
		return;
	int state = atomic_exchange(&fds[fd], NOTHING);
	if (state == NOTHING || state >= SHOWN_AS_6)
		return;
	struct listener *l = listener_by_number(state), *base = listener_base(l);
	if (base != l && release(l))
		listener_free(l);
	if (release(base))
		end(fd, base);
}

int fd_next(unsigned from)
{
	int limit = atomic_load(&highest);
	for (unsigned fd = from; fd <= (unsigned)limit; fd++)
		if (fd_state((int)fd) != NOTHING)
			return (int)fd;
	return -1;
}

void each_listener_fd(void (*f)(int fd, struct listener *l))
{
	for (int fd = fd_next(0); fd >= 0; fd = fd_next((unsigned)fd + 1)) {
		struct listener *l = fd_listener(fd);
		if (l)
			f(fd, l);
	}
}

void table_sweep(void)
{
	int self = (int)raw(SYS_getpid);
	for (int n = 1; listeners && n <= MAX_LISTENERS; n++) {
		struct listener *l = listener_by_number(n);
		if (l->maker == self && (atomic_load(&l->state) == 0 || abandoned(l)))
			unplace(l);
	}
}

int fd_of_base(int base)
{
	for (int fd = 0, limit = atomic_load(&highest); fd <= limit; fd++) {
		struct listener *l = fd_listener(fd);
		if (l && l->base == base && is_receiving(fd))
			return fd;
	}
	return -1;
}
