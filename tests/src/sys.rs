//! The harness's only unsafe: what runs between fork and exec, and system calls without a safe wrapper.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::mem::size_of;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::socket::{MsgFlags, SockaddrLike, SockaddrStorage, connect, sendto};

/// Makes `command`'s process start in a network namespace and a cgroup, and die with the thread that starts it.
///
/// `cgroup_procs` is the cgroup's `cgroup.procs`, open for writing.
pub fn place(command: &mut Command, netns: Option<OwnedFd>, cgroup_procs: Option<File>) {
    let enter = move || {
        if let Some(netns) = &netns {
            setns(netns, CloneFlags::CLONE_NEWNET)?;
        }
        if let Some(mut procs) = cgroup_procs.as_ref() {
            procs.write_all(b"0")?;
        }
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe functions may run: the closure makes three system
    // calls on descriptors opened before the fork, and neither allocates nor locks.
    unsafe { command.pre_exec(enter) };
}

static SIGNAL_NOTED: AtomicBool = AtomicBool::new(false);

/// Makes SIGINT, SIGTERM and SIGHUP set a flag and nothing else. Programs started later have the default again:
/// handlers, unlike masks, do not survive exec.
///
/// # Errors
/// What the system call says.
pub fn note_signals() -> io::Result<()> {
    extern "C" fn note(_: i32) {
        SIGNAL_NOTED.store(true, Ordering::Release);
    }
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}

/// Whether one of those signals has come.
#[must_use]
pub fn signal_noted() -> bool {
    SIGNAL_NOTED.load(Ordering::Acquire)
}

/// Arguments of `BPF_PROG_QUERY`, as in `union bpf_attr` (linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct ProgQuery {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
}

const BPF_PROG_QUERY: libc::c_long = 16;

/// How many programs are attached for one `enum bpf_attach_type` to `target`: the descriptor of a cgroup or network
/// namespace, or the index of a device of this thread's.
///
/// # Errors
/// What the system call says; `EINVAL` for a type that the kernel does not know.
pub fn attached_programs(target: u32, attach_type: u32) -> io::Result<u32> {
    let mut query = ProgQuery { target_fd: target, attach_type, ..ProgQuery::default() };
    let pointer: *mut ProgQuery = &raw mut query;
    // SAFETY: the pointer is valid for the size given with it, and the kernel writes only inside.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, pointer, size_of::<ProgQuery>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(query.prog_cnt) }
}

/// Arguments of `BPF_OBJ_GET`.
#[repr(C)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Arguments of `BPF_MAP_GET_NEXT_KEY`.
#[repr(C)]
struct NextKey {
    map_fd: u32,
    padding: u32,
    key: u64,
    next_key: u64,
}

const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;
const BPF_OBJ_GET: libc::c_long = 7;

/// The keys of a pinned map, in the map's order.
#[derive(Debug)]
pub struct Keys {
    map: OwnedFd,
    map_type: u32,
    // Always as long as the map's keys are: the kernel writes that many bytes.
    next: Vec<u8>,
    key: Option<Vec<u8>>,
}

impl Keys {
    /// Opens what is pinned at `path`; `None` when that is no map.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(path: &CStr) -> io::Result<Option<Self>> {
        let mut get = ObjGet { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
        let pointer: *mut ObjGet = &raw mut get;
        // SAFETY: both pointers, to the arguments and to the path in them, are valid during the call; the
        // descriptor returned is owned by nobody else.
        let map = unsafe {
            let opened = libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, pointer, size_of::<ObjGet>());
            if opened < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(opened as i32)
        };
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
        let field = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim_start_matches(':').trim().parse::<u32>().ok()
        };
        let (Some(map_type), Some(key_size)) = (field("map_type"), field("key_size")) else { return Ok(None) };
        Ok(Some(Self { map, map_type, next: vec![0; key_size as usize], key: None }))
    }

    /// `enum bpf_map_type`.
    #[must_use]
    pub fn map_type(&self) -> u32 {
        self.map_type
    }
}

