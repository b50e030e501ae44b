# Mapped memory.

cdef class _Mapping:
    """A shared-memory segment mapped into this process, until nobody refers to it any more."""

    # Set before anybody else knows the object. Who uses the memory, in a call or by a pointer, has a reference meanwhile.
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

    cdef int map(self, int fd) except -1:
        """Maps named memory as a whole. Takes its descriptor: it is closed, unless memory is reserved through it."""
        cdef size_t size
        cdef void *base
        try:
            size = os.fstat(fd).st_size
            base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
            if base == MAP_FAILED:
                raise OutOfSharedMemory(
                    f"could not map {size} bytes of shared memory: the limit of address space or of mappings"
                    " (vm.max_map_count) is reached"
                )
            self.base = base
            self.size = size
            if platform_reserve_needs_fd():
                self.fd, fd = fd, -1
        finally:
            if fd >= 0:
                c_close(fd)
        return 0


cdef object _registered(registry, str name, made):
    """Enters what was just made; gives it, or what another thread has entered meanwhile. (Should there be two for one
    name after all, either does.)"""
    with cython.critical_section(registry):
        return _first(registry, name, made)


cdef object _first(registry, str name, made):
    known = registry.get(name)
    if known is None:
        registry[name] = known = made
    return known


cdef list _all_of(registry):
    """Those that are there. Unlike ``values``, other threads may enter some meanwhile."""
    found = [reference() for reference in registry.valuerefs()]
    return [one for one in found if one is not None]


# Named memory: all of it is made, opened and removed here. `posix_ipc` would turn the GIL on where there is none, so
# there the core does it itself.

cdef object _ipc = None
if HAS_GIL:
    import posix_ipc as _ipc


def create_memory(str name not None, uint64_t size=0):
    """Makes shared memory under a new name, for this user only.

    :param name: like ``/jobs``.
    :param size: bytes.
    :returns: a file descriptor, which is the caller's to close.
    :raises FileExistsError: the name is in use.
    :raises OutOfSharedMemory: the system gives none.
    """
    try:
        return _create_memory(name, size)
    except OSError as error:
        if not os.path.isdir("/dev/shm"):
            raise OutOfSharedMemory("there is no /dev/shm (mount -t tmpfs tmpfs /dev/shm)") from None
        if isinstance(error, FileExistsError):
            raise FileExistsError(f"shared memory {name} exists already: take another name, or unlink it") from None
        raise OutOfSharedMemory(
            f"could not create {size} bytes of shared memory named {name} in /dev/shm: {error}"
        ) from error


cdef object _create_memory(str name, uint64_t size):
    if not HAS_GIL:
        return _descriptor(name, platform_open_memory(os.fsencode(name), True, size))
    try:
        return _ipc.SharedMemory(name, _ipc.O_CREX, mode=0o600, size=size).fd
    except _ipc.Error as error:
        raise _as_os_error(error, name)


def open_memory(str name not None):
    """Opens named shared memory that exists.

    :returns: a file descriptor, which is the caller's to close.
    :raises FileNotFoundError: there is none of that name.
    :raises OSError: it must not be opened, or no descriptor is left.
    """
    if not HAS_GIL:
        return _descriptor(name, platform_open_memory(os.fsencode(name), False, 0))
    try:
        return _ipc.SharedMemory(name).fd
    except _ipc.Error as error:
        raise _as_os_error(error, name, FileNotFoundError) from None


def unlink_memory(str name not None):
    """Removes a name; who has it mapped keeps the memory. A name that is gone is no error.

    :raises OSError: it must not be removed.
    """
    if not HAS_GIL:
        if platform_unlink_memory(os.fsencode(name)) != 0 and errno != ENOENT:
            raise OSError(errno, os.strerror(errno), name)
        return
    try:
        _ipc.unlink_shared_memory(name)
    except _ipc.ExistentialError:
        pass
    except _ipc.Error as error:
        raise _as_os_error(error, name) from None


cdef object _descriptor(str name, int fd):
    if fd >= 0:
        return fd
    if errno == EINVAL or errno == ENAMETOOLONG:
        raise ValueError(f"{name!r} is no name of shared memory: {os.strerror(errno)}")
    raise OSError(errno, os.strerror(errno), name)


cdef object _as_os_error(error, str name, existential=FileExistsError):
    """The error of Python's own for one of posix_ipc's."""
    if isinstance(error, _ipc.ExistentialError):
        return existential(f"{name}: {error}")
    return PermissionError(f"{name}: {error}")


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
