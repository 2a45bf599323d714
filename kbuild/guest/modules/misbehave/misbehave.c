// SPDX-License-Identifier: GPL-2.0-only
/*
 * Deeds that the harness and each detector must notice.
 *
 * insmod misbehave.ko what=warn does one deed and refuses the load, so that there is
 * nothing to unload.  Without what= the module stays, and does each deed that is written
 * to /sys/module/misbehave/parameters/what.  This is for detectors that need a loaded
 * module to name its functions.  Each deed has a function of its own, and the report must
 * contain its name.
 */
#include <linux/bug.h>
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/errno.h>
#include <linux/gfp.h>
#include <linux/init.h>
#include <linux/irqflags.h>
#include <linux/jiffies.h>
#include <linux/kernel.h>
#include <linux/kthread.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/mutex.h>
#include <linux/preempt.h>
#include <linux/rcupdate.h>
#include <linux/refcount.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/timer.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

#define OBJECT_SIZE	64
/* The same as slub_debug=FZP on the command line, for one cache. */
#define SLAB_CHECKS	(SLAB_CONSISTENCY_CHECKS | SLAB_RED_ZONE | SLAB_POISON)
/* Under emulation two accesses rarely meet, so the race takes some time. */
#define RACE_MS		3000
/* Longer than the time limits that tests set for the watchdogs. */
#define STUCK_MS	10000
/* More than a CPU's list of free pages holds. */
#define PAGES		4096

static DEFINE_SPINLOCK(lock_a);
static DEFINE_SPINLOCK(lock_b);
static DEFINE_MUTEX(kept_mutex);
static void __rcu *rcu_pointer;
static unsigned long racy;

/* --- every kernel --- */

static noinline int misbehave_warn(void)
{
	WARN(1, "misbehave: as requested\n");
	return 0;
}

static noinline int misbehave_oops(void)
{
	WRITE_ONCE(*(int *)8, 0);
	return 0;
}

static noinline int misbehave_bug(void)
{
	BUG();
}

static noinline int misbehave_lockup(void)
{
	preempt_disable();
	for (;;)
		cpu_relax();
	return 0;
}

/* Nothing but a watchdog of the hardware notices, if there is one processor. */
static noinline int misbehave_deaf(void)
{
	local_irq_disable();
	for (;;)
		cpu_relax();
	return 0;
}

static noinline int misbehave_refcount(void)
{
	refcount_t count = REFCOUNT_INIT(0);

	refcount_inc(&count);
	return 0;
}

static noinline int misbehave_spin(void)
{
	unsigned long end = jiffies + msecs_to_jiffies(STUCK_MS);

	preempt_disable();
	while (time_before(jiffies, end))
		cpu_relax();
	preempt_enable();
	return 0;
}

static noinline int misbehave_stuck(void)
{
	msleep(STUCK_MS);
	return 0;
}

static noinline int misbehave_switch_in_rcu(void)
{
	rcu_read_lock();
	msleep(20);
	rcu_read_unlock();
	return 0;
}

/* --- KASAN --- */

static noinline int misbehave_use_after_free(void)
{
	char *object = kmalloc(OBJECT_SIZE, GFP_KERNEL);

	if (!object)
		return -ENOMEM;
	kfree(object);
	OPTIMIZER_HIDE_VAR(object);
	return READ_ONCE(object[8]) == 1;
}

static noinline int misbehave_out_of_bounds(void)
{
	char *object = kmalloc(OBJECT_SIZE - 3, GFP_KERNEL);

	if (!object)
		return -ENOMEM;
	OPTIMIZER_HIDE_VAR(object);
	WRITE_ONCE(object[OBJECT_SIZE - 3], 1);
	kfree(object);
	return 0;
}

static noinline int misbehave_vmalloc_out_of_bounds(void)
{
	char *area = vmalloc(PAGE_SIZE - OBJECT_SIZE);
	int read;

	if (!area)
		return -ENOMEM;
	OPTIMIZER_HIDE_VAR(area);
	read = READ_ONCE(area[PAGE_SIZE - 1]);
	vfree(area);
	return read == 1;
}

