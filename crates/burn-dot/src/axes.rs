//! [`Axes`]: the axes to contract, as a user writes them.

use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

/// The axes to contract: one for both inputs, a pair, or several pairs.
///
/// Negative axes count from the end of each input's own rank. In JSON they are written `1`, `[1, 2]` and `[[1, 2], [2, 1]]`.
///
/// ```
/// use burn_dot::Axes;
///
/// assert_eq!(Axes::from(1), Axes::Both(1));                                   // axis 1 of both
/// assert_eq!(Axes::from((1, -1)), Axes::Pair(1, -1));                         // axis 1 of lhs, the last of rhs
/// assert_eq!(Axes::from([1, 2]), Axes::Pair(1, 2));                           // Keras' list, the same as a pair
/// assert_eq!(Axes::from([(1, 2), (2, 1)]), Axes::Pairs(vec![(1, 2), (2, 1)])); // two axes at once
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "axes must be an integer, a pair [1, 2], or a list of pairs [[1, 2], [2, 1]]")]
pub enum Axes {
    /// The same axis in both inputs.
    Both(isize),
    /// An axis of lhs and an axis of rhs.
    Pair(isize, isize),
    /// Several pairs, contracted together.
    Pairs(Vec<(isize, isize)>),
}

impl fmt::Display for Axes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Axes::Both(axis) => write!(f, "{axis}"),
            Axes::Pair(lhs, rhs) => write!(f, "({lhs}, {rhs})"),
            Axes::Pairs(pairs) => write!(f, "{pairs:?}"),
        }
    }
}

/// An integer that can name an axis: any of Rust's.
///
/// Burn's `AsIndex` does not fit: it wraps, so that `u64::MAX` would be the last axis, and a trait of another crate does not let a
/// pair of integers be told from a list of pairs.
pub trait AxisIndex: sealed::Sealed {
    /// The axis. A number too large for `isize` becomes the nearest one, which no tensor has.
    fn axis(self) -> isize;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! axis_index {
    ($($int:ty),*) => {$(
        impl sealed::Sealed for $int {}
        impl AxisIndex for $int {
            #[allow(irrefutable_let_patterns, unused_comparisons)] // Infallible for the small types.
            fn axis(self) -> isize {
                isize::try_from(self).unwrap_or(if self < 0 { isize::MIN } else { isize::MAX })
            }
        }
        impl From<$int> for Axes {
            fn from(axis: $int) -> Self {
                Axes::Both(axis.axis())
            }
        }
    )*};
}
axis_index!(i8, i16, i32, i64, i128, isize, u8, u16, u32, u64, u128, usize);

impl<A: AxisIndex, B: AxisIndex> From<(A, B)> for Axes {
    fn from((lhs, rhs): (A, B)) -> Self {
        Axes::Pair(lhs.axis(), rhs.axis())
    }
}

impl<A: AxisIndex> From<[A; 2]> for Axes {
    fn from([lhs, rhs]: [A; 2]) -> Self {
        Axes::Pair(lhs.axis(), rhs.axis())
    }
}

impl<A: AxisIndex, B: AxisIndex> From<Vec<(A, B)>> for Axes {
    fn from(pairs: Vec<(A, B)>) -> Self {
        Axes::Pairs(pairs.into_iter().map(|(lhs, rhs)| (lhs.axis(), rhs.axis())).collect())
    }
}

impl<A: AxisIndex, B: AxisIndex, const N: usize> From<[(A, B); N]> for Axes {
    fn from(pairs: [(A, B); N]) -> Self {
        Axes::from(Vec::from(pairs))
    }
}
