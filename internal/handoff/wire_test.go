package handoff

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

// The golden file is the wire: a change of it is a new version. The C tests
// of the preload library read the same file.
const golden = "testdata/header.v1"

var goldenHeader = Header{Listener: "web", Flags: FlagMapped}

func TestGoldenHeader(t *testing.T) {
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got := goldenHeader.Append(nil); !bytes.Equal(got, want) {
		t.Errorf("written: %q, want %q", got, want)
	}
	if got, ok := ParseHeader(want); !ok || got != goldenHeader {
		t.Errorf("read: %+v, %v", got, ok)
	}
}

func TestHeaderThereAndBack(t *testing.T) {
	for _, h := range []Header{
		{}, {Listener: "a"}, {Listener: strings.Repeat("n", MaxName)}, {Listener: "\x00\xff", Flags: 0xff},
	} {
		b := h.Append([]byte("before"))
		b = append(b, "reserved for later versions"...)
		if got, ok := ParseHeader(b[len("before"):]); !ok || got != h {
			t.Errorf("%+v: got %+v, %v", h, got, ok)
		}
	}
	long := Header{Listener: strings.Repeat("n", MaxName+1)}
	if b := long.Append(nil); len(b) > MaxPayload {
		t.Errorf("a long name makes %d bytes", len(b))
	} else if got, ok := ParseHeader(b); !ok || got.Listener != long.Listener[:MaxName] {
		t.Errorf("a long name: got %+v, %v", got, ok)
	}
}

// TestPlainForms: these say nothing about the connection, and are no error.
func TestPlainForms(t *testing.T) {
	for _, payload := range []string{
		"", "\x00", "s", "sbox", "sbox\x01", "sbox\x01\x00", "sbox\x01\x00\x01", "sbox\x01\x00\x04web",
		"sbox\x00\x00\x03web", "sbox\x02\x00\x03web", "SBOX\x01\x00\x03web",
		"sbox\x01\x00\x41" + strings.Repeat("n", 65), "sbox\x01\x00\xff" + strings.Repeat("n", 255),
	} {
		if got, ok := ParseHeader([]byte(payload)); ok || got != (Header{}) {
			t.Errorf("%q: got %+v, %v", payload, got, ok)
		}
	}
}

// FuzzParseHeader: what parses is written again as the same bytes, but for
// what is reserved at its end.
func FuzzParseHeader(f *testing.F) {
	f.Add([]byte{0})
	f.Add(goldenHeader.Append(nil))
	f.Add(append(goldenHeader.Append(nil), 1, 2, 3))
	f.Add([]byte("sbox\x01\x00\x41" + strings.Repeat("n", 65)))
	f.Fuzz(func(t *testing.T, payload []byte) {
		h, ok := ParseHeader(payload)
		if !ok {
			if h != (Header{}) {
				t.Errorf("no header, but %+v", h)
			}
			return
		}
		if again := h.Append(nil); !bytes.HasPrefix(payload, again) {
			t.Errorf("%q is written as %q", payload, again)
		}
	})
}
