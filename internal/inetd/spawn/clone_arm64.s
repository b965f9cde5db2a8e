#include "textflag.h"

// func clone(trap, a1, a2, a3, a4, a5 uintptr, steps *step) uintptr
//
// The parent gets what the system call returns. The child never returns: it
// walks the steps with nothing but registers, since stack and heap are the
// parent's, and ends if one fails.
TEXT ·clone(SB), NOSPLIT|NOFRAME, $0-64
	MOVD	a1+8(FP), R0
	MOVD	a2+16(FP), R1
	MOVD	a3+24(FP), R2
	MOVD	a4+32(FP), R3
	MOVD	a5+40(FP), R4
	MOVD	steps+48(FP), R19
	MOVD	trap+0(FP), R8
	SVC
	CBZ	R0, child
	MOVD	R0, ret+56(FP)
	RET

child:
	MOVD	8(R19), R0
	MOVD	16(R19), R1
	MOVD	24(R19), R2
	MOVD	32(R19), R3
	MOVD	0(R19), R8
	SVC
	CMN	$4095, R0
	BCS	failed
	ADD	$48, R19
	B	child

failed:
	MOVD	R0, 40(R19)
	MOVD	$127, R0
	MOVD	$94, R8 // exit_group
	SVC
	BRK
