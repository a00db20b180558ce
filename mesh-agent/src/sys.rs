//! The agent's only unsafe code: system calls that no safe wrapper covers.

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use nix::libc;
use nix::sched::{CloneFlags, setns};
use tokio::io::unix::AsyncFd;

/// `BPF_LINK_UPDATE` of `bpf(2)`.
const BPF_LINK_UPDATE: libc::c_long = 29;
/// `BPF_LINK_DETACH` of `bpf(2)`.
const BPF_LINK_DETACH: libc::c_long = 34;
/// `BPF_OBJ_GET` of `bpf(2)`.
const BPF_OBJ_GET: libc::c_long = 7;
/// `SO_NETNS_COOKIE` of asm-generic/socket.h, since Linux 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The kernel's own number of the first cgroup namespace (proc_ns.h, PROC_CGROUP_INIT_INO).
const INITIAL_CGROUP_NAMESPACE: u64 = 0xefff_fffb;
/// The same of the first pid namespace (PROC_PID_INIT_INO).
const INITIAL_PID_NAMESPACE: u64 = 0xefff_fffc;
/// Of `fsopen(2)`.
const FSOPEN_CLOEXEC: libc::c_uint = 1;
/// Of `fsconfig(2)`.
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
/// Of `fsmount(2)`.
const FSMOUNT_CLOEXEC: libc::c_uint = 1;

/// Of `membarrier(2)`.
const MEMBARRIER_CMD_QUERY: libc::c_int = 0;
/// Of `membarrier(2)`: returns after a grace period of RCU.
const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;

/// The network namespace that the process started in.
static HOME_NETNS: OnceLock<File> = OnceLock::new();

/// Remembers the network namespace of the process. Called first in `main`, before any thread is made.
///
/// # Errors
/// When /proc is not mounted.
pub fn remember_home_netns() -> io::Result<()> {
    let home = File::open("/proc/self/ns/net")?;
    let _ = HOME_NETNS.set(home);
    Ok(())
}

/// Enters the cgroup namespace of process 1, if this process is in one of its own: in a container on cgroup v2 it is.
/// There /proc shows the cgroups of other pods by paths that lead upwards out of its own. Whether it was in another.
///
/// For the calling thread and those that it makes later: called first in `main`.
///
/// # Errors
/// When process 1 may not be looked at (CAP_SYS_PTRACE), or its namespace not be entered (CAP_SYS_ADMIN).
pub fn enter_cgroup_namespace_of_init() -> io::Result<bool> {
    let own = namespace_inode(&File::open("/proc/self/ns/cgroup")?)?;
    if own == INITIAL_CGROUP_NAMESPACE {
        return Ok(false);
    }
    let there = File::open("/proc/1/ns/cgroup")?;
    if namespace_inode(&there)? == own {
        return Ok(false);
    }
    setns(there, CloneFlags::CLONE_NEWCGROUP)?;
    Ok(true)
}

/// Whether process 1 is that of the node: that of the machine, or one of which this process is no part (a container
/// that sees the node's processes, the node itself being a container).
///
/// # Errors
/// Without /proc.
pub fn is_process_one_the_nodes() -> io::Result<bool> {
    if namespace_inode(&File::open("/proc/self/ns/pid")?)? == INITIAL_PID_NAMESPACE {
        return Ok(true);
    }
    Ok(std::fs::read("/proc/1/cgroup")? != std::fs::read("/proc/self/cgroup")?)
}

/// The root of a procfs of our own, mounted nowhere: the runtime of a container makes /proc/sys read-only, not this.
/// Where it can be reached by a path: `/proc/self/fd/N`.
///
/// # Errors
/// Without CAP_SYS_ADMIN, or where a seccomp profile forbids fsopen(2).
pub fn private_procfs() -> io::Result<OwnedFd> {
    // SAFETY: the name is a C string that lives for ever.
    let context = descriptor(unsafe { libc::syscall(libc::SYS_fsopen, c"proc".as_ptr(), FSOPEN_CLOEXEC) })?;
    let none = std::ptr::null::<libc::c_char>();
    // SAFETY: this command takes neither key nor value.
    let made =
        unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), FSCONFIG_CMD_CREATE, none, none, 0_i32) };
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: no pointer is involved.
    descriptor(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, 0_u32) })
}

fn descriptor(returned: libc::c_long) -> io::Result<OwnedFd> {
    match libc::c_int::try_from(returned) {
        // SAFETY: only called with what a system call has just returned that gives a new descriptor.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Runs `f` with the calling thread in `netns`, then brings the thread back.
///
/// `f` must not await and must not start threads: both would run in the wrong place. Sockets made in it
/// belong to `netns` for ever.
///
/// # Errors
/// When the thread cannot enter `netns`. A thread that cannot come back would serve one pod's connections
/// from another pod's network: the process aborts rather than go on.
pub fn within_netns<T>(netns: BorrowedFd<'_>, f: impl FnOnce() -> T) -> io::Result<T> {
    let home = match HOME_NETNS.get() {
        Some(home) => home,
        None => {
            remember_home_netns()?;
            HOME_NETNS.get().ok_or_else(|| io::Error::other("no home network namespace"))?
        }
    };
    setns(netns, CloneFlags::CLONE_NEWNET)?;
    let result = f();
    if setns(home, CloneFlags::CLONE_NEWNET).is_err() {
        std::process::abort();
    }
    Ok(result)
}

/// The kernel's cookie of the network namespace that `socket` was made in; never reused, never zero.
///
/// # Errors
/// On kernels before 5.14.
pub fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `cookie` and `len` are valid for writes of the sizes given, and outlive the call.
    let ret = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, (&raw mut cookie).cast(), &raw mut len)
    };
    if ret == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Sets `IP_BIND_ADDRESS_NO_PORT`: `bind()` to port 0 leaves the port to `connect()`, which may then use the
