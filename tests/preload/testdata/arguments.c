// PORT: NULL and short arguments.
#define _GNU_SOURCE
#include "daemon.h"

int main(int argc, char **argv)
{
	must(argc == 2);
	int fd = listener(AF_INET, atoi(argv[1]), 0);
	struct sockaddr_in whole;
	char bytes[16];
	socklen_t len;
	memset(bytes, 'x', sizeof bytes);
	len = 2;
	must(getsockname(fd, (struct sockaddr *)bytes, &len) == 0);
	must(len == sizeof whole && bytes[2] == 'x' && ((struct sockaddr *)bytes)->sa_family == AF_INET);
	len = 0;
	must(getsockname(fd, (struct sockaddr *)bytes, &len) == 0 && len == sizeof whole);
	if (!getenv("CHECKED")) // valgrind objects to the NULLs themselves
		must(getsockname(fd, NULL, NULL) == -1 && errno == EFAULT);
	ready();
	answer(accepted(fd));
	len = 123;
	int c = accept(fd, NULL, &len);
	must(c >= 0 && len == 123);
	answer(c);
	memset(bytes, 'x', sizeof bytes);
	len = 4;
	c = accept(fd, (struct sockaddr *)bytes, &len);
	must(c >= 0 && len == sizeof whole && bytes[4] == 'x');
	len = sizeof whole;
	must(getpeername(c, (struct sockaddr *)&whole, &len) == 0);
	must(memcmp(&whole, bytes, 4) == 0);
	if (!getenv("CHECKED"))
		must(getpeername(c, NULL, NULL) == -1 && errno == EFAULT);
	answer(c);
	return 0;
}