static noinline int misbehave_stack_out_of_bounds(void)
{
	char array[OBJECT_SIZE] = {};
	char *past = array + OBJECT_SIZE;

	OPTIMIZER_HIDE_VAR(past);
	return READ_ONCE(*past) == 1;
}

static noinline int misbehave_double_free(void)
{
	char *object = kmalloc(OBJECT_SIZE, GFP_KERNEL);

	kfree(object);
	OPTIMIZER_HIDE_VAR(object);
	kfree(object);
	return 0;
}

/* --- allocators' own checks; KASAN must not see the write, or it would report it first --- */

static noinline __no_sanitize_address void scribble(char *place)
{
	OPTIMIZER_HIDE_VAR(place);
	WRITE_ONCE(*place, 0x55);
}

static noinline int misbehave_overrun(void)
{
	struct kmem_cache *cache;
	char *object;

	cache = kmem_cache_create("misbehave", OBJECT_SIZE, 0, SLAB_CHECKS, NULL);
	if (!cache)
		return -ENOMEM;
	object = kmem_cache_alloc(cache, GFP_KERNEL);
	if (object) {
		scribble(object + OBJECT_SIZE);
		kmem_cache_free(cache, object);
	}
	/* KASAN holds back freed objects; this returns them to the allocator. */
	kmem_cache_destroy(cache);
	return 0;
}

static noinline int misbehave_freed_page(void)
{
	struct page *page = alloc_page(GFP_KERNEL), *again;
	LIST_HEAD(taken);
	char *address;
	int i;

	if (!page)
		return -ENOMEM;
	address = page_address(page);
	__free_page(page);
	scribble(address + OBJECT_SIZE);
	/* The page is checked when it is allocated again. */
	for (i = 0; i < PAGES; i++) {
		again = alloc_page(GFP_KERNEL);
		if (!again)
			break;
		list_add(&again->lru, &taken);
		if (again == page)
			break;
	}
	list_for_each_entry_safe(page, again, &taken, lru)
		__free_page(page);
	return 0;
}

/* --- DEBUG_LIST, DEBUG_OBJECTS --- */

static noinline int misbehave_list(void)
{
	struct list_head head, entry;

	INIT_LIST_HEAD(&head);
	list_add(&entry, &head);
	list_del(&entry);
	list_del(&entry);
	return 0;
}

static void timer_expired(struct timer_list *timer)
{
}

static noinline int misbehave_armed_timer(void)
{
	struct timer_list *timer = kmalloc(sizeof(*timer), GFP_KERNEL);

	if (!timer)
		return -ENOMEM;
	timer_setup(timer, timer_expired, 0);
	mod_timer(timer, jiffies + 3600 * HZ);
	kfree(timer);
	return 0;
}

/* --- lockdep, and sleeping in an atomic context --- */

static noinline int misbehave_recursive_lock(void)
{
	spinlock_t locks[2];
	int i;

	/* Two locks of one class give the report of one lock taken twice, but no deadlock. */
	for (i = 0; i < 2; i++)
		spin_lock_init(&locks[i]);
	spin_lock(&locks[0]);
	spin_lock(&locks[1]);
	spin_unlock(&locks[1]);
	spin_unlock(&locks[0]);
	return 0;
}

static noinline int misbehave_lock_order(void)
{
	spin_lock(&lock_a);
	spin_lock(&lock_b);
	spin_unlock(&lock_b);
	spin_unlock(&lock_a);

	spin_lock(&lock_b);
	spin_lock(&lock_a);
	spin_unlock(&lock_a);
	spin_unlock(&lock_b);
	return 0;
}

static noinline int misbehave_kept_lock(void)
{
	mutex_lock(&kept_mutex);
	return 0;
}

static noinline int misbehave_sleep_in_spinlock(void)
{
	spin_lock(&lock_a);
	kfree(kmalloc(OBJECT_SIZE, GFP_KERNEL));
	spin_unlock(&lock_a);
	return 0;
}

