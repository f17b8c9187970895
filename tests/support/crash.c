/* Kills its process at its n-th call that changes anything outside of it: a file, a folder, a connection.
 *
 * Loaded by LD_PRELOAD and asleep until crash_arm(). Calls of all threads are counted together, which strace's
 * `inject=CALL:when=N` does not do: it counts each thread for itself, so that a worker's calls hide behind the main thread's.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

struct shared { /* with the process that watches */
    _Atomic long calls;
    char fatal[24]; /* the call at which it ended */
};

static struct shared *watched;
static long fatal_call;
static int torn;

void crash_arm(struct shared *shared, long at, int tear) {
    watched = shared;
    fatal_call = at;
    torn = tear;
}

/* Whether the call goes on. Only a torn write or send comes back with 0, to do half of its work before dying(). */
static int goes_on(const char *name, int tears) {
    if (!watched || atomic_fetch_add(&watched->calls, 1) + 1 != fatal_call)
        return 1;
    strncpy(watched->fatal, name, sizeof watched->fatal - 1);
    if (torn && tears)
        return 0;
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

static void dying(void) {
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

#define PLAIN(type, name, parameters, arguments, ...) \
    type name parameters { \
        REAL(type, #name, __VA_ARGS__); \
        goes_on(#name, 0); \
        return real arguments; \
    }

PLAIN(int, rename, (const char *a, const char *b), (a, b), const char *, const char *)
PLAIN(int, renameat, (int d, const char *a, int e, const char *b), (d, a, e, b), int, const char *, int, const char *)
PLAIN(int, link, (const char *a, const char *b), (a, b), const char *, const char *)
PLAIN(int, linkat, (int d, const char *a, int e, const char *b, int f), (d, a, e, b, f), int, const char *, int, const char *, int)
PLAIN(int, symlink, (const char *a, const char *b), (a, b), const char *, const char *)
PLAIN(int, unlink, (const char *a), (a), const char *)
PLAIN(int, unlinkat, (int d, const char *a, int f), (d, a, f), int, const char *, int)
PLAIN(int, rmdir, (const char *a), (a), const char *)
PLAIN(int, mkdir, (const char *a, mode_t m), (a, m), const char *, mode_t)
PLAIN(int, mkdirat, (int d, const char *a, mode_t m), (d, a, m), int, const char *, mode_t)
PLAIN(int, chmod, (const char *a, mode_t m), (a, m), const char *, mode_t)
PLAIN(int, fchmod, (int d, mode_t m), (d, m), int, mode_t)
PLAIN(int, fsync, (int d), (d), int)
PLAIN(int, fdatasync, (int d), (d), int)
PLAIN(int, ftruncate64, (int d, off64_t n), (d, n), int, off64_t)
PLAIN(int, posix_fallocate64, (int d, off64_t o, off64_t n), (d, o, n), int, off64_t, off64_t)
PLAIN(int, connect, (int d, const struct sockaddr *a, socklen_t n), (d, a, n), int, const struct sockaddr *, socklen_t)
PLAIN(ssize_t, sendmsg, (int d, const struct msghdr *m, int f), (d, m, f), int, const struct msghdr *, int)
PLAIN(ssize_t, recv, (int d, void *b, size_t n, int f), (d, b, n, f), int, void *, size_t, int)
PLAIN(ssize_t, copy_file_range, (int d, off64_t *o, int e, off64_t *p, size_t n, unsigned f), (d, o, e, p, n, f), int, off64_t *, int, off64_t *, size_t, unsigned)

/* Opening for reading changes nothing: imports do it thousands of times. */
#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(int, #name, const char *, int, ...); \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = va_arg(more, mode_t); \
        va_end(more); \
        if ((flags & O_ACCMODE) != O_RDONLY) goes_on(#name, 0); \
        return real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        REAL(int, #name, int, const char *, int, ...); \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = va_arg(more, mode_t); \
        va_end(more); \
        if ((flags & O_ACCMODE) != O_RDONLY) goes_on(#name, 0); \
        return real(folder, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

/* What is printed is nobody's state. */
ssize_t write(int d, const void *bytes, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    if (d > 2 && !goes_on("write", size > 1)) {
        real(d, bytes, size / 2);
        dying();
    }
    return real(d, bytes, size);
}

ssize_t pwrite64(int d, const void *bytes, size_t size, off64_t at) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    if (!goes_on("pwrite64", size > 1)) {
        real(d, bytes, size / 2, at);
        dying();
    }
    return real(d, bytes, size, at);
}

ssize_t send(int d, const void *bytes, size_t size, int flags) {
    REAL(ssize_t, "send", int, const void *, size_t, int);
    if (!goes_on("send", size > 1)) {
        real(d, bytes, size / 2, flags);
        dying();
    }
    return real(d, bytes, size, flags);
}

ssize_t sendto(int d, const void *bytes, size_t size, int flags, const struct sockaddr *to, socklen_t n) {
    REAL(ssize_t, "sendto", int, const void *, size_t, int, const struct sockaddr *, socklen_t);
    if (!goes_on("sendto", size > 1)) {
        real(d, bytes, size / 2, flags, to, n);
        dying();
    }
    return real(d, bytes, size, flags, to, n);
}
