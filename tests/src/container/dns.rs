//! The smallest DNS server: addresses of the names that it was given, over UDP (RFC 1035). What a cluster's own DNS
//! says to a program that only knows `/etc/resolv.conf`.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::topology::Node;

/// How soon it notices that it is to end.
const LOOK: Duration = Duration::from_millis(100);
const HEADER: usize = 12;
const TYPE_A: [u8; 2] = [0, 1];

type Names = Arc<Mutex<BTreeMap<String, Ipv4Addr>>>;

/// A running server. Dropped, it is gone.
#[derive(Debug)]
pub struct Dns {
    names: Names,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Dns {
    /// Serves on `node`'s address.
    ///
    /// # Errors
    /// What the system says.
    pub fn start(node: &Node) -> Result<Self> {
        let at = SocketAddr::new(node.ip(), 53);
        let socket = node.netns().run(|| UdpSocket::bind(at))?.with_context(|| at.to_string())?;
        socket.set_read_timeout(Some(LOOK))?;
        let (names, stop) = (Names::default(), Arc::new(AtomicBool::new(false)));
        let (known, stopped) = (Arc::clone(&names), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name("dns".to_owned()).spawn(move || {
            let mut question = [0; 512];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, client)) = socket.recv_from(&mut question) else { continue };
                let asked = question.get(..length).unwrap_or_default();
                if let Some(answer) = answer(asked, &known.lock().unwrap_or_else(PoisonError::into_inner)) {
                    // A client that does not hear it asks again.
                    let _ = socket.send_to(&answer, client);
                }
            }
        })?;
        Ok(Self { names, stop, thread: Some(thread) })
    }

    /// From now on `name` has this address.
    pub fn put(&self, name: &str, address: Ipv4Addr) {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), address);
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("harness: the DNS server's thread panicked");
        }
    }
}

/// The answer to a message with one question; none to anything else.
fn answer(question: &[u8], names: &BTreeMap<String, Ipv4Addr>) -> Option<Vec<u8>> {
    let mut labels = Vec::new();
    let mut at = HEADER;
    loop {
        let length = usize::from(*question.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(question.get(at..at + length)?).to_ascii_lowercase());
        at += length;
    }
    let asked = question.get(HEADER..at + 4)?;
    let found = names.get(&labels.join("."));
    let is_address = question.get(at..at + 2)? == TYPE_A;
    let mut answer = question.get(..2)?.to_vec();
    // A response, authoritative, to a wish for recursion; NXDOMAIN is 3.
    answer.extend([0x85, if found.is_some() { 0x80 } else { 0x83 }]);
    answer.extend([0, 1, 0, u8::from(found.is_some() && is_address), 0, 0, 0, 0]);
    answer.extend(asked);
    if let Some(address) = found.filter(|_| is_address) {
        // The name of the question, class IN, for 5 s, four bytes.
        answer.extend([0xc0, HEADER as u8, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_name_has_its_address_and_another_one_is_none() {
        let names = [("a.bc".to_owned(), Ipv4Addr::new(10, 0, 0, 7))].into();
        let question = |name: &[u8], kind: u8| {
            let head = [0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            [&head, name, &[0, 0, kind, 0, 1]].concat()
        };
        let known = answer(&question(b"\x01A\x02bc", 1), &names).expect("an answer");
        assert!(known.starts_with(&[0xab, 0xcd, 0x85, 0x80, 0, 1, 0, 1]) && known.ends_with(&[0, 4, 10, 0, 0, 7]));
        // Of another family it has none, which is not the same as not being there.
        let other = answer(&question(b"\x01a\x02bc", 28), &names).expect("an answer");
        assert_eq!((other.get(3), other.get(7)), (Some(&0x80), Some(&0)));
        assert_eq!(answer(&question(b"\x01x", 1), &names).expect("an answer").get(3), Some(&0x83));
        assert_eq!(answer(&[0; 12], &names), None);
    }
}
