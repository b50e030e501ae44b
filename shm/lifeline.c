#include "lifeline.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "cleanup.h"
#include "platform.h"

static void nap(long ns)
{
    struct timespec span = {.tv_sec = 0, .tv_nsec = ns};
    nanosleep(&span, NULL);
}

typedef struct {
    int fd;
    dev_t device;
    ino_t number;
} watched_file;

/* A program may close all descriptors that it does not know, and open its own in their places. */
static int is_still_there(const watched_file *file)
{
    struct stat now;
    return fstat(file->fd, &now) == 0 && now.st_dev == file->device && now.st_ino == file->number;
}

static void *hold_on(void *arg)
{
    watched_file file = *(watched_file *)arg;
    free(arg);
    for (;;) {
        nap(LIFELINE_PERIOD_NS);
        if (!is_still_there(&file))
            return NULL; /* nothing can be told any more */
        if (!platform_is_locked(file.fd) && is_still_there(&file))
            break;
    }
    nap(LIFELINE_GRACE_NS);
    cleanup_all();
    _exit(1);
    return NULL;
}

int lifeline_start(int fd)
{
    pthread_t thread;
    sigset_t all, before;
    struct stat is;
    if (fstat(fd, &is) != 0)
        return errno;
    watched_file *file = malloc(sizeof *file);
    if (!file)
        return ENOMEM;
    *file = (watched_file){.fd = fd, .device = is.st_dev, .number = is.st_ino};
    /* Signals are for threads that can do something about them. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&thread, NULL, hold_on, file);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error)
        free(file);
    else
        pthread_detach(thread);
    return error;
}
