//! Two agents of one instance: whose listeners a pod's connections go to.
//!
//! Both listen inside each pod (`SO_REUSEPORT`), and `sk_lookup` steers to exactly the socket in the map, so that one
//! map update hands a listener over: connections before it are queued at the old one, which still accepts. That map is
//! among those which both agents have (`object`), so it does not matter whose programs are in force.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use mesh_common::key::{LISTENER_OUTBOUND, LISTENER_PLAINTEXT, LISTENER_TUNNEL, ListenerKey};

use super::error::CaptureError;
use super::kernel::{Kernel, Maps};
use super::pod::{EnrolledPod, PodSockets};

/// Second descriptors of a pod's listeners, to steer connections to them again.
///
/// A listener goes on listening until its last descriptor is closed: they must go before the proxy's own.
#[derive(Default)]
pub(super) struct KeptListeners(Mutex<Option<PodSockets>>);

impl KeptListeners {
    fn lock(&self) -> MutexGuard<'_, Option<PodSockets>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn let_go(&self) {
        *self.lock() = None;
    }
}

impl EnrolledPod {
    /// Keeps hold of the pod's listeners, for [`Kernel::take_back`].
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn keep(&self, sockets: &PodSockets) -> io::Result<()> {
        let PodSockets { outbound, tunnel, plaintext } = sockets;
        let kept = PodSockets {
            outbound: outbound.try_clone()?,
            tunnel: tunnel.try_clone()?,
            plaintext: plaintext.try_clone()?,
        };
        *self.kept.lock() = Some(kept);
        Ok(())
    }

    /// Steers the pod's new connections to these listeners: from the next SYN on, to no others.
    pub(super) fn steer_to(&self, sockets: &PodSockets, maps: &mut Maps) -> Result<(), CaptureError> {
        let listeners = [
            (LISTENER_OUTBOUND, &sockets.outbound),
            (LISTENER_TUNNEL, &sockets.tunnel),
            (LISTENER_PLAINTEXT, &sockets.plaintext),
        ];
        for (kind, listener) in listeners {
            let key = ListenerKey { netns_cookie: self.netns.cookie, kind, pad: 0 };
            let inserted = maps.listeners.insert(key, listener.as_raw_fd(), 0);
            inserted.map_err(|e| CaptureError::map("listeners", &e))?;
        }
        Ok(())
    }
}

impl Kernel {
    /// Steers every enrolled pod's connections to this agent again and puts its programs back, after another one that
    /// had begun to take over has ended. The next sync writes whatever else that one has changed.
    ///
    /// # Errors
    /// The first pod or program that could not be put back; the others are all the same.
    pub fn take_back(&self) -> Result<(), CaptureError> {
        let pods: Vec<_> = self.enrolments.lock().values().cloned().collect();
        let mut first_error = Ok(());
        let mut keep = |result: Result<(), CaptureError>| {
            if first_error.is_ok() {
                first_error = result;
            }
        };
        // Connections first: a listener of a process that is gone is in no map any more.
        for pod in &pods {
            if let Some(sockets) = &*pod.kept.lock() {
                keep(pod.steer_to(sockets, &mut self.lock_maps()));
            }
        }
        for pod in &pods {
            keep(self.install_lookup(&pod.netns));
        }
        keep(self.attach());
        self.lock_maps().egress.look_again();
        self.guards.anew();
        self.settle_guards();
        first_error
    }

    /// Lets every listener close as soon as the proxy closes it: the agent is ending.
    pub fn let_listeners_go(&self) {
        for pod in self.enrolments.lock().values() {
            pod.kept.let_go();
        }
    }
}
