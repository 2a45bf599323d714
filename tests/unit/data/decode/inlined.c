/* Compiled to inlined.o by: gcc-12 -g -O2 -gdwarf-5 -c -fdebug-prefix-map=$PWD=/mnt/module */
extern void report(int *);

static inline __attribute__((always_inline)) void inner(int *p)
{
	report(p);
}

static inline __attribute__((always_inline)) void middle(int *p)
{
	*p += 1;
	inner(p);
}

__attribute__((noinline)) int outer(int *p)
{
	middle(p);
	return *p;
}

__attribute__((section(".init.text"))) int begin(int *p)
{
	report(p);
	return outer(p);
}
