// Package metrics turns an instance's status into Prometheus metrics, in a
// process of its own: neither binder nor dispatcher know HTTP.
//
// It runs with no privilege at all: as any user who may ask for the status.
// Names follow https://prometheus.io/docs/practices/naming/; labels are those
// of the configuration (listener, rule, target), never of clients.
package metrics
