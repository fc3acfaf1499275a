/* A layer between a program and its file system: at a chosen call it returns an error, writes less than it was
 * given, or takes long. Loaded with LD_PRELOAD; the rule is in a file that is mapped into memory.
 *
 * Calls are caught by seccomp, not by the names of functions: a program may make its system calls by itself.
 * The filter traps the calls below unless their sixth argument, which none of them has, is MAGIC; the handler
 * of SIGSYS decides and makes the call again with it. Everything in the handler is a plain system call.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define MAGIC 0x5a17f01d0dd5ba11ULL
#define PATH_MAX_LEN 4096

enum { WRITE = 1, SYNC = 2, OPEN = 4, RENAME = 8, MKDIR = 16, UNLINK = 32, READ = 64, TRUNCATE = 128 };

/* As `Rule` in layer.rs writes it; numbers in the order of the machine. */
struct rule {
    uint32_t armed;
    uint32_t classes;
    int32_t error;   /* 0: none */
    uint32_t skip;   /* so many calls pass first */
    uint32_t times;  /* then so many are struck; 0: all */
    uint32_t delay_ms;
    uint32_t halve;  /* writes take half, and the error, if any, strikes the next call */
    uint32_t seen;
    uint32_t struck;
    uint32_t loaded;
    char reserved[24];
    char part[192];    /* in the path of what is touched */
    char without[192]; /* not in it; empty: anything */
};

static struct rule *rule;

#if defined(__x86_64__)
#define OWN_ARCH AUDIT_ARCH_X86_64
static long call(long nr, long a, long b, long c, long d, long e, long f) {
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
static long argument(const ucontext_t *context, int number) {
    static const int registers[] = {REG_RDI, REG_RSI, REG_RDX, REG_R10, REG_R8};
    return context->uc_mcontext.gregs[registers[number]];
}
static void answer(ucontext_t *context, long result) { context->uc_mcontext.gregs[REG_RAX] = result; }
#elif defined(__aarch64__)
#define OWN_ARCH AUDIT_ARCH_AARCH64
static long call(long nr, long a, long b, long c, long d, long e, long f) {
    register long x8 __asm__("x8") = nr;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
}
static long argument(const ucontext_t *context, int number) { return (long)context->uc_mcontext.regs[number]; }
static void answer(ucontext_t *context, long result) { context->uc_mcontext.regs[0] = (unsigned long)result; }
#else
#error "this layer knows the registers of x86_64 and aarch64"
#endif

static uint32_t class_of(long nr) {
    switch (nr) {
    case SYS_write: case SYS_pwrite64: case SYS_writev: return WRITE;
    case SYS_fsync: case SYS_fdatasync: case SYS_syncfs: case SYS_sync_file_range: return SYNC;
    case SYS_openat: return OPEN;
    case SYS_renameat: case SYS_renameat2:
#ifdef SYS_rename
    case SYS_rename:
#endif
        return RENAME;
    case SYS_mkdirat:
#ifdef SYS_mkdir
    case SYS_mkdir:
#endif
        return MKDIR;
    case SYS_unlinkat: return UNLINK;
    case SYS_pread64: return READ;
    case SYS_ftruncate: return TRUNCATE;
    default: return 0;
    }
}

static size_t path_of_descriptor(long descriptor, char *path) {
    char link[40] = "/proc/self/fd/", digits[20];
    size_t count = 0, at = strlen(link);
    unsigned long rest = (unsigned long)descriptor;
    do digits[count++] = (char)('0' + rest % 10); while ((rest /= 10) > 0);
    while (count > 0) link[at++] = digits[--count];
    link[at] = 0;
    long length = call(SYS_readlinkat, AT_FDCWD, (long)link, (long)path, PATH_MAX_LEN - 1, 0, 0);
    if (length < 0) length = 0;
    path[length] = 0;
    return (size_t)length;
}

static void path_of_name(long directory, const char *name, char *path) {
    size_t at = 0;
    if (name[0] != '/') {
        if ((int)directory == AT_FDCWD) {
            long length = call(SYS_getcwd, (long)path, PATH_MAX_LEN - 1, 0, 0, 0, 0);
            at = length > 0 ? (size_t)length - 1 : 0;
        } else {
            at = path_of_descriptor((int)directory, path);
        }
        path[at++] = '/';
    }
    while (*name && at < PATH_MAX_LEN - 1) path[at++] = *name++;
    path[at] = 0;
}

static int concerns(long nr, const ucontext_t *context) {
    char path[PATH_MAX_LEN];
    long first = argument(context, 0), second = argument(context, 1);
    switch (class_of(nr)) {
    case WRITE: case SYNC: case READ: case TRUNCATE:
        path_of_descriptor((int)first, path);
        break;
    default:
        if (nr == SYS_openat || nr == SYS_renameat || nr == SYS_renameat2 || nr == SYS_mkdirat || nr == SYS_unlinkat)
            path_of_name(first, (const char *)second, path);
        else
            path_of_name(AT_FDCWD, (const char *)first, path);
    }
    return strstr(path, rule->part) && !(rule->without[0] && strstr(path, rule->without));
}

static void handle(int signal, siginfo_t *info, void *opaque) {
    (void)signal;
    ucontext_t *context = opaque;
    long nr = info->si_syscall, size = argument(context, 2);
    int halved = 0;
    if (__atomic_load_n(&rule->armed, __ATOMIC_ACQUIRE) && (rule->classes & class_of(nr)) && concerns(nr, context)) {
        uint32_t seen = __atomic_fetch_add(&rule->seen, 1, __ATOMIC_RELAXED);
        if (seen >= rule->skip && (rule->times == 0 || seen < rule->skip + rule->times)) {
            uint32_t struck = __atomic_fetch_add(&rule->struck, 1, __ATOMIC_RELAXED);
            if (rule->delay_ms) {
                struct timespec rest = {rule->delay_ms / 1000, (rule->delay_ms % 1000) * 1000000L};
                while (call(SYS_nanosleep, (long)&rest, (long)&rest, 0, 0, 0, 0) == -EINTR) {}
            }
            if (rule->halve && nr == SYS_pwrite64 && struck % 2 == 0 && size > 1) {
                halved = 1;
            } else if (rule->error) {
                answer(context, -(long)rule->error);
                return;
            }
        }
    }
    answer(context, call(nr, argument(context, 0), argument(context, 1), halved ? size / 2 : size,
                         argument(context, 3), argument(context, 4), (long)MAGIC));
}

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)(field))
#define TRAPPED(number) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(number), 1, 0), \
                        BPF_STMT(BPF_JMP | BPF_JA, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP)

