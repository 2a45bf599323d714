// SPDX-License-Identifier: GPL-2.0-only
/*
 * The guest's init: it mounts the file systems for the tests, says hello on ttyS1, and
 * runs commands for the host until the host tells it to power off.
 *
 * It never writes to the console, which carries kernel text only.  This process itself
 * does nothing that may block: children also read and write files, so that a procfile
 * that deadlocks its reader does not stop the agent.
 *
 * kbuild/guest/channel.py is the host's side of the protocol, and describes it.
 *
 * Under the names reboot, poweroff and halt the program is one of these commands.
 *
 * On a server it is a service of systemd (kbuild/gate/server.py).  Then the system is there
 * already, and the agent asks systemd to power off.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/random.h>
#include <linux/reboot.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define PROTOCOL 2

enum { HEADER = 16, TRAILER = 4, MAX_PAYLOAD = 32768 };
enum { MAX_FRAME = HEADER + MAX_PAYLOAD + TRAILER };
enum { IN_SIZE = 2 * MAX_FRAME, OUT_SIZE = 8 * MAX_FRAME };
enum { MAX_PORTS = 2, MAX_JOBS = 64, MAX_ARGS = 1024 };

/* The kinds of frames; capitals come from the host. */
enum kind {
	PING = 'P', HELLO = 'h',
	START = 'S', INPUT = 'I', CLOSE_INPUT = 'C', SIGNAL = 'K', RESIZE = 'Z',
	STDOUT = 'o', STDERR = 'e', INPUT_TAKEN = 'i', EXIT = 'x',
	MARK = 'M', MARKED = 'm',
	OPEN_PORT = 'V', PORT_OPENED = 'v',
	POWER_OFF = 'B', FAREWELL = 'b',
	LOOP = 'L',	/* loop for ever, for the test that the harness notices a hang */
	REFUSED = 'r',
};

enum start_flag { WITH_PTY = 1 };
enum exit_flag { TIMED_OUT = 1, UNKILLABLE = 2 };

/* A child that lives longer after SIGKILL is reported as stuck. */
#define KILL_GRACE_MS 3000

struct port {
	int fd;
	size_t in_len, out_off, out_len;
	uint8_t in[IN_SIZE], out[OUT_SIZE];
};

struct job {
	bool used, exited, closing;
	uint32_t id;
	struct port *port;
	pid_t pid;
	int in, out, err;	/* our ends; -1 when closed; equal for a pty */
	int status;
	uint32_t flags;
	int64_t deadline, kill_deadline;	/* ms, 0: none */
	int out_left, err_left;	/* bytes in its pipes when it exited */
	size_t pending_len, pending_off;
	uint8_t pending[MAX_PAYLOAD];
};

static struct port ports[MAX_PORTS];
static struct job jobs[MAX_JOBS];
static uint32_t crc_table[256];

/* ---- small things ---- */

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Write a line to the kernel's log, and so to the console. */
__attribute__((format(printf, 1, 2)))
static void kernel_log(const char *format, ...)
{
	char line[1024] = "<5>";
	int fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
	va_list args;

	if (fd < 0)
		return;
	va_start(args, format);
	vsnprintf(line + 3, sizeof(line) - 4, format, args);
	va_end(args);
	/* The kernel holds back a line without its newline. */
	strcat(line, "\n");
	if (write(fd, line, strlen(line)) < 0) {
		/* There is no other place to report this. */
	}
	close(fd);
}

static void crc_init(void)
{
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t c = i;

		for (int k = 0; k < 8; k++)
			c = c & 1 ? 0xedb88320u ^ (c >> 1) : c >> 1;
		crc_table[i] = c;
	}
}

static uint32_t crc32(const uint8_t *data, size_t len)
{
	uint32_t c = 0xffffffffu;

	while (len--)
		c = crc_table[(c ^ *data++) & 0xff] ^ (c >> 8);
	return c ^ 0xffffffffu;
}

static uint32_t get32(const uint8_t *p)
{
	return p[0] | p[1] << 8 | p[2] << 16 | (uint32_t)p[3] << 24;
}