/// same one for several destinations. Works for both families.
///
/// # Errors
/// On kernels before 4.2.
pub fn set_bind_address_no_port(socket: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: `on` is valid for reads of the size given, and outlives the call.
    let ret = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Replaces the program behind a link in one step: no connection sees the link without a program.
///
/// # Errors
/// ENOLINK and relatives when what the link was attached to is gone.
pub fn bpf_link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link_fd: u32,
        new_prog_fd: u32,
        flags: u32,
        old_prog_fd: u32,
    }
    let attr =
        Attr { link_fd: link.as_raw_fd() as u32, new_prog_fd: program.as_raw_fd() as u32, flags: 0, old_prog_fd: 0 };
    // SAFETY: `attr` has the layout of this command's part of `union bpf_attr`, and outlives the call.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_UPDATE, &raw const attr, size_of::<Attr>()) };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Detaches what a link attached, before this returns. Dropping the last reference does so too, but later.
///
/// # Errors
/// EOPNOTSUPP for links that cannot be detached; ENOLINK and relatives when what it was attached to is gone.
pub fn bpf_link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link_fd: u32,
    }
    let attr = Attr { link_fd: link.as_raw_fd() as u32 };
    // SAFETY: `attr` has the layout of this command's part of `union bpf_attr`, and outlives the call.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_DETACH, &raw const attr, size_of::<Attr>()) };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `CLOCK_MONOTONIC` in nanoseconds, as `bpf_ktime_get_ns` gives it.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| now.tv_sec().unsigned_abs() * 1_000_000_000 + now.tv_nsec().unsigned_abs())
}

/// Waits until every eBPF program that was running when this was called has ended: what it read of a map that was
/// written before is of the past (`MEMBARRIER_CMD_GLOBAL` of membarrier(2): one RCU grace period, about 10 ms).
pub fn wait_for_readers() {
    // SAFETY: no pointer is involved. It fails where `can_wait_for_readers` says no: what follows is then as exact as
    // a scheduling delay.
    unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
}

/// Whether [`wait_for_readers`] waits: not without CONFIG_MEMBARRIER, nor with `nohz_full` processors.
#[must_use]
pub fn can_wait_for_readers() -> bool {
    // SAFETY: no pointer is involved. Gives the commands that work, as bits, or -1.
    let commands = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_QUERY, 0, 0) };
    commands > 0 && commands & libc::c_long::from(MEMBARRIER_CMD_GLOBAL) != 0
}

/// Opens a pinned BPF object.
///
/// # Errors
/// ENOENT when nothing is pinned at `path`.
pub fn bpf_obj_get(path: &Path) -> io::Result<OwnedFd> {
    use std::os::unix::ffi::OsStrExt;
    #[repr(C)]
    struct Attr {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let attr = Attr { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: `attr` has the layout of this command's part of `union bpf_attr`; it and `path` outlive the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const attr, size_of::<Attr>()) };
    match libc::c_int::try_from(fd) {
        // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The inode number that identifies a namespace.
///
/// # Errors
/// What `fstat(2)` says.
pub fn namespace_inode(netns: &impl AsFd) -> io::Result<u64> {
    Ok(nix::sys::stat::fstat(netns.as_fd())?.st_ino)
}

/// Core dumps and ptrace by other processes of the same user are off from here on: keys are in this memory.
///
/// # Errors
/// What `prctl(2)` says.
pub fn set_undumpable() -> io::Result<()> {
    // SAFETY: no pointer is involved.
    let ret = unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Registers a descriptor with the runtime's reactor.
///
/// # Errors
/// What epoll says.
pub fn async_fd<T: AsFd + AsRawFd>(owner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: `AsFd` promises that the descriptor stays open and the same for as long as `owner` lives, and
    // `AsyncFd` owns `owner`.
    unsafe { AsyncFd::register(owner) }.map_err(Into::into)
}

/// What the allocator may keep of freed memory at the top of each of its arenas, and from which size on it asks
/// the kernel for each piece alone. Setting them ends glibc's habit of raising both with every large piece that
/// is freed: after one load of an eBPF object it would keep tens of MiB for ever. No buffer of the data path is
/// as large, so that none costs a system call.
#[cfg(target_env = "gnu")]
const ALLOCATOR_KEEPS_BYTES: libc::c_int = 512 << 10;

/// Bounds what the allocator keeps. To be called first of all, before other threads have arenas.
pub fn bound_allocator() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no other thread runs yet, and any value is valid; mallopt(3).
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, ALLOCATOR_KEEPS_BYTES);
        libc::mallopt(libc::M_MMAP_THRESHOLD, ALLOCATOR_KEEPS_BYTES);
    }
}

/// Gives memory that was freed back to the kernel. Loading an eBPF object reads the kernel's type information,
/// tens of MiB for some milliseconds; glibc would keep them for a next time that may never come.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: may be called at any time from any thread; malloc_trim(3).
    unsafe {
        libc::malloc_trim(0);
    }
}