impl Iterator for Keys {
    type Item = io::Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut arguments = NextKey {
            map_fd: self.map.as_raw_fd().unsigned_abs(),
            padding: 0,
            key: self.key.as_ref().map_or(0, |key| key.as_ptr() as u64),
            next_key: self.next.as_mut_ptr() as u64,
        };
        let pointer: *mut NextKey = &raw mut arguments;
        // SAFETY: `key` and `next` are as long as the map's keys, which the kernel reads and writes whole.
        let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_GET_NEXT_KEY, pointer, size_of::<NextKey>()) };
        if result == 0 {
            self.key = Some(self.next.clone());
            return self.key.clone().map(Ok);
        }
        let error = io::Error::last_os_error();
        (error.raw_os_error() != Some(libc::ENOENT)).then_some(Err(error))
    }
}

/// A raw packet socket in this thread's network namespace that sees every frame of one interface.
///
/// # Errors
/// What the system calls say.
pub fn packet_socket(interface: u32, buffer_bytes: i32) -> io::Result<OwnedFd> {
    let every_protocol = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: no pointers; the descriptor returned is owned by nobody else.
    let socket = unsafe {
        let raw = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(every_protocol));
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(raw)
    };
    set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &buffer_bytes)?;
    let wait = libc::timeval { tv_sec: 0, tv_usec: 50_000 };
    set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &wait)?;
    // SAFETY: all-zero bytes are a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = every_protocol;
    address.sll_ifindex = interface.cast_signed();
    let pointer: *const libc::sockaddr_ll = &raw const address;
    // SAFETY: the pointer is valid for the length given with it.
    let bound =
        unsafe { libc::bind(socket.as_raw_fd(), pointer.cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t) };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

/// Lets a packet socket's frames past the queues of their device (`PACKET_QDISC_BYPASS` of packet(7)).
///
/// # Errors
/// What the system call says.
pub fn bypass_queues(socket: &OwnedFd) -> io::Result<()> {
    set_option(socket, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &1_i32)
}

fn set_option<T>(socket: &OwnedFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    let pointer: *const T = value;
    // SAFETY: the pointer is valid for the length given with it.
    let done =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, pointer.cast(), size_of::<T>() as libc::socklen_t) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Frames that a packet socket had no room for since the last call.
///
/// # Errors
/// What the system call says.
pub fn packets_dropped(socket: &OwnedFd) -> io::Result<u32> {
    // SAFETY: all-zero bytes are a valid tpacket_stats.
    let mut stats: libc::tpacket_stats = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    let pointer: *mut libc::tpacket_stats = &raw mut stats;
    // SAFETY: both pointers are valid, and the kernel writes at most `length` bytes.
    let done = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_STATISTICS, pointer.cast(), &raw mut length)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(stats.tp_drops) }
}

/// A stream whose `connect()` has returned and whose SYN leaves with the first write (`TCP_FASTOPEN_CONNECT` of
/// tcp(7)). Made in the network namespace of the calling thread, as are those of the functions below.
///
/// # Errors
/// What the system says.
pub fn fast_open_connect(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = tcp_socket(to, libc::IPPROTO_TCP)?;
    set_option(&socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, &1_i32)?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(socket.into())
}

/// A stream connected by `sendto(MSG_FASTOPEN)`: no call of `connect()` at all.
///
/// # Errors
/// What the system says.
pub fn fast_open_send(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = tcp_socket(to, libc::IPPROTO_TCP)?;
    sendto(socket.as_raw_fd(), b"x", &SockaddrStorage::from(to), MsgFlags::from_bits_retain(libc::MSG_FASTOPEN))?;
    Ok(socket.into())
}

