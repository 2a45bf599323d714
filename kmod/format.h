/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Writers of numbers and names.  They use no state of the kernel, so KUnit can test them
 * (kbuild/guest/modules/format_test).  The caller provides room for the longest line.  Each
 * function returns the end of its output.
 *
 * With seq_file's own functions, a line took 1.5 times as long, and a line with a path of
 * 3,000 bytes three times as long (docs/results/module.md).
 */
#ifndef CPG_FORMAT_H
#define CPG_FORMAT_H

#include <linux/bitops.h>
#include <linux/ctype.h>
#include <linux/string.h>
#include <linux/types.h>

/* A number that consists of eight copies of a byte. */
#define CPG_EACH(byte) (~0ULL / 0xff * (byte))

/* Write the eight hexadecimal digits of a word. */
static inline char *cpg_write_hex(char *p, u32 word)
{
	u64 digits = word, letters;
	__be64 text;

	/* Spread 32 bits over eight bytes, four bits each, by halving three times. */
	digits = (digits & 0xffff0000ULL) << 16 | (digits & 0xffffULL);
	digits = (digits & 0x0000ff000000ff00ULL) << 8 | (digits & 0x000000ff000000ffULL);
	digits = (digits & 0x00f000f000f000f0ULL) << 4 | (digits & 0x000f000f000f000fULL);
	letters = (digits + CPG_EACH(6)) >> 4 & CPG_EACH(1);
	text = cpu_to_be64(digits + CPG_EACH('0') + letters * ('a' - '0' - 10));
	memcpy(p, &text, sizeof(text));
	return p + sizeof(text);
}

static inline char *cpg_write_decimal(char *p, s64 number)
{
	u64 value = number, rest;
	char *end;

	if (number < 0) {
		*p++ = '-';
		value = -value;
	}
	end = p;
	for (rest = value; rest > 9; rest /= 10)
		end++;
	p = end + 1;
	for (; value > 9; value /= 10)
		*end-- = '0' + value % 10;
	*end = '0' + value;
	return p;
}

/* Write a number in octal, with a leading 0 as in C. */
static inline char *cpg_write_octal(char *p, u32 value)
{
	int shift = (fls(value | 1) - 1) / 3 * 3;

	for (*p++ = '0'; shift >= 0; shift -= 3)
		*p++ = '0' + (value >> shift & 7);
	return p;
}

/*
 * Return whether one of eight bytes may be special.  That includes NUL, and 0xc2 and 0xe2,
 * which may begin a line separator.
 */
static inline bool cpg_any_special(u64 bytes)
{
	u64 low = bytes & CPG_EACH(0x7f), plain, other;

	/* No sum exceeds 0xff, so the highest bit of each byte is the result for that byte. */
	plain = (low + CPG_EACH(0x60)) & ~(low + CPG_EACH(1)) &
		((low ^ CPG_EACH('\\')) + CPG_EACH(0x7f));
	other = (low | CPG_EACH(0x20)) ^ CPG_EACH(0x62);
	other = ~(other + CPG_EACH(0x7f)) & bytes;
	return (~(plain | bytes) | other) & CPG_EACH(0x80);
}

/*
 * Return how many of the next bytes of a name must be written as \ooo.  Programs split
 * text into lines at control bytes, and at U+0085, U+2028 and U+2029.
 */
static inline unsigned int cpg_special(const unsigned char *s)
{
	if (iscntrl(*s) || *s == '\\')
		return 1;
	if (s[0] == 0xc2 && s[1] == 0x85)
		return 2;
	if (s[0] == 0xe2 && s[1] == 0x80 && (s[2] == 0xa8 || s[2] == 0xa9))
		return 3;
	return 0;
}

/*
 * Write a name with its special bytes as \ooo and all other bytes unchanged.  Reads up to
 * seven bytes behind the end of the name.
 */
static inline char *cpg_write_name(char *p, const char *name)
{
	const unsigned char *s = (const unsigned char *)name, *end;
	unsigned int special;
	u64 bytes;

	for (;;) {
		memcpy(&bytes, s, sizeof(bytes));
		if (!cpg_any_special(bytes)) {
			memcpy(p, &bytes, sizeof(bytes));
			p += sizeof(bytes);
			s += sizeof(bytes);
			continue;
		}
		for (end = s + sizeof(bytes); s < end;) {
			if (!*s)
				return p;
			special = cpg_special(s);
			if (!special)
				*p++ = *s++;
			for (; special; special--, s++) {
				*p++ = '\\';
				*p++ = '0' + (*s >> 6);
				*p++ = '0' + (*s >> 3 & 7);
				*p++ = '0' + (*s & 7);
			}
		}
	}
}

#endif
