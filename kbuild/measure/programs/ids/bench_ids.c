// SPDX-License-Identifier: GPL-2.0
/*
 * Measure the cost of one id, made in different ways.  Loading the module measures once.
 * Its parameters then hold the results, in nanoseconds for all iterations together.
 *
 *	siphash_ns	as kmod/cplayground.c: four keyed SipHashes, written as hex
 *	sha256_ns	as the module of 2020: crypto API, everything allocated for each id
 *	digest_ns	the same with one transformation, allocated before the clock starts
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <crypto/hash.h>
#include <linux/err.h>
#include <linux/kernel.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/random.h>
#include <linux/sched.h>
#include <linux/siphash.h>
#include <linux/slab.h>

#define ID_DIGITS 64
#define DIGEST_SIZE 32	/* of SHA-256 */
#define ROUND 64	/* ids between two offers to reschedule */

static unsigned long iterations = 10000;
module_param(iterations, ulong, 0444);
MODULE_PARM_DESC(iterations, "Ids made in each way");

static unsigned long siphash_ns;
module_param(siphash_ns, ulong, 0444);
MODULE_PARM_DESC(siphash_ns, "Result: SipHash");

static unsigned long sha256_ns;
module_param(sha256_ns, ulong, 0444);
MODULE_PARM_DESC(sha256_ns, "Result: SHA-256, everything allocated for each id");

static unsigned long digest_ns;
module_param(digest_ns, ulong, 0444);
MODULE_PARM_DESC(digest_ns, "Result: SHA-256, allocated once");

static siphash_key_t keys[4];
/* Ids are written here, so that the compiler cannot omit them. */
static char id[ID_DIGITS + 1];

static int siphash_id(u64 object)
{
	char *p = id;
	int i, shift;

	for (i = 0; i < 4; i++) {
		u64 word = siphash_2u64(object, object >> 8, &keys[i]);

		for (shift = 56; shift >= 0; shift -= 8)
			p = hex_byte_pack(p, word >> shift);
	}
	return 0;
}

static int digest(struct crypto_shash *tfm, u64 object)
{
	u8 *hash = kmalloc(DIGEST_SIZE, GFP_KERNEL);
	struct shash_desc *desc = kmalloc(sizeof(*desc) + crypto_shash_descsize(tfm), GFP_KERNEL);
	int error = -ENOMEM;

	if (hash && desc) {
		desc->tfm = tfm;
		error = crypto_shash_digest(desc, (u8 *)&object, sizeof(object), hash);
		if (!error)
			bin2hex(id, hash, DIGEST_SIZE);
	}
	kfree(desc);
	kfree(hash);
	return error;
}

static int sha256_id(u64 object)
{
	struct crypto_shash *tfm = crypto_alloc_shash("sha256", 0, 0);
	int error;

	if (IS_ERR(tfm))
		return PTR_ERR(tfm);
	error = digest(tfm, object);
	crypto_free_shash(tfm);
	return error;
}

static struct crypto_shash *common_tfm;

static int digest_id(u64 object)
{
	return digest(common_tfm, object);
}

static int measure(int (*make)(u64 object), unsigned long *ns)
{
	unsigned long i;
	u64 began = ktime_get_ns();

	for (i = 0; i < iterations; i++) {
		/* Addresses as far apart as those of struct file. */
		int error = make(0xffff888000000000ULL + 256 * i);

		if (error)
			return error;
		if (i % ROUND == 0)
			cond_resched();
	}
	*ns = ktime_get_ns() - began;
	return 0;
}

static int __init bench_ids_init(void)
{
	int error;

	get_random_bytes(keys, sizeof(keys));
	common_tfm = crypto_alloc_shash("sha256", 0, 0);
	if (IS_ERR(common_tfm))
		return PTR_ERR(common_tfm);
	error = measure(siphash_id, &siphash_ns);
	if (!error)
		error = measure(sha256_id, &sha256_ns);
	if (!error)
		error = measure(digest_id, &digest_ns);
	crypto_free_shash(common_tfm);
	return error;
}

static void __exit bench_ids_exit(void)
{
}

module_init(bench_ids_init);
module_exit(bench_ids_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("What an id of the cplayground module costs, and what it would cost otherwise");
