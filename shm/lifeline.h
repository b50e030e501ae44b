/* Ends this process soon after another one has ended, whatever this one does meanwhile: a thread that needs no GIL.
 *
 * A process can be asked to end in an orderly way; this is for the one that cannot answer, because it computes. */
#ifndef MULTISOCKET_LIFELINE_H
#define MULTISOCKET_LIFELINE_H

/* fd: of a file that the other process keeps locked while it lives (platform_is_locked). When the lock is gone, this
 * process has LIFELINE_GRACE_NS to end by itself. 0 or an errno. Not inherited by fork; over once fd is closed. */
int lifeline_start(int fd);

#define LIFELINE_PERIOD_NS 150000000
#define LIFELINE_GRACE_NS 350000000

#endif