static noinline int misbehave_sleep_in_rcu(void)
{
	rcu_read_lock();
	kfree(kmalloc(OBJECT_SIZE, GFP_KERNEL));
	rcu_read_unlock();
	return 0;
}

static noinline int misbehave_schedule_in_atomic(void)
{
	preempt_disable();
	schedule_timeout_uninterruptible(1);
	preempt_enable();
	return 0;
}

static noinline int misbehave_no_rcu(void)
{
	return rcu_dereference(rcu_pointer) ? 1 : 0;
}

/* --- kmemleak, fault injection --- */

static noinline int misbehave_leak(void)
{
	int i;

	/* A stack or a register may still hold the last pointer, but not all of them. */
	for (i = 0; i < 8; i++)
		if (!kmalloc(OBJECT_SIZE, GFP_KERNEL))
			return -ENOMEM;
	return 0;
}

static noinline int misbehave_allocation(void)
{
	void *object = kmalloc(OBJECT_SIZE, GFP_KERNEL);

	kfree(object);
	return object ? 0 : -ENOMEM;
}

static noinline int misbehave_page_allocation(void)
{
	struct page *page = alloc_page(GFP_KERNEL);

	if (page)
		__free_page(page);
	return page ? 0 : -ENOMEM;
}

static noinline int misbehave_user_copy(void)
{
	char byte;

	return copy_from_user(&byte, (void __user *)current->mm->arg_start, 1) ? -EFAULT : 0;
}

/* --- KCSAN --- */

static noinline int misbehave_racer(void *unused)
{
	while (!kthread_should_stop()) {
		racy++;
		cond_resched();
	}
	return 0;
}

static noinline int misbehave_race(void)
{
	struct task_struct *racers[2];
	int i, error = 0;

	for (i = 0; i < 2; i++) {
		racers[i] = kthread_run(misbehave_racer, NULL, "misbehave/%d", i);
		if (IS_ERR(racers[i])) {
			error = PTR_ERR(racers[i]);
			break;
		}
	}
	if (!error)
		msleep(RACE_MS);
	while (i--)
		kthread_stop(racers[i]);
	return error;
}

static const struct {
	const char *name;
	int (*act)(void);
} deeds[] = {
#define DEED(name)	{ #name, misbehave_##name }
	DEED(warn),
	DEED(oops),
	DEED(bug),
	DEED(lockup),
	DEED(deaf),
	DEED(refcount),
	DEED(spin),
	DEED(stuck),
	DEED(switch_in_rcu),
	DEED(use_after_free),
	DEED(out_of_bounds),
	DEED(vmalloc_out_of_bounds),
	DEED(stack_out_of_bounds),
	DEED(double_free),
	DEED(overrun),
	DEED(freed_page),
	DEED(list),
	DEED(armed_timer),
	DEED(recursive_lock),
	DEED(lock_order),
	DEED(kept_lock),
	DEED(sleep_in_spinlock),
	DEED(sleep_in_rcu),
	DEED(schedule_in_atomic),
	DEED(no_rcu),
	DEED(leak),
	DEED(allocation),
	DEED(page_allocation),
	DEED(user_copy),
	DEED(race),
};

static int (*wanted)(void);
static bool staying;

static int set_what(const char *value, const struct kernel_param *param)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(deeds); i++) {
		if (!sysfs_streq(value, deeds[i].name))
			continue;
		if (staying)
			return deeds[i].act();
		wanted = deeds[i].act;
		return 0;
	}
	return -EINVAL;
}

static const struct kernel_param_ops what_ops = { .set = set_what };
module_param_cb(what, &what_ops, NULL, 0200);
MODULE_PARM_DESC(what, "the deed: a name in the source's table of deeds");

static int __init misbehave_init(void)
{
	if (wanted) {
		wanted();
		return -ECANCELED;
	}
	staying = true;
	return 0;
}
module_init(misbehave_init);

static void __exit misbehave_exit(void)
{
}
module_exit(misbehave_exit);

MODULE_DESCRIPTION("Misbehaves so that the test harness can be tested");
MODULE_LICENSE("GPL");
