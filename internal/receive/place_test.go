package receive

import (
	"errors"
	"os"
	"strings"
	"testing"
)

func TestPlaceFor(t *testing.T) {
	getenv := func(vars ...string) func(string) string {
		return func(name string) string {
			for _, v := range vars {
				if value, ok := strings.CutPrefix(v, name+"="); ok {
					return value
				}
			}
			return ""
		}
	}
	tests := []struct {
		socket string
		port   uint16
		dir    string
		env    []string
		want   Place
	}{
		{"/x/y.sock", 0, "", nil, Place{Path: "/x/y.sock"}},
		{"", 0, "/d", nil, Place{Path: "/d/default.sock"}},
		{"", 80, "/d/", nil, Place{Path: "/d/80.sock"}},
		{"", 80, "", []string{"SOCKETBOX_DIR=/e", "XDG_RUNTIME_DIR=/run/user/1"}, Place{Path: "/e/80.sock"}},
		{"", 65535, "/d", []string{"SOCKETBOX_DIR=/e"}, Place{Path: "/d/65535.sock"}},
	}
	own := Place{Path: "/run/socketbox/80.sock"}
	if os.Geteuid() != 0 {
		own = Place{Path: "/run/user/1/socketbox/80.sock", Make: true}
	}
	tests = append(tests, struct {
		socket string
		port   uint16
		dir    string
		env    []string
		want   Place
	}{"", 80, "", []string{"XDG_RUNTIME_DIR=/run/user/1"}, own})
	for _, tt := range tests {
		got, err := PlaceFor(tt.socket, tt.port, tt.dir, getenv(tt.env...))
		if err != nil || got != tt.want {
			t.Errorf("%+v: got %+v, %v", tt, got, err)
		}
	}
	if os.Geteuid() != 0 {
		_, err := PlaceFor("", 80, "", getenv())
		var hint interface{ Hint() string }
		if !errors.As(err, &hint) {
			t.Errorf("without XDG_RUNTIME_DIR: %v", err)
		}
	}
}
