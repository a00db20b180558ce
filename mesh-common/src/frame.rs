//! What a frame at a pod's veth is: read with bounds, as far as a guard must know it.
//!
//! Strict on purpose: what a pod's own kernel never sends (IPv4 options, routing headers, fragments of TCP) is not
//! read, and what is not read is refused.

use crate::key::{Ip, TCP, UDP, v4_mapped};

/// A frame with its Ethernet header.
pub trait Frame {
    /// `N` bytes from `at` on; `None` when it ends before.
    fn read<const N: usize>(&self, at: u32) -> Option<[u8; N]>;
    /// It has a VLAN tag, which the kernel keeps beside its bytes.
    fn is_tagged(&self) -> bool;
}

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A question or answer about the pod's own link: `from` is the IPv4 address that its sender claims.
    Arp,
    /// Neighbour discovery and multicast listener reports. `from` is what it speaks for: the target of an
    /// advertisement, else the packet's source.
    Link,
    /// A TCP segment with its header.
    Tcp,
    /// A UDP datagram, or the fragment with its header.
    Udp,
    /// An ICMP error: `port` and `protocol` are those of the packet that it answers.
    Error,
    /// Any other ICMP.
    Icmp,
    /// A fragment after the first one, of UDP or ICMP.
    Fragment,
    /// Another protocol, or no IP.
    Other,
}

/// What is known of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Its kind.
    pub kind: Kind,
    /// Source address.
    pub from: Ip,
    /// Destination address.
    pub to: Ip,
    /// Source port; zero without ports.
    pub from_port: u16,
    /// Destination port; zero without ports. Of an error: the port that it answers.
    pub port: u16,
    /// IP protocol. Of an error: that of the packet that it answers.
    pub protocol: u16,
    /// TCP: the flags of its header.
    pub flags: u8,
    /// TCP: it carries no data.
    pub empty: bool,
}

/// Flag of a TCP header.
pub const SYN: u8 = 2;
/// Flag of a TCP header.
pub const RST: u8 = 4;
/// Flag of a TCP header.
pub const ACK: u8 = 16;

const ETHERNET: u32 = 14;
const ETHER_TYPE: u32 = 12;
const IP4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IP6: u16 = 0x86dd;
const ICMP: u16 = 1;
const ICMP6: u16 = 58;
/// Extension headers that are walked over.
const HOP_BY_HOP: u8 = 0;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;
/// At most so many of them.
const EXTENSIONS: usize = 3;
/// IPv4 header without options.
const PLAIN: u8 = 0x45;
const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;
/// ICMP: destination unreachable, time exceeded, parameter problem.
const ERRORS4: [u8; 3] = [3, 11, 12];
/// ICMPv6: solicitations of routers and neighbours, advertisement of a neighbour.
const NEIGHBOUR: [u8; 3] = [133, 135, 136];
const ADVERTISEMENT: u8 = 136;
/// ICMPv6: what a host says of the groups that it listens to.
const LISTENER: [u8; 3] = [131, 132, 143];
/// What crossed a router was not sent by a neighbour.
const FROM_NEIGHBOUR: u8 = 255;

impl Packet {
    /// Nothing is known yet.
    pub const NOTHING: Self = Self {
        kind: Kind::Other,
        from: [0; 16],
        to: [0; 16],
        from_port: 0,
        port: 0,
        protocol: 0,
        flags: 0,
        empty: false,
    };

    /// Reads a frame into this; `None` for one that is cut short, tagged, or not as a pod's kernel sends it. In place,
    /// because a kernel program has no room for copies.
    #[inline(always)]
    pub fn read(&mut self, frame: &impl Frame) -> Option<()> {
        *self = Self::NOTHING;
        if frame.is_tagged() {
            return None;
        }
        match u16::from_be_bytes(frame.read(ETHER_TYPE)?) {
            IP4 => self.ip4(frame),
            IP6 => self.ip6(frame),
            ARP => {
                self.kind = Kind::Arp;
                // After hardware and protocol types, lengths, operation and hardware address.
                self.from = v4_mapped(frame.read(ETHERNET + 14)?);
                Some(())
            }
            _ => Some(()),
        }
    }

    #[inline(always)]
    fn ip4(&mut self, frame: &impl Frame) -> Option<()> {
        let header: [u8; 20] = frame.read(ETHERNET)?;
        // A source route is an option: where such a packet goes is not what its header says.
        if header[0] != PLAIN {
            return None;
        }
        self.from = v4_mapped([header[12], header[13], header[14], header[15]]);
        self.to = v4_mapped([header[16], header[17], header[18], header[19]]);
        self.protocol = u16::from(header[9]);
        let fragment = u16::from_be_bytes([header[6], header[7]]);
        if fragment & FRAGMENT_OFFSET != 0 {
            return self.later(ICMP);
        }
        let length = u32::from(u16::from_be_bytes([header[2], header[3]])).saturating_sub(20);
        let first = fragment & MORE_FRAGMENTS != 0;
        self.transport(frame, Payload { at: ETHERNET + 20, length, hop_limit: header[8], first, v4: true })
    }

