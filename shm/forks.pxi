# Forks.

cdef extern from "Python.h":
    void PyOS_BeforeFork()
    void PyOS_AfterFork_Parent()
    void PyOS_AfterFork_Child()

cdef extern from "<unistd.h>":
    pid_t _system_fork "fork"()


def fork():
    """``os.fork``, but without a warning when there are other threads, for those who know what the child does.

    :returns: the process id of the child; 0 in the child.
    :raises OSError: processes or memory are short.
    """
    sys.audit("os.fork")
    PyOS_BeforeFork()
    cdef pid_t pid = _system_fork()
    cdef int error = errno
    if pid == 0:
        PyOS_AfterFork_Child()
        return 0
    PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(error, os.strerror(error))
    return pid