/// A stream connected without waiting, and then waited for.
///
/// # Errors
/// What the system says.
pub fn non_blocking_connect(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = tcp_socket(to, libc::IPPROTO_TCP)?;
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(true)?;
    match connect(stream.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let mut wanted = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
    poll(&mut wanted, PollTimeout::from(5_000_u16))?;
    stream.take_error()?.map_or(Ok(stream), Err)
}

/// A Multipath TCP stream (RFC 8684).
///
/// # Errors
/// What the system says.
pub fn multipath_connect(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = tcp_socket(to, libc::IPPROTO_MPTCP)?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(socket.into())
}

/// A stream connected on a socket whose first `connect()`, to a port that nobody listens on, was refused.
///
/// # Errors
/// What the system says of the second one; the first must be refused.
pub fn connect_again(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = tcp_socket(to, libc::IPPROTO_TCP)?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(to.ip(), 9))) {
        Err(Errno::ECONNREFUSED) => {}
        other => return Err(io::Error::other(format!("port 9 answered {other:?}"))),
    }
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(socket.into())
}

/// A stream connected by io_uring(7).
///
/// # Errors
/// What the system says.
pub fn uring_connect(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = tcp_socket(to, libc::IPPROTO_TCP)?;
    let storage = SockaddrStorage::from(to);
    let mut ring = io_uring::IoUring::new(2)?;
    let fd = io_uring::types::Fd(socket.as_raw_fd());
    let entry = io_uring::opcode::Connect::new(fd, storage.as_ptr(), storage.len()).build();
    // SAFETY: the address outlives the wait below, after which the kernel is done with it.
    unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    let result = ring.completion().next().map_or(-libc::EIO, |entry| entry.result());
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(socket.into()) }
}

/// Sends one datagram by io_uring(7), with `IORING_OP_SENDMSG`.
///
/// # Errors
/// What the system says.
pub fn uring_send(socket: &OwnedFd, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
    let storage = SockaddrStorage::from(to);
    let mut data = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: all-zero bytes are a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = storage.as_ptr().cast_mut().cast();
    message.msg_namelen = storage.len();
    message.msg_iov = &raw mut data;
    message.msg_iovlen = 1;
    let mut ring = io_uring::IoUring::new(2)?;
    let entry = io_uring::opcode::SendMsg::new(io_uring::types::Fd(socket.as_raw_fd()), &raw const message).build();
    // SAFETY: message, address and bytes outlive the wait below, after which the kernel is done with them.
    unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    let result = ring.completion().next().map_or(-libc::EIO, |entry| entry.result());
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
}

/// Sends one datagram to an IPv4 address whose family says `AF_UNSPEC`, which udp(7) takes for `AF_INET`.
///
/// # Errors
/// What the system says.
pub fn send_unspecified(socket: &OwnedFd, to: std::net::SocketAddrV4, bytes: &[u8]) -> io::Result<()> {
    let address = libc::sockaddr_in {
        sin_family: libc::AF_UNSPEC as u16,
        sin_port: to.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*to.ip()).to_be() },
        sin_zero: [0; 8],
    };
    let pointer: *const libc::sockaddr_in = &raw const address;
    // SAFETY: both pointers are valid for the lengths given with them.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            0,
            pointer.cast(),
            size_of::<libc::sockaddr_in>() as libc::socklen_t,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets the IPv4 options of a socket's packets, as they stand in the header.
///
/// # Errors
/// What the system says.
pub fn set_ip_options(socket: &OwnedFd, options: &[u8; 8]) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_IP, libc::IP_OPTIONS, options)
}

/// A socket of this family, type and protocol (socket(2)), in this thread's network namespace.
///
/// # Errors
/// What the system says.
pub fn socket(family: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: no pointer is involved.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn tcp_socket(to: SocketAddr, protocol: libc::c_int) -> io::Result<OwnedFd> {
    let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    socket(family, libc::SOCK_STREAM, protocol)
}

/// A descriptor that another process has passed (`SCM_RIGHTS` of unix(7)), to be called once for each.
#[must_use]
pub fn received(descriptor: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made it for this process, and nobody else knows of it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}
