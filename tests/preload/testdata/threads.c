// PORT COUNT: eight threads accept on one listener.
#define _GNU_SOURCE
#include "daemon.h"

#include <pthread.h>
#include <stdatomic.h>

static int fd;
static atomic_int left;

static void *work(void *arg)
{
	while (atomic_fetch_sub(&left, 1) > 0)
		answer(accepted(fd));
	return arg;
}

int main(int argc, char **argv)
{
	must(argc == 3);
	pthread_t thread[8];
	atomic_store(&left, atoi(argv[2]));
	fd = listener(AF_INET6, atoi(argv[1]), 0);
	ready();
	for (int i = 0; i < 8; i++)
		must(pthread_create(&thread[i], NULL, work, NULL) == 0);
	for (int i = 0; i < 8; i++)
		must(pthread_join(thread[i], NULL) == 0);
	return 0;
}
