//go:build compat

package compat

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// interpreters are HTTP servers of languages. Their programs print where they
// listen, as getsockname tells them.
var interpreters = []*daemon{
	{
		name: "Python http.server, `0.0.0.0`", packages: "python3-minimal", listens: "4",
		remark: "`ThreadingHTTPServer`, backlog 128",
		ask:    askHTTP, report: reportHTTP, special: listens("0.0.0.0"),
		prepare: program("python3", "serve.py", "0.0.0.0"),
	}, {
		name: "Python http.server, `[::]`", packages: "python3-minimal", listens: "46",
		remark: "`ThreadingHTTPServer`, backlog 128",
		ask:    askHTTP, report: reportHTTP, special: listens("::"),
		prepare: program("python3", "serve.py", "::"),
	}, {
		name: "Node http", packages: "nodejs", listens: "46",
		ask: askHTTP, report: reportHTTP, special: listens("::"),
		prepare: program("node", "serve.js"),
	}, {
		name: "Java com.sun.net.httpserver", packages: "openjdk-17-jre-headless", listens: "46",
		ask: askHTTP, report: reportHTTP, special: listens("0:0:0:0:0:0:0:0"),
		prepare: program("java", "Serve.java"),
	},
}

// program runs a file of testdata with the port and more arguments.
func program(interpreter, file string, args ...string) func(*instance) ([]string, error) {
	return func(i *instance) ([]string, error) {
		path, err := filepath.Abs(filepath.Join("testdata", file))
		if err != nil {
			return nil, err
		}
		return append([]string{interpreter, path, strconv.Itoa(i.port)}, args...), nil
	}
}

// listens checks what the daemon was told of its listener.
func listens(address string) func(*instance) error {
	return func(i *instance) error {
		want := fmt.Sprintf("listening %s %d", address, i.port)
		if err := i.says("listening", 5*time.Second); err != nil {
			return err
		}
		if !strings.Contains(i.log.String(), want) {
			return fmt.Errorf("it prints %q, not %q", i.log.tail(1), want)
		}
		return nil
	}
}
