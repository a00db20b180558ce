//! Whose an instance is: one agent's at a time, whatever its state directory.
//!
//! The lock is on the instance's directory in the bpffs. It ends with its process, however that ends.

use std::fs::{self, File};
use std::io;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::error::CaptureError;
use super::object::KernelConfig;

/// Held by the agent that the instance belongs to.
#[derive(Debug)]
pub struct Owner {
    _lock: Flock<File>,
}

impl Owner {
    /// `None` while another agent has the instance.
    ///
    /// # Errors
    /// When the instance's directory cannot be had.
    pub fn claim(config: &KernelConfig) -> Result<Option<Self>, CaptureError> {
        let root = config.root();
        let fail = |source| CaptureError::Bpffs { path: config.bpffs.clone(), source };
        match fs::create_dir(&root) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(fail)?,
        }
        match Flock::lock(File::open(&root).map_err(fail)?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(Self { _lock: lock })),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(fail(errno.into())),
        }
    }
}