static void put32(uint8_t *p, uint32_t v)
{
	p[0] = v;
	p[1] = v >> 8;
	p[2] = v >> 16;
	p[3] = v >> 24;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

/* ---- frames out ---- */

static size_t out_space(const struct port *port)
{
	return OUT_SIZE - port->out_len;
}

static void port_flush(struct port *port)
{
	while (port->out_len) {
		ssize_t n = write(port->fd, port->out + port->out_off, port->out_len);

		if (n <= 0)
			return;
		port->out_off += n;
		port->out_len -= n;
	}
	port->out_off = 0;
}

/* Callers with streams check out_space() first, and leave room for short answers. */
static void send_frame(struct port *port, enum kind kind, uint32_t id, const void *payload,
		       size_t len)
{
	uint8_t *frame;

	if (port->fd < 0 || out_space(port) < HEADER + len + TRAILER)
		return;
	if (port->out_off + port->out_len + HEADER + len + TRAILER > OUT_SIZE) {
		memmove(port->out, port->out + port->out_off, port->out_len);
		port->out_off = 0;
	}
	frame = port->out + port->out_off + port->out_len;
	memcpy(frame, "\xa5" "cpg", 4);
	frame[4] = kind;
	frame[5] = 0;
	frame[6] = len;
	frame[7] = len >> 8;
	put32(frame + 8, id);
	put32(frame + 12, crc32(frame, 12));
	memcpy(frame + HEADER, payload, len);
	put32(frame + HEADER + len, crc32(frame + HEADER, len));
	port->out_len += HEADER + len + TRAILER;
}

static void refuse(struct port *port, uint32_t id, const char *what, const char *why)
{
	char text[128];

	snprintf(text, sizeof(text), "%s%s", what, why);
	send_frame(port, REFUSED, id, text, strlen(text));
}

static void send_u32(struct port *port, enum kind kind, uint32_t id, uint32_t value)
{
	uint8_t raw[4];

	put32(raw, value);
	send_frame(port, kind, id, raw, sizeof(raw));
}

static void send_hello(struct port *port, uint32_t id)
{
	char text[256], boot_id[64] = "";
	struct utsname name;
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);

	if (fd >= 0) {
		ssize_t n = read(fd, boot_id, sizeof(boot_id) - 1);

		boot_id[n > 0 ? n : 0] = '\0';
		boot_id[strcspn(boot_id, "\n")] = '\0';
		close(fd);
	}
	uname(&name);
	snprintf(text, sizeof(text), "%d\n%s\n%s\n%ld\n", PROTOCOL, boot_id, name.release,
		 sysconf(_SC_NPROCESSORS_ONLN));
	send_frame(port, HELLO, id, text, strlen(text));
}

/* ---- children ---- */

static struct job *find_job(uint32_t id)
{
	for (int i = 0; i < MAX_JOBS; i++)
		if (jobs[i].used && jobs[i].id == id)
			return &jobs[i];
	return NULL;
}

static int copy_all(int from, int to)
{
	static uint8_t buffer[131072];
	ssize_t n;

	while ((n = read(from, buffer, sizeof(buffer))) > 0)
		for (ssize_t done = 0; done < n;) {
			ssize_t w = write(to, buffer + done, n - done);

			if (w < 0)
				return errno;
			done += w;
		}
	return n < 0 ? errno : 0;
}

/*
 * After a restore, set the clock to the host's, in ns since 1970, and add entropy from
 * standard input: until then, all guests of one snapshot have the same random numbers.
 */
static int wake(const char *clock)
{
	unsigned long long ns = strtoull(clock, NULL, 10);
	struct timespec now = { .tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000 };
	struct {
		struct rand_pool_info info;
		uint8_t raw[256];
	} pool = { 0 };
	ssize_t n;
	int fd;

	while ((n = read(STDIN_FILENO, pool.raw + pool.info.buf_size,
			 sizeof(pool.raw) - pool.info.buf_size)) > 0)
		pool.info.buf_size += n;
	if (n < 0)
		return errno;
	if (!pool.info.buf_size)
		return ENODATA;
	pool.info.entropy_count = 8 * pool.info.buf_size;
	fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
	if (fd < 0 || ioctl(fd, RNDADDENTROPY, &pool) || ioctl(fd, RNDRESEEDCRNG))
		return errno;
	close(fd);
	return clock_settime(CLOCK_REALTIME, &now) ? errno : 0;
}