__attribute__((constructor)) static void load(void) {
    const char *file = getenv("SHAPEFOLD_FAULTS");
    if (!file) return;
    int descriptor = open(file, O_RDWR | O_CLOEXEC);
    if (descriptor < 0) _exit(97);
    rule = mmap(NULL, sizeof(struct rule), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    close(descriptor);
    if (rule == MAP_FAILED) _exit(97);
    struct sigaction action = {0};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESTART;
    if (sigaction(SIGSYS, &action, NULL)) _exit(98);
    struct sock_filter filter[] = {
        LOAD(offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, OWN_ARCH, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        /* The handler's own calls pass. */
        LOAD(offsetof(struct seccomp_data, args[5])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)MAGIC, 0, 3),
        LOAD(offsetof(struct seccomp_data, args[5]) + 4),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(MAGIC >> 32), 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        LOAD(offsetof(struct seccomp_data, nr)),
        TRAPPED(SYS_write), TRAPPED(SYS_pwrite64), TRAPPED(SYS_writev), TRAPPED(SYS_fsync),
        TRAPPED(SYS_fdatasync), TRAPPED(SYS_syncfs), TRAPPED(SYS_sync_file_range), TRAPPED(SYS_openat),
        TRAPPED(SYS_renameat), TRAPPED(SYS_renameat2), TRAPPED(SYS_mkdirat), TRAPPED(SYS_unlinkat),
        TRAPPED(SYS_pread64), TRAPPED(SYS_ftruncate),
#ifdef SYS_rename
        TRAPPED(SYS_rename),
#endif
#ifdef SYS_mkdir
        TRAPPED(SYS_mkdir),
#endif
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof filter[0], filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) _exit(99);
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program)) _exit(99);
    rule->loaded = 1;
}
