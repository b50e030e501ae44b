/* The lifeline: a process ends after another one, whatever it does meanwhile, and not before. */
#include "native.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/wait.h>

#include "../../shm/cleanup.h"
#include "../../shm/lifeline.h"

static char guard[64], left_over[64];
static _Atomic uint32_t *ready; /* how many processes are */

static int make_file(char *path)
{
    strcpy(path, "/tmp/multisocket-test-XXXXXX");
    int fd = mkstemp(path);
    CHECK(fd >= 0, "no file");
    return fd;
}

static void await_ready(uint32_t n)
{
    while (atomic_load(ready) < n)
        nap(MS);
}

/* Keeps the file locked until it is killed. */
static pid_t start_boss(void)
{
    pid_t child = fork();
    CHECK(child >= 0, "no process");
    if (child)
        return child;
    give_time(60);
    int fd = open(guard, O_RDWR);
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    CHECK(fd >= 0 && fcntl(fd, F_SETLK, &lock) == 0, "no lock");
    atomic_fetch_add(ready, 1);
    for (;;)
        pause();
}

/* Computes, and hears no signal that can be blocked. */
static void start_lifeline(void)
{
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    CHECK(cleanup_add(left_over) == 0, "no memory");
    CHECK(lifeline_start(open(guard, O_RDWR)) == 0, "no thread");
}

static pid_t start_worker(bool forks)
{
    pid_t child = fork();
    CHECK(child >= 0, "no process");
    if (child)
        return child;
    start_lifeline();
    if (forks && fork() == 0) { /* the child of its own has none */
        nap(3 * ((int64_t)LIFELINE_PERIOD_NS + LIFELINE_GRACE_NS));
        atomic_fetch_add(ready, 10);
        _exit(0);
    }
    atomic_fetch_add(ready, 1);
    for (;;)
        platform_pause();
}

static bool is_running(pid_t child)
{
    int status;
    return waitpid(child, &status, WNOHANG) == 0;
}

static void ends_with_boss(void)
{
    atomic_store(ready, 0);
    close(make_file(guard));
    close(make_file(left_over));
    pid_t boss = start_boss();
    await_ready(1);
    pid_t worker = start_worker(true);
    await_ready(2);
    nap(2 * (int64_t)LIFELINE_PERIOD_NS + LIFELINE_GRACE_NS);
    CHECK(is_running(worker), "it ended before the other one");
    CHECK(access(left_over, F_OK) == 0, "the file went before the process");
    kill(boss, SIGKILL);
    int status;
    CHECK(waitpid(boss, &status, 0) == boss && waitpid(worker, &status, 0) == worker, "no child");
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 1, "it ended with status %x", (unsigned)status);
    CHECK(access(left_over, F_OK) != 0, "the file is left behind");
    await_ready(12);
    unlink(guard);
}

/* The other one is dead before the lifeline starts. */
static void ends_at_once(void)
{
    close(make_file(guard));
    close(make_file(left_over));
    pid_t worker = start_worker(false);
    int status;
    CHECK(waitpid(worker, &status, 0) == worker, "no child");
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 1, "it ended with status %x", (unsigned)status);
    unlink(guard);
}

/* The process has closed the file, or has another one at its place: that tells nothing of the other process. */
static void lost_file(bool has_other)
{
    close(make_file(guard));
    close(make_file(left_over));
    atomic_store(ready, 0);
    pid_t boss = start_boss();
    await_ready(1);
    pid_t worker = fork();
    CHECK(worker >= 0, "no process");
    if (worker == 0) {
        int fd = open(guard, O_RDWR);
        CHECK(lifeline_start(fd) == 0, "no thread");
        CHECK(close(fd) == 0, "no file");
        CHECK(!has_other || open(left_over, O_RDWR) == fd, "another number");
        nap(3 * (int64_t)LIFELINE_PERIOD_NS + LIFELINE_GRACE_NS);
        _exit(7);
    }
    int status;
    CHECK(waitpid(worker, &status, 0) == worker, "no child");
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7, "it ended with status %x", (unsigned)status);
    kill(boss, SIGKILL);
    CHECK(waitpid(boss, &status, 0) == boss, "no child");
    unlink(guard);
    unlink(left_over);
}

static void lives_without_file(void)
{
    lost_file(false);
}

static void lives_with_other_file(void)
{
    lost_file(true);
}

int main(void)
{
    int fd;
    ready = map_shared(PAGE, &fd);
    run_test("ends_with_boss", ends_with_boss, 60);
    run_test("ends_at_once", ends_at_once, 60);
    run_test("without_file", lives_without_file, 60);
    run_test("with_other_file", lives_with_other_file, 60);
    return 0;
}
