#include "textflag.h"

// func clone(trap, a1, a2, a3, a4, a5 uintptr, steps *step) uintptr
//
// The parent gets what the system call returns. The child never returns: it
// walks the steps with nothing but registers, since stack and heap are the
// parent's, and ends if one fails.
TEXT ·clone(SB), NOSPLIT|NOFRAME, $0-64
	MOVQ	a1+8(FP), DI
	MOVQ	a2+16(FP), SI
	MOVQ	a3+24(FP), DX
	MOVQ	a4+32(FP), R10
	MOVQ	a5+40(FP), R8
	MOVQ	$0, R9
	MOVQ	steps+48(FP), R12
	MOVQ	trap+0(FP), AX
	SYSCALL
	TESTQ	AX, AX
	JEQ	child
	MOVQ	AX, ret+56(FP)
	RET

child:
	MOVQ	8(R12), DI
	MOVQ	16(R12), SI
	MOVQ	24(R12), DX
	MOVQ	32(R12), R10
	MOVQ	0(R12), AX
	SYSCALL
	CMPQ	AX, $0xfffffffffffff001
	JCC	failed
	ADDQ	$48, R12
	JMP	child

failed:
	MOVQ	AX, 40(R12)
	MOVQ	$127, DI
	MOVQ	$231, AX // exit_group
	SYSCALL
	INT	$3