/*
 * @read PATH prints the file; @write PATH MODE writes standard input to it, by rename;
 * @wake NS is the first command after a restore.
 */
static int builtin(char **argv)
{
	char scratch[4096];
	int fd, error;

	if (!strcmp(argv[0], "@read") && argv[1]) {
		fd = open(argv[1], O_RDONLY | O_CLOEXEC);
		error = fd < 0 ? errno : copy_all(fd, STDOUT_FILENO);
	} else if (!strcmp(argv[0], "@write") && argv[1] && argv[2]) {
		snprintf(scratch, sizeof(scratch), "%s.part", argv[1]);
		fd = open(scratch, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
		error = fd < 0 ? errno : copy_all(STDIN_FILENO, fd);
		if (!error && (fchmod(fd, strtoul(argv[2], NULL, 8)) ||
			       rename(scratch, argv[1])))
			error = errno;
	} else if (!strcmp(argv[0], "@wake") && argv[1]) {
		error = wake(argv[1]);
	} else {
		error = ENOSYS;
	}
	if (error)
		dprintf(STDERR_FILENO, "%s: %s\n", argv[1] ? argv[1] : argv[0], strerror(error));
	return error ? 1 : 0;
}

__attribute__((noreturn))
static void child(const char *cwd, char **argv, char **envp, int in, int out, int err, bool tty)
{
	sigset_t none;

	setsid();
	if (tty)
		ioctl(in, TIOCSCTTY, 0);
	dup2(in, STDIN_FILENO);
	dup2(out, STDOUT_FILENO);
	dup2(err, STDERR_FILENO);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	if (chdir(cwd)) {
		dprintf(STDERR_FILENO, "%s: %s\n", cwd, strerror(errno));
		_exit(126);
	}
	if (argv[0][0] == '@') {
		syscall(__NR_close_range, 3, ~0u, 0);
		_exit(builtin(argv));
	}
	environ = envp;
	execvpe(argv[0], argv, envp);
	dprintf(STDERR_FILENO, "%s: %s\n", argv[0], strerror(errno));
	_exit(errno == ENOENT ? 127 : 126);
}

/* Only for our ends; a child's ends stay blocking. */
static void set_nonblocking(int fd)
{
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

static bool open_pty(int *master, int *slave)
{
	int unlock = 0;

	*master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (*master < 0)
		return false;
	if (ioctl(*master, TIOCSPTLCK, &unlock))
		return false;
	*slave = ioctl(*master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	return *slave >= 0;
}

/*
 * START: u8 flags, u32 limit in ms (0: none), u16 number of arguments, then strings that
 * end in NUL: working directory, arguments, environment.
 */
static void start_job(struct port *port, uint32_t id, uint8_t *payload, size_t len)
{
	static char *strings[MAX_ARGS + 2];
	int in[2] = { -1, -1 }, out[2] = { -1, -1 }, err[2] = { -1, -1 };
	size_t count = 0, args;
	struct job *job = NULL;
	const char *failed;
	char **argv;
	bool tty;

	if (len < 9 || payload[len - 1] != '\0' || find_job(id)) {
		refuse(port, id, "malformed start", "");
		return;
	}
	args = payload[5] | payload[6] << 8;
	for (size_t at = 7; at < len && count < MAX_ARGS; at += strlen((char *)payload + at) + 1)
		strings[count++] = (char *)payload + at;
	strings[count] = NULL;
	for (int i = 0; i < MAX_JOBS && !job; i++)
		if (!jobs[i].used)
			job = &jobs[i];
	if (args < 1 || count < args + 1) {
		refuse(port, id, "too many arguments", "");
		return;
	}
	if (!job) {
		refuse(port, id, "too many jobs", "");
		return;
	}
	/* Shift the directory out, to make room for argv's NULL before the environment. */
	argv = strings;
	char *cwd = strings[0];

	memmove(argv, argv + 1, args * sizeof(*argv));
	argv[args] = NULL;

	tty = payload[0] & WITH_PTY;
	failed = tty ? "no terminal: " : "no pipe: ";
	if (tty ? !open_pty(&in[1], &in[0])
		: pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC))
		goto fail;
	failed = "no process: ";
	pid_t pid = fork();

	if (pid == 0)
		child(cwd, argv, strings + args + 1, in[0], tty ? in[0] : out[1],
		      tty ? in[0] : err[1], tty);
	if (pid < 0)
		goto fail;
	close_fd(&in[0]);
	close_fd(&out[1]);
	close_fd(&err[1]);
	*job = (struct job){
		.used = true, .id = id, .port = port, .pid = pid,
		.in = in[1], .out = tty ? in[1] : out[0], .err = err[0],
		.out_left = INT_MAX, .err_left = INT_MAX,
	};
	if (get32(payload + 1))
		job->deadline = now_ms() + get32(payload + 1);
	set_nonblocking(job->in);
	set_nonblocking(job->out);
	if (job->err >= 0)
		set_nonblocking(job->err);
	return;
fail:
	refuse(port, id, failed, strerror(errno));
	for (int i = 0; i < 2; i++) {
		close_fd(&in[i]);
		close_fd(&out[i]);
		close_fd(&err[i]);
	}
}

static void close_input(struct job *job)
{
	if (job->in != job->out)
		close_fd(&job->in);
}

static void feed_input(struct job *job)
{
	while (job->in >= 0 && job->pending_off < job->pending_len) {
		ssize_t n = write(job->in, job->pending + job->pending_off,
				  job->pending_len - job->pending_off);

		if (n < 0 && errno == EAGAIN)
			return;
		if (n < 0) {
			close_input(job);	/* it has no reader any more */
			break;
		}
		job->pending_off += n;
	}
	if (job->pending_len)
		send_frame(job->port, INPUT_TAKEN, job->id, "", 0);
	job->pending_len = job->pending_off = 0;
	if (job->closing)
		close_input(job);
}

/*
 * Take at most *left bytes, and return whether there may be more.  The pipes of a child
 * that has ended are read up to its own last byte, because others may still write to them.
 */
static bool take_output(struct job *job, int *fd, enum kind kind, int *left)
{
	static uint8_t buffer[MAX_PAYLOAD];
	size_t most = *left < MAX_PAYLOAD ? *left : MAX_PAYLOAD;
	ssize_t n;

	if (*fd < 0 || !most)
		return false;
	/* Half of the buffer is for answers that are not streams. */
	if (out_space(job->port) < OUT_SIZE / 2)
		return true;
	n = read(*fd, buffer, most);
	if (n > 0) {
		send_frame(job->port, kind, job->id, buffer, n);
		if (job->exited)
			*left -= n;
		return true;
	}
	if (n < 0 && errno == EAGAIN)
		return false;
	if (*fd == job->in)
		job->in = -1;
	close_fd(fd);
	return false;
}

static int waiting_in(int fd)
{
	int count = 0;

	return fd >= 0 && !ioctl(fd, FIONREAD, &count) ? count : 0;
}

static void finish_job(struct job *job)
{
	uint8_t raw[8];
	int status = WIFSIGNALED(job->status) ? -WTERMSIG(job->status) : WEXITSTATUS(job->status);

	put32(raw, (uint32_t)status);
	put32(raw + 4, job->flags);
	send_frame(job->port, EXIT, job->id, raw, sizeof(raw));
	if (job->in == job->out)
		job->in = -1;
	close_fd(&job->in);
	close_fd(&job->out);
	close_fd(&job->err);
	job->used = false;
}

static void check_job(struct job *job)
{
	int64_t now = now_ms();

	if (job->exited) {
		bool more = take_output(job, &job->out, STDOUT, &job->out_left);

		more |= take_output(job, &job->err, STDERR, &job->err_left);
		if (!more)
			finish_job(job);
		return;
	}
	if (job->deadline && now >= job->deadline) {
		job->flags |= TIMED_OUT;
		job->deadline = 0;
		job->kill_deadline = now + KILL_GRACE_MS;
		kill(-job->pid, SIGKILL);
		kill(job->pid, SIGKILL);
	}
	if (job->kill_deadline && now >= job->kill_deadline) {
		job->flags |= UNKILLABLE;
		job->status = SIGKILL;
		finish_job(job);
	}
}

static void reap(void)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		for (int i = 0; i < MAX_JOBS; i++)
			if (jobs[i].used && jobs[i].pid == pid) {
				jobs[i].exited = true;
				jobs[i].status = status;
				/* A terminal may deliver its bytes later. */
				if (jobs[i].in != jobs[i].out) {
					jobs[i].out_left = waiting_in(jobs[i].out);
					jobs[i].err_left = waiting_in(jobs[i].err);
				}
			}
}

/* ---- the other requests ---- */

static void write_mark(struct port *port, uint32_t id, const uint8_t *payload, size_t len)
{
	char text[512];

	if (len >= sizeof(text))
		len = sizeof(text) - 1;
	memcpy(text, payload, len);
	text[len] = '\0';
	kernel_log("%s", text);
	send_frame(port, MARKED, id, "", 0);
}

static void open_port(struct port *port, uint32_t id, const uint8_t *payload, size_t len)
{
	char path[128];

	if (len >= sizeof(path))
		len = sizeof(path) - 1;
	memcpy(path, payload, len);
	path[len] = '\0';
	close_fd(&ports[1].fd);
	ports[1] = (struct port){ .fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC) };
	send_u32(port, PORT_OPENED, id, ports[1].fd < 0 ? errno : 0);
}

