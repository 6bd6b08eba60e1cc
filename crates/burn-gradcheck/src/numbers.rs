//! What the checks share: random signs, rounding, and where lists of numbers differ.

use burn_core::tensor::{DType, TensorData};
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Signed numbers of size about one, the same for the same seed.
pub(crate) fn signed(seed: u64, count: usize) -> Vec<f64> {
    let mut random = StdRng::seed_from_u64(seed);
    (0..count)
        .map(|_| {
            let size = random.random_range(0.5..1.5);
            if random.random() { size } else { -size }
        })
        .collect()
}

/// How a dtype rounds.
pub(crate) fn epsilon(dtype: DType) -> f64 {
    dtype.finfo().expect("a float dtype").epsilon
}

/// A number as the dtype holds it.
pub(crate) fn round_to(dtype: DType, values: &[f64]) -> Vec<f64> {
    TensorData::new(values.to_vec(), [values.len()]).convert_dtype(dtype).iter::<f64>().collect()
}

/// A fixed random signed cotangent, as the dtype holds it, for the outputs that are finite.
pub(crate) fn cotangent(seed: u64, dtype: DType, outputs: &[f64]) -> Vec<f64> {
    let signs = round_to(dtype, &signed(seed, outputs.len()));
    signs.into_iter().zip(outputs).map(|(v, output)| if output.is_finite() { v } else { 0.0 }).collect()
}

/// Where two lists first differ by more than a tolerance; NaN equals NaN.
pub(crate) fn first_difference(a: &[f64], b: &[f64], tolerance: f64) -> Option<usize> {
    a.iter().zip(b).position(|(a, b)| !((a - b).abs() <= tolerance || (a.is_nan() && b.is_nan()) || a == b))
}

/// A gradient that is zero by a law of the function (a bias before a softmax) is rounding noise of its neighbours; it is judged
/// against this part of the largest of them.
pub(crate) const OTHERS: f64 = 0.1;

/// The largest finite size.
pub(crate) fn largest(values: &[f64]) -> f64 {
    values.iter().filter(|value| value.is_finite()).fold(0.0, |largest, value| largest.max(value.abs()))
}

/// The index of a number in row-major order.
pub(crate) fn index_of(i: usize, shape: &[usize]) -> Vec<usize> {
    let mut rest = i;
    let mut index: Vec<usize> = shape.iter().rev().map(|size| (rest % size, rest /= size).0).collect();
    index.reverse();
    index
}

/// The largest power of two not above a positive number.
pub(crate) fn power_of_two(x: f64) -> f64 {
    2f64.powi(x.log2().floor() as i32)
}
