//! The programs and what each is attached to: loaded first, then put into their links.
//!
//! Loading takes milliseconds and can fail, and nobody notices; a link that is there gets its program in one step.
//! Readers before writers: when a program that leaves something (`connect` on the socket, `sock_ops` in the records)
//! comes into force, the one that reads it is of the same object already.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;

use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::{
    CgroupAttachMode, CgroupSockAddr, Program, ProgramError, ProgramFd, SchedClassifier, SkLookup, SockOps,
};

use super::error::CaptureError;
use super::kubelet;
use super::links;
use super::object::program;

pub(super) const LOOKUP: &str = "mesh_lookup";
const SOCK_OPS: &str = "mesh_sockops";
const SOCK_ADDR: [&str; 4] = ["mesh_getpeername4", "mesh_getpeername6", "mesh_connect4", "mesh_connect6"];
/// Attached while a pod needs them: see `egress`.
pub(super) const DATAGRAM: [&str; 4] = ["mesh_sendmsg4", "mesh_sendmsg6", "mesh_peer4", "mesh_peer6"];

/// A kind of program.
pub(super) trait Loads {
    fn load(&mut self) -> Result<(), ProgramError>;
}

macro_rules! loads {
    ($($program:ty)*) => {
        $(impl Loads for $program {
            fn load(&mut self) -> Result<(), ProgramError> {
                self.load()
            }
        })*
    };
}
loads!(CgroupSockAddr SockOps SkLookup SchedClassifier);

/// A kind of program with the directory or namespace that it is attached to.
pub(super) trait Hook: Loads {
    fn fd(&self) -> Result<&ProgramFd, ProgramError>;
    fn attach(&mut self, name: &str, to: &File) -> Result<FdLink, CaptureError>;
}

// Links are always "multi": that flag is refused for them.
const MODE: CgroupAttachMode = CgroupAttachMode::Single;

macro_rules! cgroup_hook {
    ($($program:ty)*) => {
        $(impl Hook for $program {
            fn fd(&self) -> Result<&ProgramFd, ProgramError> {
                self.fd()
            }

            fn attach(&mut self, name: &str, to: &File) -> Result<FdLink, CaptureError> {
                let link = self.attach(to, MODE).and_then(|id| self.take_link(id));
                link.map_err(|e| CaptureError::kernel(name, &e))?.try_into().map_err(|e| CaptureError::kernel(name, &e))
            }
        })*
    };
}
cgroup_hook!(CgroupSockAddr SockOps);

impl Hook for SkLookup {
    fn fd(&self) -> Result<&ProgramFd, ProgramError> {
        self.fd()
    }

    fn attach(&mut self, name: &str, to: &File) -> Result<FdLink, CaptureError> {
        let link = self.attach(to).and_then(|id| self.take_link(id));
        link.map(FdLink::from).map_err(|e| CaptureError::kernel(name, &e))
    }
}

/// Has the kernel check a program. It is in force nowhere yet.
pub(super) fn load<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, CaptureError>
where
    P: Loads,
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program: &mut P = program(ebpf, name)?;
    program.load().map_err(|e| CaptureError::kernel(name, &e))?;
    Ok(program)
}

/// Puts a loaded program into force: into the link pinned at `pin`, or into a new one to `to`.
pub(super) fn install<P: Hook>(program: &mut P, name: &str, pin: &Path, to: &File) -> Result<(), CaptureError> {
    let fd = program.fd().map_err(|e| CaptureError::kernel(name, &e))?.try_clone();
    let fd = fd.map_err(|e| CaptureError::kernel(name, &e))?;
    links::install(name, pin, fd.as_fd(), || program.attach(name, to))
}

/// The programs of the node's pods' cgroup, loaded.
pub(super) struct CgroupHooks(Ebpf);

impl CgroupHooks {
    /// Loads all of them: a kernel that refuses one must not be left with the others in force.
    pub(super) fn load(mut ebpf: Ebpf) -> Result<Self, CaptureError> {
        load::<SockOps>(&mut ebpf, SOCK_OPS)?;
        load::<SockOps>(&mut ebpf, kubelet::PROGRAM)?;
        for name in SOCK_ADDR.into_iter().chain(DATAGRAM) {
            load::<CgroupSockAddr>(&mut ebpf, name)?;
        }
        Ok(Self(ebpf))
    }

    /// Puts all of them into force, and takes out of it what another object had attached besides.
    pub(super) fn install(&mut self, cgroup: &Path, pins: &Path) -> Result<(), CaptureError> {
        let folder = File::open(cgroup);
        let folder = folder.map_err(|source| CaptureError::Cgroup { path: cgroup.to_owned(), source })?;
        let ebpf = &mut self.0;
        install::<SockOps>(program(ebpf, SOCK_OPS)?, SOCK_OPS, &pins.join(SOCK_OPS), &folder)?;
        for name in SOCK_ADDR {
            install::<CgroupSockAddr>(program(ebpf, name)?, name, &pins.join(name), &folder)?;
        }
        for entry in fs::read_dir(pins).into_iter().flatten().filter_map(Result::ok) {
            let (name, pin) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
            if kubelet::is_pin(&name) {
                // Its cgroup is known again within a second; until then the link that is there serves.
                let program: &mut SockOps = program(ebpf, kubelet::PROGRAM)?;
                links::update(&pin, program.fd().map_err(|e| CaptureError::kernel(&name, &e))?.as_fd());
            } else if DATAGRAM.contains(&name.as_str()) {
                let program: &mut CgroupSockAddr = program(ebpf, &name)?;
                links::update(&pin, program.fd().map_err(|e| CaptureError::kernel(&name, &e))?.as_fd());
            } else if name != SOCK_OPS && !SOCK_ADDR.contains(&name.as_str()) {
                tracing::info!(name, "removing the hook of another version");
                links::remove(&pin).map_err(|e| CaptureError::kernel(&name, &e))?;
            }
        }
        Ok(())
    }
}