static void flush_for(struct port *port, int64_t limit_ms)
{
	int64_t end = now_ms() + limit_ms;
	struct pollfd wait = { .fd = port->fd, .events = POLLOUT };

	for (port_flush(port); port->out_len && now_ms() < end; port_flush(port))
		poll(&wait, 1, 100);
	if (isatty(port->fd))
		tcdrain(port->fd);
}

/* Return 0 if systemd has begun to stop everything. */
static int ask_systemd(void)
{
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		execlp("systemctl", "systemctl", "--no-block", "poweroff", NULL);
		_exit(127);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return errno;
	return status ? EIO : 0;
}

/* Send the answer, with the error if there was one, before the machine is off. */
static void power_off(struct port *port, uint32_t id)
{
	int error = 0;

	if (getpid() != 1) {
		/* systemd may want to stop us before the answer is out. */
		signal(SIGTERM, SIG_IGN);
		send_u32(port, FAREWELL, id, ask_systemd());
		flush_for(port, 5000);
		_exit(0);
	}
	for (int64_t end = now_ms() + KILL_GRACE_MS; now_ms() < end;) {
		pid_t pid;

		kill(-1, SIGKILL);
		pid = waitpid(-1, NULL, WNOHANG);

		if (pid < 0)
			break;
		if (pid == 0)
			usleep(10000);
	}
	sync();
	if (mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL))
		error = errno;
	send_u32(port, FAREWELL, id, error);
	flush_for(port, 5000);
	reboot(LINUX_REBOOT_CMD_POWER_OFF);
}

