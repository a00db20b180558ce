//! A value that is nearly always the ordinary one, of which there are hundreds of thousands: one pointer.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// What has an ordinary value: its default, of which one is enough.
pub trait Ordinary: Default + Clone + Eq + 'static {
    /// The default.
    fn ordinary() -> &'static Self;
}

/// Makes types [`Ordinary`].
macro_rules! ordinary {
    ($($type:ty),*) => {$(
        impl $crate::model::rare::Ordinary for $type {
            fn ordinary() -> &'static Self {
                static ORDINARY: std::sync::LazyLock<$type> = std::sync::LazyLock::new(Default::default);
                &ORDINARY
            }
        }
    )*};
}
pub(crate) use ordinary;

/// The ordinary value, or another one that its copies share.
#[derive(Clone)]
pub struct Rare<T>(Option<Arc<T>>);

impl<T: Ordinary> From<T> for Rare<T> {
    fn from(value: T) -> Self {
        Self((value != *T::ordinary()).then(|| Arc::new(value)))
    }
}

impl<T> Default for Rare<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Ordinary> Deref for Rare<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_deref().unwrap_or_else(|| T::ordinary())
    }
}

impl<T: Ordinary> DerefMut for Rare<T> {
    fn deref_mut(&mut self) -> &mut T {
        Arc::make_mut(self.0.get_or_insert_default())
    }
}

impl<T: Ordinary> PartialEq for Rare<T> {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (None, None) => true,
            // Of one value no part is compared with itself: `Eq` says that it is the same.
            (Some(one), Some(other)) if Arc::ptr_eq(one, other) => true,
            _ => **self == **other,
        }
    }
}

impl<T: Ordinary> Eq for Rare<T> {}

impl<T: Ordinary + fmt::Debug> fmt::Debug for Rare<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    struct Ports {
        named: Vec<u16>,
    }
    ordinary!(Ports);

    #[test]
    fn the_ordinary_value_is_none_and_equal_however_it_was_made() {
        let (mut made, ordinary) = (Rare::from(Ports::default()), Rare::<Ports>::default());
        assert!(made.0.is_none() && made == ordinary);
        made.named.push(80);
        assert_eq!((&*made, &*ordinary), (&Ports { named: vec![80] }, &Ports::default()));
        assert_ne!(made, ordinary);
        let copy = made.clone();
        made.named.clear();
        assert!(
            made == ordinary && copy.named == [80],
            "a copy stays as it was, and an emptied one is the ordinary one"
        );
    }
}
