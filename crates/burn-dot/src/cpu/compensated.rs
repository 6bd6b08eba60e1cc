//! Sums that keep their rounding errors.

use core::ops::{Add, Sub};

/// A sum, and the rounding errors that it has made so far (Neumaier; <https://doi.org/10.1002/zamm.19740540106>).
#[derive(Clone, Copy, Default)]
pub(super) struct Compensated {
    sum: f64,
    error: f64,
}

impl Compensated {
    #[inline(always)]
    pub fn add(&mut self, x: f64) {
        let (sum, error) = two_sum(self.sum, x);
        self.sum = sum;
        self.error += error;
    }

    #[inline(always)]
    pub fn total(self) -> f64 {
        total(self.sum, self.error)
    }
}

/// [`Compensated::add`] for each element.
#[inline(always)]
pub(super) fn add<R: Copy + Add<Output = R> + Sub<Output = R>>(sums: &mut [R], errors: &mut [R], x: &[R]) {
    for ((sum, error), &x) in sums.iter_mut().zip(errors).zip(x) {
        let (total, rounding) = two_sum(*sum, x);
        *sum = total;
        *error = *error + rounding;
    }
}

/// A sum and its rounding errors. Those of a sum that overflowed are NaN: it stays infinite.
#[inline(always)]
pub(super) fn total<R: PartialOrd + Copy + Add<Output = R>>(sum: R, error: R) -> R {
    let is_nan = error.partial_cmp(&error).is_none();
    if is_nan { sum } else { sum + error }
}

/// `x + y`, and the rounding error of it (Knuth): exact unless the sum overflows.
#[inline(always)]
fn two_sum<T: Copy + Add<Output = T> + Sub<Output = T>>(x: T, y: T) -> (T, T) {
    let sum = x + y;
    let y_part = sum - x;
    let x_part = sum - y_part;
    (sum, (x - x_part) + (y - y_part))
}
