// socketbox-preload answers a daemon's bind, listen and accept with
// connections that socketbox hands off (docs/preload.md, docs/protocol.md).
//
// The daemon's TCP socket is replaced, under its number, by a receiving
// socket: a Unix datagram socket bound in the socket directory. What the
// daemon bound is written into the name that the receiving socket is born
// with (name.c), so that the kernel keeps it for whoever gets a copy, by fork,
// exec or SCM_RIGHTS. Memory holds copies of that for speed, the options, and
// who holds which listener.
//
// Hooks may run in signal handlers, in children of vfork and under the
// daemon's own sandbox. So: no allocation, no stdio, no lock on accept, and
// errno changes only where the call that is answered fails.
#ifndef SOCKETBOX_PRELOAD_H
#define SOCKETBOX_PRELOAD_H

#include <netinet/in.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/types.h>

#if __SIZEOF_POINTER__ != 8
#error "socketbox-preload is made for 64-bit Linux"
#endif

#define EXPORT __attribute__((visibility("default")))

// ---- raw.c: system calls that neither touch errno nor reach our own hooks

// raw_call returns what the kernel returns: -errno on failure.
long raw_call(long number, long a, long b, long c, long d, long e, long f);
#define RAW(number, a, b, c, d, e, f, ...) \
	raw_call(number, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define raw(...) RAW(__VA_ARGS__, 0, 0, 0, 0, 0, 0, 0)

// fail sets errno from a negative result and returns -1; others pass.
long fail(long result);

// Not every libc has these; programs may call them all the same.
int close_range(unsigned first, unsigned last, int flags);
void closefrom(int first);
int fcntl64(int fd, int command, ...);

// ---- resolve.c: the functions that ours stand in front of

struct real {
	int (*bind)(int, const struct sockaddr *, socklen_t);
	int (*listen)(int, int);
	int (*accept4)(int, struct sockaddr *, socklen_t *, int);
	int (*connect)(int, const struct sockaddr *, socklen_t);
	int (*socket)(int, int, int);
	int (*getsockname)(int, struct sockaddr *, socklen_t *);
	int (*getpeername)(int, struct sockaddr *, socklen_t *);
	int (*getsockopt)(int, int, int, void *, socklen_t *);
	int (*setsockopt)(int, int, int, const void *, socklen_t);
	int (*shutdown)(int, int);
	ssize_t (*recvmsg)(int, struct msghdr *, int);
	ssize_t (*sendmsg)(int, const struct msghdr *, int);
	int (*close)(int);
	int (*dup)(int);
	int (*dup2)(int, int);
	int (*dup3)(int, int, int);
	int (*fcntl)(int, int, ...);
	long (*syscall)(long, ...);
	int (*execve)(const char *, char *const[], char *const[]);
	int (*execvpe)(const char *, char *const[], char *const[]);
	int (*fexecve)(int, char *const[], char *const[]);
	int (*posix_spawn)(pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *, char *const[], char *const[]);
	int (*posix_spawnp)(pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *, char *const[], char *const[]);
};
// real returns the table, complete: hooks may be called before constructors.
const struct real *real(void);

// ---- say.c: lines on stderr

// say formats %s, %d, %u and %x and writes one line in one write.
void say(const char *format, ...);
// trace is say under SOCKETBOX_DEBUG=1.
#define trace(...) ((void)(settings.debug && (say(__VA_ARGS__), 0)))
// text copies like say formats, cuts at size, and returns the length.
size_t text(char *out, size_t size, const char *format, ...);
const char *error_text(int error);

// ---- env.c: the variables

#define MAX_PORTS 64 // entries of SOCKETBOX_PORTS
#define MAX_BINDS 32 // entries of SOCKETBOX_BIND

struct settings {
	bool debug;
	bool reject6;    // SOCKETBOX_V6=reject
	enum { AUTO, HANDOFFS, LOANS } handoff; // SOCKETBOX_HANDOFF: auto, connection, listener
	long wait;       // SOCKETBOX_WAIT, milliseconds: how long a loan that may come is waited for
	long from;       // SOCKETBOX_FROM, -1: whoever may connect
	int keep;        // SOCKETBOX_KEEP, -1: nobody keeps receiving sockets
	char dir[1024];  // "" if there is none: an error where one is needed
	bool every_port;
	int ports;
	struct { uint16_t first, last, outside; } port[MAX_PORTS]; // outside 0: as it is
	int binds;
	struct { struct in6_addr address; int bits; } bind[MAX_BINDS]; // IPv4 as v4-mapped
};
extern struct settings settings;
void read_settings(void);
// outside_port returns the port in the receiving socket's name, 0 if binds to
// port are none of ours.
uint16_t outside_port(uint16_t port);
bool binds_here(const struct in6_addr *address);

// ---- table.c: which descriptor is what; who holds which listener

#define MAX_FDS (1 << 20)
#define MAX_LISTENERS 256
#define MAX_HOLDERS 1024
#define MAX_OPTIONS 40
#define OPTION_SIZE 16

// What the daemon believes about a descriptor, where the kernel says otherwise.
enum {
	NOTHING = 0,        // ask the kernel
	                    // 1..MAX_LISTENERS: a listener, by number
	SHOWN_AS_6 = 0x8000, // an accepted IPv4 connection of an AF_INET6 listener
	SHOWN_AS_4,         // an accepted AF_INET6 connection of an AF_INET listener
};

enum kind { BOTH, ONLY4, ONLY6 };

enum { // flags of a listener
	LISTENING = 1, // the daemon has called listen
	DOWN = 2,      // it has called shutdown
	SHARED = 4,    // copies may be where they can't be counted
};

struct option {
	_Atomic uint64_t key; // level << 32 | name; 0: free
	_Atomic bool carry;   // accepted sockets get it
	unsigned char len, gotlen;
	unsigned char value[OPTION_SIZE], got[OPTION_SIZE];
};

union address {
	struct sockaddr sa;
	struct sockaddr_in in;
	struct sockaddr_in6 in6;
	struct sockaddr_storage storage;
};

// What a daemon bound.
struct bound {
	uint64_t id; // of the receiving socket
	int family;  // of the daemon's socket
	bool v6only;
	bool reuseport;
	union address address;
};

// A listener lives in memory that all processes of one tree share.
struct listener {
	_Atomic int state;      // 0 free, 1 being made, 2 in use
	_Atomic unsigned flags; // LISTENING …
	int number;             // 1..MAX_LISTENERS
	int base;               // number of the listener whose receiving socket this is
	struct bound bound;
	uint16_t outside;       // port in the receiving socket's name
	int maker;              // the process that made the file
	_Atomic uint64_t device, inode; // of the file in the socket directory
	_Atomic int forking;            // children that have not said who they are
	_Atomic int holders[MAX_HOLDERS];
	struct option options[MAX_OPTIONS];
	_Atomic unsigned bad, rejected, lost;
};

void table_open(void);
int fd_state(int fd);
struct listener *listener_by_number(int number);
// fd_listener returns the listener that fd is known to be, or NULL.
struct listener *fd_listener(int fd);
// fd_become changes what fd is; the number was not in use before, or is being
// replaced and has been left.
void fd_become(int fd, int state);
// fd_leave forgets fd, which is about to be closed. It ends a listener whose
// last copy this was.
void fd_leave(int fd);
// fd_next returns the first descriptor from that on that is something, or -1.
int fd_next(unsigned from);
// each_listener_fd calls f for every known copy that this process has.
void each_listener_fd(void (*f)(int fd, struct listener *l));
int fd_of_base(int base);
// table_sweep removes paths that this process made and whose last holder, of
// another user perhaps, was not allowed to remove.
void table_sweep(void);
// Memory may be that of a parent that waits in vfork: then nothing is changed.
bool own_memory(void);
struct listener *listener_new(void);
void listener_free(struct listener *l);
struct listener *listener_by_id(uint64_t id);
struct listener *listener_base(struct listener *l);
bool held_here(const struct listener *l);
// holder_alive returns the id of another process that holds l, or 0.
int holder_alive(struct listener *l);
void before_fork(void);
void after_fork(void);

// ---- name.c: what the receiving socket is called at birth

#define NAME_SIZE 96
void name_write(char name[NAME_SIZE], const struct bound *b);
// name_read reads such a name from a Unix address.
bool name_read(const void *sun, socklen_t len, struct bound *b);
enum kind kind_of(const struct bound *b);
// as_ipv6 returns the address that b is bound to, IPv4 as v4-mapped.
struct in6_addr as_ipv6(const struct bound *b);
uint16_t port_of(const struct bound *b);
// recover asks the kernel whether fd is a receiving socket of this library
// that came here by exec or SCM_RIGHTS.
struct listener *recover(int fd);

// ---- directory.c: the socket directory

struct stat;
struct sockaddr_un;
// open_directory returns the directory, which stays open, or -errno.
int open_directory(void);
int lock_directory(int dir);
void unlock_directory(int locked);
long look(int dir, const char *path, struct stat *st, int flags);
int address_in(int dir, const char *name, struct sockaddr_un *sun);
int datagram_socket(void);
// connect_to returns a socket connected to the receiver at name, or -errno.
int connect_to(int dir, const char *name);

// ---- share.c: who else has the port

// share_here looks for a receiving socket of the same path in this process.
// 0: none; 1: *share is a copy; or -errno.
int share_here(struct listener *l, int *share);
// probe looks who is at the path. 0: nobody alive, or one that may be
// replaced; 1: *share is a copy of his socket; or -errno.
int probe(struct listener *l, int dir, const char *name, int *share);

// ---- place.c: a listener's path

// place takes the path of l for a new receiving socket and returns that, or
// -errno. *share is set to a copy of a socket that is to be shared instead.
int place(struct listener *l, int *share);
// unplace removes the path if it still is that of l.
void unplace(struct listener *l);
// successor returns a socket connected to whoever has taken the path, or -1.
int successor(const struct listener *l);

// ---- keep.c: receiving sockets that outlive the daemon

// keep gives a copy of a receiving socket to the supervisor, by its file's name.
void keep(const char *name, int fd);
// kept returns the one that the supervisor has under that name, or -1.
int kept(const char *name);

// ---- borrow.c: the listening socket itself, by the loan wire

#define TAKE_CONNECTIONS (-4096) // no error of the kernel's

// borrow asks the binder for the socket that the daemon's own one, which shows
// its form, would be on that port. It returns that socket, TAKE_CONNECTIONS if
// nobody lends it, or -errno, which has been said why.
int borrow(int own, uint16_t port);

// ---- replace.c

// replace puts a socket (which it owns) in the place of fd and of all its
// copies in this process, and replays epoll registrations. They become copies
// of l, or, if that is NULL, plain sockets.
int replace(int fd, int receiving, struct listener *l);

// ---- options.c

void options_copy(struct listener *l, int fd);
void options_carry(struct listener *l, int fd, int domain);
// options_lend sets on a borrowed socket what the daemon has set on its own.
void options_lend(int own, int lent);

// ---- address.c

// give copies an address as the kernel does: cut at *len, which becomes the
// full size.
void give(struct sockaddr *to, socklen_t *len, const union address *a, socklen_t size);
socklen_t address_size(const union address *a);
// show_as changes an address to what the daemon expects to see.
void show_as(int state, union address *a);
bool is_mapped(const union address *a);

// ---- room.c

// number_seen notes a new descriptor, for how near the limit is.
void number_seen(int fd);
// room tells whether there is a number for one more descriptor.
bool room(int fd);

// ---- receive.c

enum { BAD = -2, ENDED = -3 };
// receive takes one datagram and returns the descriptor that came with it, -1
// with errno set, BAD for what is no hand-off and has been disposed of, or
// ENDED after shutdown.
int receive(int fd, struct listener *l, int flags);
// check lets nothing through but what a TCP listener's accept returns, a
// connected TCP socket: 0 and its peer, or BAD, and fd is closed.
int check(struct listener *l, int fd, union address *peer);

// ---- ending.c

// end_queue takes what is queued on a receiving socket that nobody accepts on
// any more: to whoever has taken its path, else it is reset.
void end_queue(int fd, struct listener *l);
// reset_connection closes a connection so that its client sees a reset.
void reset_connection(int fd);

#endif
