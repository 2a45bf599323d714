/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The grammar of /proc/cplayground for programs that read it while everything changes.  It is
 * fed pieces of any size, and refuses a text that docs/reference/procfile.md does not allow.
 * kbuild/lab/procfile.py is the same grammar with more detailed errors.
 */
#ifndef LISTING_H
#define LISTING_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

/* A path of PATH_MAX bytes with each of them escaped, and the other columns. */
#define LISTING_LINE (4 * 4096 + 256)

struct listing {
	bool inside;		/* between a header and its empty line */
	long pid, fd;		/* the last ones; the next must be higher */
	unsigned long records, lines;
	size_t length;
	char line[LISTING_LINE + 1];
	char why[320];		/* the first fault, or "" */
};

static inline void listing_begin(struct listing *l)
{
	l->inside = false;
	l->pid = 0;
	l->fd = -1;
	l->records = 0;
	l->lines = 0;
	l->length = 0;
	l->why[0] = '\0';
}

static inline bool listing_refuse(struct listing *l, const char *why)
{
	snprintf(l->why, sizeof(l->why), "line %lu: %s: %.200s", l->lines, why, l->line);
	return false;
}

/* Each takes its column from *p and moves *p past the tab; the last one to the end. */
static inline bool listing_id(const char **p)
{
	size_t digits = strspn(*p, "0123456789abcdef");

	if (digits != 64 || (*p)[digits] != '\t')
		return false;
	*p += digits + 1;
	return true;
}

static inline bool listing_number(const char **p, long *value, const char *digits, int base)
{
	bool negative = **p == '-' && base == 10;
	unsigned long sum = 0;
	size_t count;

	*p += negative;
	count = strspn(*p, digits);
	if (!count || count > 19 || (**p == '0' && (count > 1 || negative)) || (*p)[count] != '\t')
		return false;
	for (size_t i = 0; i < count; i++)
		sum = sum * base + ((*p)[i] - '0');
	if (sum > (unsigned long)LONG_MAX + negative)
		return false;
	*p += count + 1;
	*value = negative ? -sum : sum;
	return true;
}

static inline bool listing_decimal(const char **p, long *value)
{
	return listing_number(p, value, "0123456789", 10);
}

/* Count the bytes at the beginning of a text that must be escaped. */
static inline size_t listing_special(const unsigned char *s)
{
	if ((*s && *s < 0x20) || *s == 0x7f || *s == '\\')
		return 1;
	if (s[0] == 0xc2 && s[1] == 0x85)
		return 2;
	if (s[0] == 0xe2 && s[1] == 0x80 && (s[2] == 0xa8 || s[2] == 0xa9))
		return 3;
	return 0;
}

/* Write the bytes of up to three \ooo in a row, and a zero after them. */
static inline void listing_unescape(const char *p, unsigned char *bytes)
{
	for (int i = 0; i < 3 && *p == '\\'; i++, p += 4) {
		if (strspn(p + 1, "01234567") < 3 || p[1] > '3')
			break;
		*bytes++ = (p[1] - '0') << 6 | (p[2] - '0') << 3 | (p[3] - '0');
	}
	*bytes = '\0';
}

static inline bool listing_name(const char *p, size_t most)
{
	unsigned char bytes[4];
	size_t size = 0, count;

	while (*p) {
		if (*p == '\\') {
			listing_unescape(p, bytes);
			count = listing_special(bytes);
			if (!count)
				return false;
			p += 4 * count;
			size += count;
		} else {
			if (listing_special((const unsigned char *)p))
				return false;
			p++;
			size++;
		}
	}
	return size <= most;
}

static inline bool listing_header(struct listing *l)
{
	long pid, own, parent, group;
	const char *p = l->line;

	if (!listing_id(&p) || !listing_decimal(&p, &pid) || !listing_decimal(&p, &own) ||
	    !listing_decimal(&p, &parent) || !listing_decimal(&p, &group) || !listing_name(p, 15))
		return listing_refuse(l, "not a header");
	if (pid <= l->pid || own < 1 || parent < 0 || group < 0)
		return listing_refuse(l, "pids that cannot be");
	l->pid = pid;
	l->fd = -1;
	l->inside = true;
	l->records++;
	return true;
}

static inline bool listing_file(struct listing *l)
{
	long fd, cloexec, position, flags;
	const char *p = l->line;

	if (!listing_decimal(&p, &fd) || !listing_decimal(&p, &cloexec) || !listing_id(&p) ||
	    !listing_decimal(&p, &position) || *p++ != '0' ||
	    !listing_number(&p, &flags, "01234567", 8) || !*p || !listing_name(p, 4095))
		return listing_refuse(l, "not a descriptor");
	if (fd <= l->fd || cloexec < 0 || cloexec > 1 || flags > 0xffffffffL)
		return listing_refuse(l, "a descriptor that cannot be");
	l->fd = fd;
	return true;
}

/* Return false for a text that violates the format, and from then on. */
static inline bool listing_feed(struct listing *l, const char *text, size_t size)
{
	const char *end = text + size;

	while (text < end && !l->why[0]) {
		const char *newline = memchr(text, '\n', end - text);
		size_t piece = (newline ? newline : end) - text;

		if (l->length + piece > LISTING_LINE)
			return listing_refuse(l, "longer than any line");
		memcpy(l->line + l->length, text, piece);
		l->length += piece;
		text += piece;
		if (!newline)
			break;
		text++;
		l->lines++;
		l->line[l->length] = '\0';
		if (strlen(l->line) != l->length)
			return listing_refuse(l, "a zero byte");
		if (!l->inside)
			listing_header(l);
		else if (l->length)
			listing_file(l);
		else
			l->inside = false;
		l->length = 0;
	}
	return !l->why[0];
}

/* To be called at the end of the file: a record that is cut off is not whole. */
static inline bool listing_end(struct listing *l)
{
	l->line[l->length] = '\0';
	if (!l->why[0] && (l->inside || l->length))
		listing_refuse(l, "the listing ends within a record");
	return !l->why[0];
}

#endif
