// Command web answers each request with the client's address, on the addresses
// that it is given; on one that begins with udp: each datagram. Without cgo it is
// a program that no library can be loaded into.
package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
)

func main() {
	failed := make(chan error)
	for _, address := range os.Args[1:] {
		if address, ok := strings.CutPrefix(address, "udp:"); ok {
			go func() { failed <- echo(address) }()
			continue
		}
		l, err := net.Listen("tcp", address)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("ready", l.Addr())
		go func() {
			failed <- http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, r.RemoteAddr) }))
		}()
	}
	fmt.Println(<-failed)
	os.Exit(1)
}

// echo answers each datagram with its sender's address.
func echo(address string) error {
	c, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	fmt.Println("ready", c.LocalAddr())
	datagram := make([]byte, 100)
	for {
		_, from, err := c.ReadFrom(datagram)
		if err == nil {
			_, err = fmt.Fprint(onto{c, from}, from)
		}
		if err != nil {
			return err
		}
	}
}

// onto writes datagrams to one peer.
type onto struct {
	net.PacketConn
	peer net.Addr
}

func (o onto) Write(b []byte) (int, error) { return o.WriteTo(b, o.peer) }
