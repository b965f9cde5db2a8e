package config

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"socketbox/internal/rule"
)

func TestFromFlags(t *testing.T) {
	c, err := FromFlags([]string{":80", "tcp:127.0.0.1:81", "unix:/run/x.sock"}, "/run/{port}/", defaults)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range c.Listeners {
		names = append(names, l.Name+" "+l.Handoff)
	}
	if want := []string{":80 auto", "tcp:127.0.0.1:81 auto", "unix:run-x.sock auto"}; !reflect.DeepEqual(names, want) {
		t.Errorf("listeners %q, want %q", names, want)
	}
	if want := []rule.Rule{{Target: 1}}; !reflect.DeepEqual(c.Rules, want) {
		t.Errorf("rules %+v, want %+v", c.Rules, want)
	}
	if len(c.Targets) != 2 || c.Targets[1].Name != "/run/{port}/" || c.Targets[1].Hold != defaultHold {
		t.Errorf("targets %+v", c.Targets)
	}
	if c.Dir != defaults.Dir || c.User != defaults.User || c.Guard != GuardAuto {
		t.Errorf("%+v", c)
	}
}

func TestFromFlagsPlain(t *testing.T) {
	c, err := FromFlags([]string{":80"}, "", defaults)
	if err != nil || len(c.Rules) != 0 || len(c.Targets) != 1 {
		t.Errorf("%+v, %v", c, err)
	}
	c, err = FromFlags([]string{":80"}, "reject", defaults)
	if err != nil || len(c.Rules) != 1 || !c.Rules[0].Reject {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestFromFlagsRefused(t *testing.T) {
	c, err := FromFlags([]string{"x:80", ":81", "0.0.0.0:81", "[fe80::1]:80"}, "run/x", defaults)
	want := []string{
		"--listen: address \"x:80\": expected an IP address and a port such as \":80\", \"192.0.2.1:80\" or \"[2001:db8::1]:80\"",
		"--listen: address \"0.0.0.0:81\": 0.0.0.0:81 is taken by listener \":81\"",
		"--listen: address \"[fe80::1]:80\": [fe80::1]:80 is link-local: expected its interface, as in [fe80::1%eth0]:80",
		"--target: path \"run/x\" is not absolute: it must begin with \"/\"",
	}
	if got := fmt.Sprint(err); got != strings.Join(want, "\n") || c != nil {
		t.Errorf("got\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

func TestOverride(t *testing.T) {
	c := &Config{Dir: "/a", User: "b"}
	if err := c.Override("", "", ""); err != nil || c.Dir != "/a" || c.User != "b" {
		t.Errorf("%+v, %v", c, err)
	}
	if err := c.Override("/x/", "y", GuardRequired); err != nil || c.Dir != "/x" || c.User != "y" || c.Guard != GuardRequired {
		t.Errorf("%+v, %v", c, err)
	}
	err := c.Override("x", "a:b", "on")
	want := "--dir: path \"x\" is not absolute: it must begin with \"/\"\n--user: \"a:b\": expected a user's name or number\n--guard: \"on\": expected \"auto\", \"required\" or \"off\""
	if fmt.Sprint(err) != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
}

func TestDefaultsFor(t *testing.T) {
	for _, tc := range []struct {
		uid  int
		run  string
		want string
	}{
		{0, "/run/user/0", "/run/socketbox"},
		{1000, "/run/user/1000", "/run/user/1000/socketbox"},
		{1000, "/run/user/1000/", "/run/user/1000/socketbox"},
		{1000, "", ""},
		{1000, "relative", ""},
	} {
		got := DefaultsFor(tc.uid, func(key string) string {
			if key != "XDG_RUNTIME_DIR" {
				t.Errorf("asked for %s", key)
			}
			return tc.run
		})
		if got != (Defaults{Dir: tc.want}) {
			t.Errorf("uid %d, %q: %+v, want %q", tc.uid, tc.run, got, tc.want)
		}
	}
}

func TestTable(t *testing.T) {
	c, err := FromFlags([]string{":80"}, "/run/{remote}.sock", defaults)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Override("/srv/box", "", ""); err != nil {
		t.Fatal(err)
	}
	table, destinations, err := c.Table()
	if err != nil {
		t.Fatal(err)
	}
	wantTargets := []rule.Target{
		{Name: "main", Keys: rule.KeyPort | rule.KeyFamily, Hold: defaultHold, Places: 1},
		{Name: "/run/{remote}.sock", Keys: rule.KeyRemote, Hold: defaultHold, Places: 1},
	}
	if !reflect.DeepEqual(table.Targets, wantTargets) {
		t.Errorf("targets %+v, want %+v", table.Targets, wantTargets)
	}
	wantDestinations := []Destination{
		{Name: "main", Sockets: template(t, "/srv/box/")},
		{Name: "/run/{remote}.sock", Sockets: template(t, "/run/{remote}.sock")},
	}
	if !reflect.DeepEqual(destinations, wantDestinations) {
		t.Errorf("destinations %+v, want %+v", destinations, wantDestinations)
	}
}

func TestTableWithoutDir(t *testing.T) {
	c, err := FromFlags([]string{":80"}, "", Defaults{})
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = c.Table()
	hint, ok := err.(interface{ Hint() string })
	if !ok || hint.Hint() == "" || !strings.Contains(err.Error(), "XDG_RUNTIME_DIR") {
		t.Errorf("%v", err)
	}
}
