// Package docker runs the examples of docs/examples: nginx in a Docker
// container without any network, as compose.yaml says, and a daemon in an
// ordinary user's bubblewrap sandbox, both behind `socketbox bind`.
//
// The tests have the build tag docker and need root: `make docker`. They start
// a Docker daemon of their own, in network, mount and pid namespaces that end
// with them, and make the image from the machine's own nginx: no registry is
// asked.
package docker
