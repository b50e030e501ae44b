#include "lifeline.h"

#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

#include "cleanup.h"
#include "platform.h"

static void nap(long ns)
{
    struct timespec span = {.tv_sec = 0, .tv_nsec = ns};
    nanosleep(&span, NULL);
}

static void *hold_on(void *fd)
{
    do
        nap(LIFELINE_PERIOD_NS);
    while (platform_is_locked((int)(intptr_t)fd));
    nap(LIFELINE_GRACE_NS);
    cleanup_all();
    _exit(1);
    return NULL;
}

int lifeline_start(int fd)
{
    pthread_t thread;
    sigset_t all, before;
    /* Signals are for threads that can do something about them. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&thread, NULL, hold_on, (void *)(intptr_t)fd);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!error)
        pthread_detach(thread);
    return error;
}
