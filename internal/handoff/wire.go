package handoff

// The wire, version 1 (docs/protocol.md):
//
//	offset  size  field
//	0       4     magic "sbox"
//	4       1     version, 1
//	5       1     flags
//	6       1     n, the length of the listener's name, 0..64
//	7       n     the listener's name
//	7+n     ..    reserved, ignored
//
// A reader accepts any payload of 1..MaxPayload bytes; one that doesn't begin
// like this is the plain form, which says nothing about the connection.
const (
	magic      = "sbox"
	version    = 1
	headerSize = len(magic) + 3

	// MaxPayload bounds a datagram: longer ones are refused as damaged.
	MaxPayload = 128
	// MaxName bounds a listener's name, so that the header and what later
	// versions may append fit into MaxPayload.
	MaxName = 64
)

// Flags say what the sender knows of the connection.
type Flags byte

// FlagMapped marks an IPv4 connection that still is an AF_INET6 socket with
// v4-mapped addresses, because the kernel would not convert it any more.
const FlagMapped Flags = 1 << 0

// Header is what a datagram says about the connection that it carries. It is
// a hint for logs and environments; receivers take addresses and types from
// the kernel alone.
type Header struct {
	Listener string
	Flags    Flags
}

// Append appends the header's wire form to b. A name longer than MaxName is
// cut, which configuration checks prevent.
func (h Header) Append(b []byte) []byte {
	name := h.Listener[:min(len(h.Listener), MaxName)]
	b = append(b, magic...)
	b = append(b, version, byte(h.Flags), byte(len(name)))
	return append(b, name...)
}

// ParseHeader reads a datagram's payload. ok is false for the plain form and
// for anything else that is no header of a known version; that is no error.
func ParseHeader(payload []byte) (h Header, ok bool) {
	if len(payload) < headerSize || string(payload[:len(magic)]) != magic || payload[4] != version {
		return Header{}, false
	}
	n := int(payload[6])
	if n > MaxName || len(payload) < headerSize+n {
		return Header{}, false
	}
	return Header{Listener: string(payload[headerSize : headerSize+n]), Flags: Flags(payload[5])}, true
}
