// Command web answers each request with the client's address. Without cgo it
// is a program that no library can be loaded into.
package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
)

func main() {
	failed := make(chan error)
	for _, address := range os.Args[1:] {
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
