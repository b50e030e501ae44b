/* Files to remove when a signal that nobody handles ends this process.
 *
 * SIGTERM, SIGHUP and SIGINT end a process without any clean-up unless somebody handles them. While paths are
 * registered, and only where the signal had its default action, a handler removes them and then lets the signal do
 * what it would have done. A handler that the program sets later simply replaces this one. */
#ifndef MULTISOCKET_CLEANUP_H
#define MULTISOCKET_CLEANUP_H

/* 0, or -1 when the path is too long or there is no memory. It is copied. */
int cleanup_add(const char *path);
void cleanup_remove(const char *path);
/* Removes what is registered now. For a thread that is about to end the process. */
void cleanup_all(void);

#endif