static void handle(struct port *port, uint8_t kind, uint32_t id, uint8_t *payload, size_t len)
{
	struct job *job = find_job(id);

	switch (kind) {
	case PING:
		send_hello(port, id);
		break;
	case START:
		start_job(port, id, payload, len);
		break;
	case INPUT:
		if (!job || job->in < 0) {	/* it has ended, so the host must not wait */
			send_frame(port, INPUT_TAKEN, id, "", 0);
			break;
		}
		memcpy(job->pending, payload, len);
		job->pending_len = len;
		job->pending_off = 0;
		feed_input(job);
		break;
	case CLOSE_INPUT:
		if (job) {
			job->closing = true;
			if (!job->pending_len)
				close_input(job);
		}
		break;
	case SIGNAL:
		if (job && !job->exited && len == 1)
			kill(-job->pid, payload[0]);
		break;
	case RESIZE:
		if (job && len == 4) {
			struct winsize size = {
				.ws_row = payload[0] | payload[1] << 8,
				.ws_col = payload[2] | payload[3] << 8,
			};
			ioctl(job->in, TIOCSWINSZ, &size);
		}
		break;
	case MARK:
		write_mark(port, id, payload, len);
		break;
	case OPEN_PORT:
		open_port(port, id, payload, len);
		break;
	case POWER_OFF:
		power_off(port, id);
		break;
	case LOOP:
		for (;;)
			__asm__ volatile("");
	default:
		refuse(port, id, "unknown request", "");
	}
}

