#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <string.h>

#include "preload.h"

struct line {
	char *at, *end;
};

static void put(struct line *l, char c)
{
	if (l->at < l->end)
		*l->at++ = c;
}

static void put_number(struct line *l, unsigned long n, unsigned base)
{
	char digits[24];
	int count = 0;
	do {
		digits[count++] = "0123456789abcdef"[n % base];
		n /= base;
	} while (n > 0);
	while (count > 0)
		put(l, digits[--count]);
}

static void format_into(struct line *l, const char *format, va_list args)
{
	for (; *format; format++) {
		if (*format != '%') {
			put(l, *format);
			continue;
		}
		switch (*++format) {
		case 's':
			for (const char *s = va_arg(args, const char *); *s; s++)
				put(l, *s);
			break;
		case 'd': {
			long n = va_arg(args, int);
			if (n < 0)
				put(l, '-');
			put_number(l, (unsigned long)(n < 0 ? -n : n), 10);
			break;
		}
		case 'u':
			put_number(l, va_arg(args, unsigned), 10);
			break;
		case 'x':
			put_number(l, va_arg(args, unsigned), 16);
			break;
		default:
			put(l, '%');
			return;
		}
	}
}

size_t text(char *out, size_t size, const char *format, ...)
{
	struct line l = {out, out + size - 1};
	va_list args;
	va_start(args, format);
	format_into(&l, format, args);
	va_end(args);
	*l.at = 0;
	return (size_t)(l.at - out);
}

void say(const char *format, ...)
{
	char buffer[1500];
	struct line l = {buffer, buffer + sizeof buffer - 1};
	va_list args;
	for (const char *s = "socketbox-preload["; *s; s++)
		put(&l, *s);
	put_number(&l, (unsigned long)raw(SYS_getpid), 10);
	put(&l, ']');
	put(&l, ':');
	put(&l, ' ');
	va_start(args, format);
	format_into(&l, format, args);
	va_end(args);
	*l.at++ = '\n';
	raw(SYS_write, 2, buffer, l.at - buffer);
}

// strerror may allocate.
const char *error_text(int error)
{
	static const struct {
		int error;
		const char *text;
	} known[] = {
		{EACCES, "permission denied"},
		{EPERM, "operation not permitted"},
		{ENOENT, "no such file or directory"},
		{ENOTDIR, "not a directory"},
		{EROFS, "read-only file system"},
		{EADDRINUSE, "address already in use"},
		{ENAMETOOLONG, "name too long"},
		{ENOSPC, "no space left"},
		{EMFILE, "too many open files"},
		{ENFILE, "too many open files in system"},
		{ENOBUFS, "no buffer space"},
		{ENOMEM, "out of memory"},
		{ELOOP, "too many symbolic links"},
	};
	static _Thread_local char other[24];
	for (size_t i = 0; i < sizeof known / sizeof *known; i++)
		if (known[i].error == error)
			return known[i].text;
	text(other, sizeof other, "errno %d", error);
	return other;
}
