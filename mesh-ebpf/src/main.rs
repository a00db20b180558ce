//! mesh-agent's kernel half. Everything happens at `connect()` and at SYN time; no program runs per packet but the
//! guard, which pods ask for.
//!
//! One file per attach point; each collects facts and asks `mesh_common::{decide, egress, guard}`. A
//! program's verdict is its tail expression, and each way out is counted.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod connect;
mod datagram;
mod guard;
mod lookup;
mod maps;
mod outside;
mod peername;
mod probe;
mod read;
mod sockops;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier rejects a program from which this could be reached.
    loop {}
}
