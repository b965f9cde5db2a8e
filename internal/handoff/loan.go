package handoff

import (
	"encoding/binary"
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The loan wire, version 1 (docs/protocol.md): one SOCK_SEQPACKET
// conversation is one request packet, one answer packet.
//
//	request                                 answer
//	0  4  magic "SBXL"                      0  4  magic "SBXL"
//	4  1  version, 1                        4  1  version, 1
//	5  1  flags, 0                          5  1  verdict
//	6  2  zero                              6  2  zero
//	8  4  backlog, little endian            8  …  reason, UTF-8, at most 240 bytes
//	12 …  reserved, at most 116 bytes
const (
	loanMagic       = "SBXL"
	loanVersion     = 1
	loanHeaderSize  = 8
	loanRequestSize = loanHeaderSize + 4

	// MaxLoanRequest bounds a request, with what later versions may append.
	MaxLoanRequest = 128
	// MaxLoanReason bounds the words in an answer.
	MaxLoanReason = 240
	maxLoanAnswer = loanHeaderSize + MaxLoanReason
)

// Verdict is what a lender answers.
type Verdict byte

// The verdicts of version 1.
const (
	Lent            Verdict = iota // the socket comes along
	TakeConnections                // this listener's connections are handed off one by one
	Denied                         // this borrower may not
	Failed                         // it should have worked and has not
)

// LoanRequest is what a borrower asks for, beside the socket that it shows.
type LoanRequest struct {
	Backlog uint32 // 0: as the lender has it configured
}

// LoanAnswer is what a lender answers.
type LoanAnswer struct {
	Verdict Verdict
	Reason  string // for people; cut at MaxLoanReason bytes
}

var errNoLoan = errors.New("not a message of the loan wire, version 1")

func appendLoanHeader(b []byte, what byte) []byte {
	b = append(b, loanMagic...)
	return append(b, loanVersion, what, 0, 0)
}

func hasLoanHeader(packet []byte) bool {
	return len(packet) >= loanHeaderSize && string(packet[:len(loanMagic)]) == loanMagic &&
		packet[4] == loanVersion && packet[6] == 0 && packet[7] == 0
}

// Append appends the request's wire form to b.
func (r LoanRequest) Append(b []byte) []byte {
	return binary.LittleEndian.AppendUint32(appendLoanHeader(b, 0), r.Backlog)
}

// ParseLoanRequest reads a request. Flags that this version doesn't know and
// bytes behind the backlog are ignored.
func ParseLoanRequest(packet []byte) (LoanRequest, error) {
	if len(packet) < loanRequestSize || len(packet) > MaxLoanRequest || !hasLoanHeader(packet) {
		return LoanRequest{}, errNoLoan
	}
	return LoanRequest{Backlog: binary.LittleEndian.Uint32(packet[loanHeaderSize:])}, nil
}

// Append appends the answer's wire form to b.
func (a LoanAnswer) Append(b []byte) []byte {
	reason := a.Reason
	if len(reason) > MaxLoanReason {
		reason = reason[:MaxLoanReason]
		for !utf8.ValidString(reason) && len(reason) > MaxLoanReason-utf8.UTFMax {
			reason = reason[:len(reason)-1]
		}
	}
	return append(appendLoanHeader(b, byte(a.Verdict)), reason...)
}

// ParseLoanAnswer reads an answer. A verdict that this version doesn't know is
// Failed. The reason is made fit for a terminal: it came from another process.
func ParseLoanAnswer(packet []byte) (LoanAnswer, error) {
	if len(packet) > maxLoanAnswer || !hasLoanHeader(packet) {
		return LoanAnswer{}, errNoLoan
	}
	a := LoanAnswer{Verdict: min(Verdict(packet[5]), Failed)}
	a.Reason = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(string(packet[loanHeaderSize:]), "?"))
	return a, nil
}