/* ---- frames in: bytes that are not in a frame with two good checksums are skipped ---- */

static size_t parse_one(struct port *port, uint8_t *at, size_t left)
{
	size_t len, whole;

	if (memcmp(at, "\xa5" "cpg", left < 4 ? left : 4))
		return 1;
	if (left < HEADER)
		return 0;
	len = at[6] | at[7] << 8;
	if (get32(at + 12) != crc32(at, 12) || len > MAX_PAYLOAD)
		return 1;
	whole = HEADER + len + TRAILER;
	if (left < whole)
		return 0;
	if (get32(at + HEADER + len) != crc32(at + HEADER, len))
		return 1;
	handle(port, at[4], get32(at + 8), at + HEADER, len);
	return whole;
}

static void take_input(struct port *port)
{
	ssize_t n = read(port->fd, port->in + port->in_len, IN_SIZE - port->in_len);
	size_t at = 0;

	if (n <= 0)
		return;
	port->in_len += n;
	while (at < port->in_len) {
		size_t used = parse_one(port, port->in + at, port->in_len - at);

		if (!used)
			break;
		at += used;
	}
	port->in_len -= at;
	memmove(port->in, port->in + at, port->in_len);
}

/* ---- the beginning ---- */

static void mount_at(const char *type, const char *where, const char *options)
{
	mkdir(where, 0755);
	if (mount(type, where, type, 0, options) && errno != EBUSY && errno != ENODEV)
		kernel_log("agent: cannot mount %s: %s", where, strerror(errno));
}

/* Under TCG the kernel boots with one processor: see kernel_command_line() in qemu.py. */
static void start_processors(void)
{
	char path[64];

	for (int cpu = 1;; cpu++) {
		int fd;

		snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%d/online", cpu);
		fd = open(path, O_WRONLY | O_CLOEXEC);
		if (fd < 0)
			return;
		/* The host gets the number of processors, and refuses a guest that lacks one. */
		if (write(fd, "1", 1) != 1)
			kernel_log("agent: cannot start processor %d: %s", cpu, strerror(errno));
		close(fd);
	}
}

static void prepare_system(void)
{
	struct ifreq loopback = { .ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING };
	int fd;

	mount_at("devtmpfs", "/dev", "mode=0755");
	mount_at("proc", "/proc", NULL);
	mount_at("sysfs", "/sys", NULL);
	mount_at("tmpfs", "/run", "mode=0755");
	mount_at("tmpfs", "/tmp", "mode=1777");
	mount_at("tmpfs", "/dev/shm", "mode=1777");
	mount_at("devpts", "/dev/pts", "ptmxmode=0666");
	mount_at("cgroup2", "/sys/fs/cgroup", NULL);
	mount_at("debugfs", "/sys/kernel/debug", NULL);
	if (symlink("/proc/self/fd", "/dev/fd") && errno != EEXIST)
		kernel_log("agent: cannot make /dev/fd: %s", strerror(errno));
	start_processors();
	sethostname("guest", 5);
	umask(022);
	fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd >= 0) {
		ioctl(fd, SIOCSIFFLAGS, &loopback);
		close(fd);
	}
	/* The kernel opened the console as 0, 1 and 2, and it carries kernel text only. */
	fd = open("/dev/null", O_RDWR);
	for (int i = 0; i < 3; i++)
		dup2(fd, i);
	if (fd > 2)
		close(fd);
	mlockall(MCL_CURRENT);
}

