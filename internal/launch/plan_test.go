package launch

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func write(t *testing.T, name string, mode os.FileMode, text []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, text, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask
		t.Fatal(err)
	}
	return path
}

// TestInspect: which programs can load a library, through scripts.
func TestInspect(t *testing.T) {
	static := filepath.Join(t.TempDir(), "static")
	build := exec.Command("go", "build", "-o", static, "../../tests/netns/testdata/web")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	dynamic, err := exec.LookPath("true")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(dynamic)
	if err != nil {
		t.Fatal(err)
	}
	foreign := append([]byte(nil), text...)
	foreign[18], foreign[19] = 8, 0 // e_machine: EM_MIPS
	for _, c := range []struct{ name, path, why string }{
		{"dynamic", dynamic, ""},
		{"static", static, "statically linked"},
		{"setuid", write(t, "setuid", 0o755|os.ModeSetuid, text), "setuid"},
		{"foreign", write(t, "foreign", 0o755, foreign), "MIPS"},
		{"script", write(t, "script", 0o755, []byte("#!"+dynamic+" -x\n")), ""},
		{"script of a static one", write(t, "script", 0o755, []byte("#! "+static+"\n")), "statically linked"},
		{"env", write(t, "script", 0o755, []byte("#!/usr/bin/env -S true\n")), ""},
		{"env of a static one", write(t, "script", 0o755, []byte("#!/usr/bin/env static\n")), "statically linked"},
		{"text", write(t, "text", 0o755, []byte("echo\n")), "neither ELF nor a script"},
		{"empty", write(t, "empty", 0o755, nil), "neither ELF nor a script"},
	} {
		t.Setenv("PATH", filepath.Dir(static)+":"+filepath.Dir(dynamic))
		got, err := inspect(c.path)
		if err != nil || !strings.Contains(got.why, c.why) || (c.why == "") != (got.why == "") || got.foreign != (c.name == "foreign") {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
	loop := filepath.Join(t.TempDir(), "loop")
	os.WriteFile(loop, []byte("#!"+loop+"\n"), 0o755)
	if got, err := inspect(loop); err == nil {
		t.Errorf("a script of itself: %+v", got)
	}
	if _, err := inspect("/nonexistent"); err == nil {
		t.Error("a program that is not there can be looked at")
	}
}
