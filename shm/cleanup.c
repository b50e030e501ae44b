#include "cleanup.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Paths longer than this are left to the next process's janitor. */
#define PATH_SIZE 256

/* A list that the handler can walk at any instant: nodes are added in front and never freed, only used again. */
typedef struct node {
    struct node *next;
    _Atomic int used;
    char path[PATH_SIZE];
} node;

static _Atomic(node *) first;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic int owner; /* process id: a forked child must not remove its parent's files */
static _Atomic int installed;

void cleanup_all(void)
{
    if (atomic_load(&owner) == (int)getpid())
        for (node *n = atomic_load(&first); n; n = n->next) {
            if (atomic_load(&n->used))
                unlink(n->path);
        }
}

static void remove_and_die(int number)
{
    cleanup_all();
    signal(number, SIG_DFL);
    raise(number);
}

static void handle_default(int number)
{
    struct sigaction old, ours;
    if (sigaction(number, NULL, &old) != 0 || (old.sa_flags & SA_SIGINFO) || old.sa_handler != SIG_DFL)
        return;
    memset(&ours, 0, sizeof ours);
    ours.sa_handler = remove_and_die;
    sigemptyset(&ours.sa_mask);
    sigaction(number, &ours, NULL);
}

/* In a forked child all that was registered belongs to the parent. Called under the lock. */
static void forget_parents(void)
{
    int me = (int)getpid();
    if (atomic_exchange(&owner, me) == me)
        return;
    for (node *n = atomic_load(&first); n; n = n->next)
        atomic_store(&n->used, 0);
}

static void before_fork(void)
{
    pthread_mutex_lock(&lock);
}

static void after_fork(void)
{
    pthread_mutex_unlock(&lock);
}

static void install(void)
{
    if (atomic_exchange(&installed, 1))
        return;
    handle_default(SIGTERM);
    handle_default(SIGHUP);
    handle_default(SIGINT);
    pthread_atfork(before_fork, after_fork, after_fork);
}

static node *free_node(void)
{
    for (node *n = atomic_load(&first); n; n = n->next)
        if (!atomic_load(&n->used))
            return n;
    node *n = calloc(1, sizeof *n);
    if (!n)
        return NULL;
    n->next = atomic_load(&first);
    atomic_store(&first, n);
    return n;
}

int cleanup_add(const char *path)
{
    if (strlen(path) >= PATH_SIZE)
        return -1;
    pthread_mutex_lock(&lock);
    install();
    forget_parents();
    node *n = free_node();
    if (n) {
        strcpy(n->path, path);
        atomic_store(&n->used, 1);
    }
    pthread_mutex_unlock(&lock);
    return n ? 0 : -1;
}

void cleanup_remove(const char *path)
{
    pthread_mutex_lock(&lock);
    forget_parents();
    for (node *n = atomic_load(&first); n; n = n->next)
        if (atomic_load(&n->used) && strcmp(n->path, path) == 0)
            atomic_store(&n->used, 0);
    pthread_mutex_unlock(&lock);
}
