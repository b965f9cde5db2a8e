// Package relay is what socketbox-relay does: it receives connections, opens
// one to where they are meant to go, and copies bytes both ways.
//
// It runs with the privilege of whoever started it, and gives up at start what
// its options don't need (confine.go). What arrives on its receiving sockets,
// and every byte of a connection, is taken to be hostile.
//
// The work is done by a few workers, one thread each, that share nothing but
// the limits: each has an epoll set of its own with the receiving sockets and
// the connections that it took. A connection is two descriptors and one
// structure; a pipe for splice(2) it holds only while bytes are in it. Nothing
// here waits anywhere but in epoll_wait, names apart, which are looked up by
// goroutines beside.
//
//	options.go      what can be asked for
//	destination.go  --to and its words
//	nat64.go        destinations in the address that was dialled
//	relay.go        Run: from options to workers, signals, the end
//	worker.go       a worker's loop
//	confine.go      what is given up before the first connection
//	intake.go       receiving and accepting
//	limits.go       --max, --max-per-source
//	connection.go   a connection's life
//	dial.go         which address, which attempt: failover, both families raced
//	attempt.go      one socket on its way to the destination
//	names.go        names to addresses
//	netns.go        the network namespace that sockets are made in
//	flow.go         one direction's bytes
//	pipes.go        pipes that are free
//	rate.go         --rate, --rate-all
//	timers.go       what happens if nothing happens
//	proxyheader.go  the PROXY protocol, written and read
//	calls.go        system calls that never wait
//	log.go          counters, the line of a connection, the dump
package relay
