//go:build ignore

/*
 * tiny: the program that the inetd table spawns for each connection. Linked
 * statically, it costs as little as a program can, so that the spawning is
 * what is measured.
 */
#include <unistd.h>

int main(void)
{
	return write(1, "x", 1) != 1;
}
