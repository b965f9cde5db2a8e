package listen

import "golang.org/x/sys/unix"

// Queue returns how many connections wait in the backlog of a TCP listener, and
// how many fit: the kernel shows them as two fields of tcp_info that a listener
// has no other use for. 0, 0 for other sockets.
func Queue(fd int) (waiting, limit int) {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	const stateListen = 10 // TCP_LISTEN
	if err != nil || info.State != stateListen {
		return 0, 0
	}
	return int(info.Unacked), int(info.Sacked)
}
