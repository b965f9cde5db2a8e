package fdpass

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// files returns n files with something to tell them apart by.
func files(t *testing.T, n int) []int32 {
	t.Helper()
	var fds []int32
	for i := range n {
		fd, err := unix.MemfdCreate("packet", unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		if err := unix.Ftruncate(fd, int64(i)); err != nil {
			t.Fatal(err)
		}
		fds = append(fds, int32(fd))
	}
	return fds
}

// taken receives until nothing is left, and returns how many came; each must
// be the file of its place.
func taken(t *testing.T, sock int, payload string) int {
	t.Helper()
	for n := 0; ; n++ {
		buf := make([]byte, 64)
		m, err := Recv(sock, buf, 1, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) {
			return n
		}
		if err != nil || string(buf[:m.N]) != payload || len(m.FDs) != 1 {
			t.Fatalf("message %d: %+v, %v", n, m, err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(m.FDs[0], &st); err != nil || st.Size != int64(n) {
			t.Errorf("message %d carries file %d (%v)", n, st.Size, err)
		}
		unix.Close(m.FDs[0])
	}
}

func TestBurst(t *testing.T) {
	a, b := pair(t, unix.SOCK_DGRAM)
	packet, burst := NewPacket([]byte("payload")), &Burst{}
	before := descriptors(t)
	for _, n := range []int{1, 2, BurstMax} {
		if sent := burst.Send(packet, a, files(t, n)); sent != n {
			t.Fatalf("%d of %d were sent", sent, n)
		}
		if got := taken(t, b, "payload"); got != n {
			t.Errorf("%d of %d came", got, n)
		}
		before += n // closed with the test
	}
	if n := descriptors(t); n != before {
		t.Errorf("%d descriptors, not %d", n, before)
	}
	fds := files(t, 3)
	if n := testing.AllocsPerRun(3, func() { burst.Send(packet, a, fds[:1]) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// A queue that fills up takes the first ones; alone, the next one tells why.
func TestBurstFillsQueue(t *testing.T) {
	a, b := pair(t, unix.SOCK_DGRAM)
	packet, burst := NewPacket([]byte("payload")), &Burst{}
	fds := files(t, BurstMax)
	room := 0
	for {
		sent := burst.Send(packet, a, fds)
		room += sent
		if sent < len(fds) {
			fds = fds[sent:]
			break
		}
	}
	t.Logf("%d were sent", room)
	if errno := packet.Send(a, int(fds[0])); errno != unix.EAGAIN {
		t.Errorf("one more: %v", errno)
	}
	if sent := burst.Send(packet, a, fds); sent != 0 {
		t.Errorf("%d went into a full queue", sent)
	}
	unix.Close(b)
	if sent := burst.Send(packet, a, fds); sent != 0 {
		t.Errorf("%d went to nobody", sent)
	}
	if errno := packet.Send(a, int(fds[0])); errno == 0 || errno == unix.EAGAIN {
		t.Errorf("one more to nobody: %v", errno)
	}
}
