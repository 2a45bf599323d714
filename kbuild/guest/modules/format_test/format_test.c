// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests of the writers of numbers and names in kmod/format.h, without the module.
 * kbuild/guest/image.py copies that header here, and builds this for kernels with KUnit.
 */
#include <kunit/test.h>
#include <linux/kernel.h>
#include <linux/limits.h>
#include <linux/module.h>

#include "format.h"

#define ROOM 512
#define BEHIND 7	/* bytes that cpg_write_name() may read after a name */

/* Check the text and its length. */
static void expect_text(struct kunit *test, const char *text, const char *end,
			const char *expected)
{
	KUNIT_EXPECT_EQ(test, (size_t)(end - text), strlen(expected));
	KUNIT_EXPECT_TRUE(test, !memcmp(text, expected, strlen(expected)));
	if (memcmp(text, expected, strlen(expected)))
		kunit_err(test, "%.*s is not %s", (int)(end - text), text, expected);
}

static void numbers(struct kunit *test)
{
	static const s64 decimals[] = {
		0, 1, 9, 10, 99, 100, 1048575, S32_MAX, S32_MIN, -1, -9, -10, -100, S64_MAX, S64_MIN
	};
	static const u32 octals[] = { 0, 1, 7, 8, 63, 64, 02000000, 0100000, U32_MAX, 1U << 31 };
	static const u32 words[] = { 0, 1, 9, 10, 15, 16, 0x12345678, 0x9abcdef0, U32_MAX };
	char text[ROOM], expected[64];
	int i;

	for (i = 0; i < ARRAY_SIZE(decimals); i++) {
		snprintf(expected, sizeof(expected), "%lld", decimals[i]);
		expect_text(test, text, cpg_write_decimal(text, decimals[i]), expected);
	}
	for (i = 0; i < ARRAY_SIZE(octals); i++) {
		snprintf(expected, sizeof(expected), "0%o", octals[i]);
		expect_text(test, text, cpg_write_octal(text, octals[i]), expected);
	}
	for (i = 0; i < ARRAY_SIZE(words); i++) {
		snprintf(expected, sizeof(expected), "%08x", words[i]);
		expect_text(test, text, cpg_write_hex(text, words[i]), expected);
	}
}

/* Each byte at each place of the eight bytes that are checked together. */
static void bytes(struct kunit *test)
{
	char name[24 + BEHIND], text[ROOM], expected[ROOM];
	int byte, at;

	for (byte = 1; byte < 256; byte++) {
		for (at = 0; at < 16; at++) {
			memset(name, 'x', 20);
			memset(name + 20, 0, sizeof(name) - 20);
			name[at] = byte;
			if (byte < 32 || byte == 127 || byte == '\\')
				snprintf(expected, sizeof(expected), "%.*s\\%03o%s", at, name, byte,
					 name + at + 1);
			else
				strscpy(expected, name, sizeof(expected));
			expect_text(test, text, cpg_write_name(text, name), expected);
		}
	}
}

/* U+0085, U+2028 and U+2029 at each place; similar and incomplete sequences stay as they are. */
static void separators(struct kunit *test)
{
	static const struct {
		const char *name, *shown;
	} cases[] = {
		{ "\xc2\x85", "\\302\\205" },
		{ "\xe2\x80\xa8", "\\342\\200\\250" },
		{ "\xe2\x80\xa9", "\\342\\200\\251" },
		{ "\xe2\x80\xa8\xe2\x80\xa9\xc2\x85", "\\342\\200\\250\\342\\200\\251\\302\\205" },
		{ "\xc2", "\xc2" },
		{ "\xc2\x84\xc2\x86", "\xc2\x84\xc2\x86" },
		{ "\x85\xa8", "\x85\xa8" },
		{ "\xe2", "\xe2" },
		{ "\xe2\x80", "\xe2\x80" },
		{ "\xe2\x80\xa7\xe2\x80\xaa", "\xe2\x80\xa7\xe2\x80\xaa" },
		{ "\xe2\x81\xa8", "\xe2\x81\xa8" },
		{ "\xe2\xc2\x85", "\xe2\\302\\205" },
		{ "\\\xe2\x80\xa8", "\\134\\342\\200\\250" },
	};
	char name[64 + BEHIND], text[ROOM], expected[ROOM];
	int i, at;

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		for (at = 0; at < 16; at++) {
			memset(name, 0, sizeof(name));
			snprintf(name, sizeof(name), "%.*s%s", at, "xxxxxxxxxxxxxxxx", cases[i].name);
			snprintf(expected, sizeof(expected), "%.*s%s", at, "xxxxxxxxxxxxxxxx",
				 cases[i].shown);
			expect_text(test, text, cpg_write_name(text, name), expected);
			strcat(name, "y");
			strcat(expected, "y");
			expect_text(test, text, cpg_write_name(text, name), expected);
		}
	}
}

static struct kunit_case cases[] = {
	KUNIT_CASE(numbers),
	KUNIT_CASE(bytes),
	KUNIT_CASE(separators),
	{}
};

static struct kunit_suite suite = {
	.name = "cplayground_format",
	.test_cases = cases,
};
kunit_test_suite(suite);

MODULE_DESCRIPTION("KUnit tests of the writers of cplayground");
MODULE_LICENSE("GPL");
