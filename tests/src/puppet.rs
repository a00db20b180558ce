//! Sockets of a pod in the test's own hands: a process of the pod makes them, and passes them here.
//!
//! So a case drives both ends of a connection step by step, and the kernel sees the pod's process connect and listen.

use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use crate::pod::Pod;
use crate::process::Process;
use crate::{dial, programs, sys, wait};

/// A puppet does what it is told within this; also a connect to where nobody answers.
const WITHIN: Duration = Duration::from_secs(20);

/// A process in a pod that makes sockets for the test.
#[derive(Debug)]
pub struct Puppet {
    _process: Process,
    strings: UnixStream,
}

impl Puppet {
    /// Starts one in `pod`.
    ///
    /// # Errors
    /// When it is not there in time.
    pub fn new(pod: &Pod) -> Result<Self> {
        let path = pod.folder().join("puppet");
        let mut command = std::process::Command::new(programs::sample()?);
        command.arg("puppet").arg("--at").arg(&path);
        let process = pod.spawn("puppet", command)?;
        let strings = wait::until("the puppet is there", WITHIN, || Ok(UnixStream::connect(&path)?))?;
        strings.set_read_timeout(Some(WITHIN))?;
        Ok(Self { _process: process, strings })
    }

    /// A stream of the pod to `to`; the inner error is what `connect()` said.
    ///
    /// # Errors
    /// When the puppet does not answer.
    pub fn connect(&self, to: SocketAddr) -> Result<io::Result<TcpStream>> {
        self.connect_by(0, to)
    }

    /// The same by one of [`dial::WAYS`].
    ///
    /// # Errors
    /// When the puppet does not answer.
    pub fn connect_by(&self, way: usize, to: SocketAddr) -> Result<io::Result<TcpStream>> {
        Ok(self.pull(&format!("{way} {to}"))?.map(TcpStream::from))
    }

    /// A listener of the pod on every address of both families.
    ///
    /// # Errors
    /// When the puppet does not answer, or cannot listen.
    pub fn listen(&self, port: u16) -> Result<TcpListener> {
        let pulled = self.pull(&format!("listen {port}"))?;
        Ok(TcpListener::from(pulled.with_context(|| format!("cannot listen on port {port}"))?))
    }

    fn pull(&self, line: &str) -> Result<io::Result<OwnedFd>> {
        writeln!(&self.strings, "{line}")?;
        let mut errno = [0; 4];
        let mut space = nix::cmsg_space!(RawFd);
        let mut data = [IoSliceMut::new(&mut errno)];
        let fd = self.strings.as_raw_fd();
        let received = recvmsg::<()>(fd, &mut data, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)
            .with_context(|| format!("the puppet does not answer `{line}`"))?;
        ensure!(received.bytes == 4, "the puppet has ended at `{line}`");
        for message in received.cmsgs()? {
            if let ControlMessageOwned::ScmRights(descriptors) = message
                && let Some(descriptor) = descriptors.first()
            {
                return Ok(Ok(sys::received(*descriptor)));
            }
        }
        Ok(Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno))))
    }
}

/// The puppet's own side: does what one test says by a socket at `path`, until the test is gone.
///
/// # Errors
/// What the system says; not what becomes of a connect.
pub fn serve(path: &Path, listen: fn(u16) -> Result<TcpListener>) -> Result<()> {
    let listener = UnixListener::bind(path).with_context(|| format!("cannot listen at {}", path.display()))?;
    let (strings, _) = listener.accept()?;
    for line in BufReader::new(strings.try_clone()?).lines() {
        let line = line?;
        let (what, at) = line.split_once(' ').with_context(|| format!("`{line}`"))?;
        let made: io::Result<OwnedFd> = match what.parse().ok().and_then(|way: usize| dial::WAYS.get(way)) {
            Some((_, way)) => way(at.parse()?).map(OwnedFd::from),
            None => listen(at.parse()?).map(OwnedFd::from).map_err(io::Error::other),
        };
        let errno = made.as_ref().err().map_or(0, |error| error.raw_os_error().unwrap_or(0)).to_ne_bytes();
        let descriptors: Vec<RawFd> = made.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let rights: &[ControlMessage<'_>] = if descriptors.is_empty() { &[] } else { &rights };
        sendmsg::<()>(strings.as_raw_fd(), &[IoSlice::new(&errno)], rights, MsgFlags::empty(), None)?;
    }
    Ok(())
}