static int open_serial(const char *path)
{
	int fd = open(path, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
	struct termios raw;

	if (fd < 0 || tcgetattr(fd, &raw))
		return -1;
	cfmakeraw(&raw);
	raw.c_cflag |= CLOCAL | CREAD;
	cfsetspeed(&raw, B115200);
	tcsetattr(fd, TCSANOW, &raw);
	return fd;
}

static void serve(int signals)
{
	struct pollfd fds[1 + MAX_PORTS + 3 * MAX_JOBS];

	for (;;) {
		bool timed = false, draining = false;
		int count = 0;

		fds[count++] = (struct pollfd){ .fd = signals, .events = POLLIN };
		for (int i = 0; i < MAX_PORTS; i++)
			fds[count++] = (struct pollfd){
				.fd = ports[i].fd,
				.events = POLLIN | (ports[i].out_len ? POLLOUT : 0),
			};
		for (int i = 0; i < MAX_JOBS; i++) {
			struct job *job = &jobs[i];
			bool room;

			if (!job->used)
				continue;
			room = out_space(job->port) >= OUT_SIZE / 2;
			timed |= job->deadline || job->kill_deadline;
			draining |= job->exited && room;
			if (job->in >= 0 && job->pending_len)
				fds[count++] = (struct pollfd){ .fd = job->in, .events = POLLOUT };
			if (job->out >= 0 && room)
				fds[count++] = (struct pollfd){ .fd = job->out, .events = POLLIN };
			if (job->err >= 0 && room)
				fds[count++] = (struct pollfd){ .fd = job->err, .events = POLLIN };
		}
		poll(fds, count, draining ? 0 : timed ? 100 : -1);
		if (fds[0].revents) {
			struct signalfd_siginfo info;

			while (read(signals, &info, sizeof(info)) > 0)
				;
			reap();
		}
		for (int i = 0; i < MAX_PORTS; i++)
			if (ports[i].fd >= 0)
				take_input(&ports[i]);
		for (int i = 0; i < MAX_JOBS; i++) {
			struct job *job = &jobs[i];

			if (!job->used)
				continue;
			if (job->pending_len)
				feed_input(job);
			if (!job->exited) {
				take_output(job, &job->out, STDOUT, &job->out_left);
				take_output(job, &job->err, STDERR, &job->err_left);
			}
			check_job(job);
		}
		for (int i = 0; i < MAX_PORTS; i++)
			if (ports[i].fd >= 0)
				port_flush(&ports[i]);
	}
}

/*
 * Under one of its other names, end the system at once.  Unlike other inits, the agent
 * does not end the other programs first.
 */
static bool named_to_end(const char *name)
{
	const char *slash = strrchr(name, '/');
	int how = LINUX_REBOOT_CMD_POWER_OFF;

	name = slash ? slash + 1 : name;
	if (!strcmp(name, "reboot"))
		how = LINUX_REBOOT_CMD_RESTART;
	else if (strcmp(name, "poweroff") && strcmp(name, "halt"))
		return false;
	sync();
	reboot(how);
	perror(name);
	return true;
}

int main(int argc, char **argv)
{
	sigset_t mask;
	int signals;

	if (argc && named_to_end(argv[0]))
		return 1;
	crc_init();
	if (getpid() == 1)
		prepare_system();
	sigemptyset(&mask);
	sigaddset(&mask, SIGCHLD);
	sigprocmask(SIG_BLOCK, &mask, NULL);
	signal(SIGPIPE, SIG_IGN);
	signals = signalfd(-1, &mask, SFD_NONBLOCK | SFD_CLOEXEC);
	ports[1].fd = -1;
	ports[0].fd = open_serial("/dev/ttyS1");
	if (ports[0].fd < 0) {
		/* The host gets no hello; this line has the reason. */
		kernel_log("agent: cannot open /dev/ttyS1: %s", strerror(errno));
		reboot(LINUX_REBOOT_CMD_POWER_OFF);
	}
	send_hello(&ports[0], 0);
	serve(signals);
}
