// Package rule decides where a connection goes: rules, in file order, name a
// target; a path template turns a connection's facts into the target's path.
// It is compiled once per table and then only read.
//
// The package makes no system call and opens nothing. It runs with whatever
// its caller has: the binder compiles nothing here and only encodes; the
// dispatcher decodes a table that came over a socket, hence the bounds, and
// looks up every connection, hence no allocation in Lookup.
package rule
