//! The buffer that all connections of a worker share: each has it within one poll only.

use std::cell::{RefCell, RefMut};
use std::ops::{Deref, DerefMut};

/// What stands in it between two borrowers, in debug builds: bytes that one of them should have kept are not there for
/// it any more, and whatever test reads them finds that.
#[cfg(debug_assertions)]
const NOBODYS: u8 = 0xa5;

/// A buffer that is lent.
#[derive(Debug)]
pub(in crate::proxy) struct Scratch(RefCell<Box<[u8]>>);

/// It, lent; given back when dropped.
pub(in crate::proxy) struct Lent<'a>(RefMut<'a, Box<[u8]>>);

impl Scratch {
    /// Of `length` bytes.
    pub(in crate::proxy) fn new(length: usize) -> Self {
        Self(RefCell::new(vec![0; length].into_boxed_slice()))
    }

    /// Lends it. Panics while somebody has it, as [`RefCell::borrow_mut`] does: nobody keeps it over a wait.
    pub(in crate::proxy) fn borrow_mut(&self) -> Lent<'_> {
        Lent(self.0.borrow_mut())
    }
}

impl Deref for Lent<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Lent<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

#[cfg(debug_assertions)]
impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.0.fill(NOBODYS);
    }
}
