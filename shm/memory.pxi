# Mapped memory.

cdef class _Mapping:
    """A shared-memory segment mapped into this process, until nobody refers to it any more."""

    cdef object __weakref__
    cdef void *base
    cdef size_t size
    cdef int fd

    def __cinit__(self):
        self.base = NULL
        self.fd = -1

    def __dealloc__(self):
        if self.base != NULL:
            munmap(self.base, self.size)
        if self.fd >= 0:
            c_close(self.fd)

    cdef int map(self, object shared_memory) except -1:
        """Maps a posix_ipc.SharedMemory as a whole, and closes its descriptor unless memory is reserved through it."""
        cdef int fd = shared_memory.fd
        cdef size_t size = os.fstat(fd).st_size
        cdef void *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
        if platform_reserve_needs_fd():
            self.fd = fd
        else:
            shared_memory.close_fd()
        if base == MAP_FAILED:
            raise OutOfSharedMemory(
                f"could not map {size} bytes of shared memory: the limit of address space or of mappings"
                " (vm.max_map_count) is reached"
            )
        self.base = base
        self.size = size
        return 0


cdef object _create_memory(str name, uint64_t size):
    try:
        return posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600, size=size)
    except posix_ipc.ExistentialError:
        raise FileExistsError(f"shared memory {name} exists already: take another name, or unlink it") from None
    except (OSError, posix_ipc.Error) as error:
        raise OutOfSharedMemory(f"could not create {size} bytes of shared memory named {name}: {error}") from error


cdef int _check_made(int rc, uint64_t size) except -1:
    """After a segment or an arena was initialised, which needs so many bytes."""
    if rc == RING_NO_MEMORY:
        raise _no_memory(size)
    if rc != RING_OK:
        raise NotSupported("this system has no robust process-shared mutexes")
    return 0


cdef object _no_memory(uint64_t size):
    try:
        stat = os.statvfs("/dev/shm")
        found = f"{stat.f_bavail * stat.f_frsize} bytes are free in /dev/shm"
    except OSError:
        found = "none is free"
    return OutOfSharedMemory(
        f"{size} bytes of shared memory were asked for, {found}. Enlarge it (a container's --shm-size, or"
        " mount -o remount,size=... /dev/shm), or let queues be shorter (recv_queue_bytes)"
    )