    #[inline(always)]
    fn ip6(&mut self, frame: &impl Frame) -> Option<()> {
        let head: [u8; 8] = frame.read(ETHERNET)?;
        if head[0] >> 4 != 6 {
            return None;
        }
        self.from = frame.read(ETHERNET + 8)?;
        self.to = frame.read(ETHERNET + 24)?;
        let length = u32::from(u16::from_be_bytes([head[4], head[5]]));
        let mut payload = Payload { at: ETHERNET + 40, length, hop_limit: head[7], first: false, v4: false };
        let mut next = head[6];
        for _ in 0..EXTENSIONS {
            if next != HOP_BY_HOP && next != DESTINATION && next != FRAGMENT {
                break;
            }
            let extension: [u8; 4] = frame.read(payload.at)?;
            let mut size = 8;
            if next == FRAGMENT {
                let place = u16::from_be_bytes([extension[2], extension[3]]);
                if place & !7 != 0 {
                    self.protocol = u16::from(extension[0]);
                    return self.later(ICMP6);
                }
                payload.first = place & 1 != 0;
            } else {
                size += u32::from(extension[1]) * 8;
            }
            next = extension[0];
            payload.at += size;
            payload.length = payload.length.saturating_sub(size);
        }
        self.protocol = u16::from(next);
        self.transport(frame, payload)
    }

    /// A fragment without the ports of its datagram.
    #[inline(always)]
    fn later(&mut self, icmp: u16) -> Option<()> {
        match self.protocol {
            // TCP has no need of fragments: a later one could overwrite the ports of the first.
            TCP => return None,
            UDP => self.kind = Kind::Fragment,
            protocol if protocol == icmp => self.kind = Kind::Fragment,
            _ => {}
        }
        Some(())
    }

    #[inline(always)]
    fn transport(&mut self, frame: &impl Frame, payload: Payload) -> Option<()> {
        match self.protocol {
            TCP => {
                let head: [u8; 14] = frame.read(payload.at)?;
                let header = u32::from(head[12] >> 4) * 4;
                if payload.first || header < 20 {
                    return None;
                }
                self.kind = Kind::Tcp;
                self.from_port = u16::from_be_bytes([head[0], head[1]]);
                self.port = u16::from_be_bytes([head[2], head[3]]);
                self.flags = head[13];
                self.empty = payload.length == header;
                Some(())
            }
            UDP => {
                let head: [u8; 8] = frame.read(payload.at)?;
                self.kind = Kind::Udp;
                self.from_port = u16::from_be_bytes([head[0], head[1]]);
                self.port = u16::from_be_bytes([head[2], head[3]]);
                Some(())
            }
            ICMP if payload.v4 => self.icmp4(frame, payload),
            ICMP6 if !payload.v4 => self.icmp6(frame, payload),
            _ => Some(()),
        }
    }

    #[inline(always)]
    fn icmp4(&mut self, frame: &impl Frame, payload: Payload) -> Option<()> {
        let [kind, ..]: [u8; 8] = frame.read(payload.at)?;
        self.kind = Kind::Icmp;
        if kind != ERRORS4[0] && kind != ERRORS4[1] && kind != ERRORS4[2] {
            return Some(());
        }
        let inner: [u8; 20] = frame.read(payload.at + 8)?;
        let source = v4_mapped([inner[12], inner[13], inner[14], inner[15]]);
        self.answer(frame, &source, inner[9], payload.at + 8 + u32::from(inner[0] & 15) * 4)
    }

    #[inline(always)]
    fn icmp6(&mut self, frame: &impl Frame, payload: Payload) -> Option<()> {
        let [kind, ..]: [u8; 8] = frame.read(payload.at)?;
        self.kind = Kind::Icmp;
        if matches!(kind, 1..=4) {
            let inner: [u8; 8] = frame.read(payload.at + 8)?;
            let source: Ip = frame.read(payload.at + 16)?;
            return self.answer(frame, &source, inner[6], payload.at + 48);
        }
        let neighbour = kind == NEIGHBOUR[0] || kind == NEIGHBOUR[1] || kind == NEIGHBOUR[2];
        let listener = kind == LISTENER[0] || kind == LISTENER[1] || kind == LISTENER[2];
        if payload.first || !neighbour && !listener {
            return Some(());
        }
        // Nobody believes one that crossed a router, so none needs to cross one.
        if payload.hop_limit != if neighbour { FROM_NEIGHBOUR } else { 1 } {
            return None;
        }
        self.kind = Kind::Link;
        if kind == ADVERTISEMENT {
            self.from = frame.read(payload.at + 8)?;
        }
        Some(())
    }

    /// An error goes to whoever sent what it answers, and nowhere else.
    #[inline(always)]
    fn answer(&mut self, frame: &impl Frame, source: &Ip, protocol: u8, at: u32) -> Option<()> {
        if *source != self.to {
            return None;
        }
        self.kind = Kind::Error;
        self.protocol = u16::from(protocol);
        if self.protocol == TCP || self.protocol == UDP {
            self.port = u16::from_be_bytes(frame.read(at)?);
        }
        Some(())
    }
}

/// Where a packet's payload is.
#[derive(Clone, Copy)]
struct Payload {
    at: u32,
    /// Its length by the IP header, zero when that does not say.
    length: u32,
    hop_limit: u8,
    /// It is the first of several fragments.
    first: bool,
    /// Each version of IP has an ICMP of its own.
    v4: bool,
}
