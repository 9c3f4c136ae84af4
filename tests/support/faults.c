/* Fails the N-th change of a file below a folder, or from the N-th on all of them: loaded before the C library, armed by the process itself.
 *
 * What counts as a change: write, rename, link, fsync, truncate, and the creation of a file, of whatever thread. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, ERROR, FULL, KILL, STAYS_FULL };

static char root[PATH_MAX];
static size_t root_length;
static _Atomic long changes;
static long wanted;
static int mode;
static _Atomic int struck;

void fault_arm(const char *folder, long number, int how) {
    strncpy(root, folder, sizeof root - 1);
    root_length = strlen(root);
    changes = 0;
    struck = 0;
    wanted = number;
    mode = how;
}

long fault_changes(void) { return changes; }
int fault_struck(void) { return struck; }

static int below(const char *path) {
    return mode != OFF && path && strncmp(path, root, root_length) == 0;
}

static int is_below(int fd) {
    char link[64], path[PATH_MAX];
    if (mode == OFF)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return below(path);
}

/* Whether this change is the one to fail; does not return where the process is to die. */
static int fails(int counts) {
    if (!counts || ++changes < wanted || (changes > wanted && mode != STAYS_FULL))
        return 0;
    struck = 1;
    if (mode == KILL)
        kill(getpid(), SIGKILL);
    errno = mode == ERROR ? EIO : ENOSPC;
    return 1;
}

#define REAL(name, ...) ((typeof(&name))dlsym(RTLD_NEXT, #name))(__VA_ARGS__)

ssize_t write(int fd, const void *data, size_t n) { return fails(is_below(fd)) ? -1 : REAL(write, fd, data, n); }
ssize_t writev(int fd, const struct iovec *v, int n) { return fails(is_below(fd)) ? -1 : REAL(writev, fd, v, n); }
ssize_t pwrite(int fd, const void *data, size_t n, off_t at) {
    return fails(is_below(fd)) ? -1 : REAL(pwrite, fd, data, n, at);
}
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) {
    return fails(is_below(fd)) ? -1 : REAL(pwrite64, fd, data, n, at);
}
int fsync(int fd) { return fails(is_below(fd)) ? -1 : REAL(fsync, fd); }
int fdatasync(int fd) { return fails(is_below(fd)) ? -1 : REAL(fdatasync, fd); }
int ftruncate(int fd, off_t n) { return fails(is_below(fd)) ? -1 : REAL(ftruncate, fd, n); }
int ftruncate64(int fd, off64_t n) { return fails(is_below(fd)) ? -1 : REAL(ftruncate64, fd, n); }
int rename(const char *from, const char *to) { return fails(below(to)) ? -1 : REAL(rename, from, to); }
int renameat(int a, const char *from, int b, const char *to) {
    return fails(below(to)) ? -1 : REAL(renameat, a, from, b, to);
}
int renameat2(int a, const char *from, int b, const char *to, unsigned int flags) {
    return fails(below(to)) ? -1 : REAL(renameat2, a, from, b, to, flags);
}
int link(const char *from, const char *to) { return fails(below(to)) ? -1 : REAL(link, from, to); }
int linkat(int a, const char *from, int b, const char *to, int flags) {
    return fails(below(to)) ? -1 : REAL(linkat, a, from, b, to, flags);
}

static mode_t mode_of(int flags, va_list rest) { return flags & O_CREAT ? va_arg(rest, mode_t) : 0; }

#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...) {                                                                       \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t access = mode_of(flags, rest);                                                                          \
        va_end(rest);                                                                                                  \
        return fails((flags & O_CREAT) && below(path)) ? -1 : REAL(name, path, flags, access);                         \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                                                   \
    int name(int folder, const char *path, int flags, ...) {                                                           \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t access = mode_of(flags, rest);                                                                          \
        va_end(rest);                                                                                                  \
        return fails((flags & O_CREAT) && below(path)) ? -1 : REAL(name, folder, path, flags, access);                 \
    }
OPENAT(openat)
OPENAT(openat64)
