//! Enrolment before the first container (decision 0010): the chained CNI plugin, and what it and the agent know of one
//! another.
//!
//! `plugin` is a short-lived process of the container runtime's; `book` and `modes` are files that the agent keeps. The
//! plugin asks the agent, and never decides that a pod may pass which nobody has said is outside the mesh.

mod absent;
mod book;
mod call;
mod conflist;
mod error;
mod install;
mod keep;
mod modes;
mod plugin;
mod stamped;

pub use book::{BOOK_NAME, Book};
pub use call::is_static;
pub use install::{InstallError, install_binary, install_entry, install_kubeconfig, is_writable, uninstall};
pub use keep::keep;
pub use modes::{MODES_NAME, Modes, WRITTEN_EVERY, write as write_modes};
pub use plugin::{Outcome, call};
