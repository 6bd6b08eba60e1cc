//! The loops over contiguous elements, each written once over the vectors of a compute dtype and an instruction set.
//!
//! [`mod@sums`] and [`mod@gradients`] are those of rows. Here are the elementwise ones, which matrices and norms need too.

use core::ops::RangeInclusive;

use super::{
    element::{Compute, Element},
    simd::Isa,
};

mod gradients;
mod sums;

pub(super) use gradients::{GradFactors, Pair, gradient_of_sum, gradients};
pub(super) use sums::{SQUARED_ROWS, add_squares, dot, dot_and_squares, dot_in, dot_of_any, short_sums};

/// Bytes from what is read to what is asked for: two pages. One line wakes the processor's own prefetch, which ends at each page's end, and has
/// the page's address found in the meantime.
const AHEAD: usize = 8192;

/// Asks for memory that is read soon after this. Once for each row, or block of a long one, is enough.
#[inline(always)]
pub(super) fn prefetch<S: Isa, T>(isa: S, at: *const T) {
    isa.prefetch(at.cast::<u8>().wrapping_add(AHEAD));
}

/// `sum += a x`.
#[inline(always)]
pub(super) fn axpy<S: Isa, T: Element>(isa: S, sum: &mut [f64], a: f64, x: &[T]) {
    let lanes = S::F64_LANES;
    let many = isa.splat_f64s(a);
    let (mut sums, mut blocks) = (sum.chunks_exact_mut(lanes), x.chunks_exact(lanes));
    for (sum, x) in (&mut sums).zip(&mut blocks) {
        isa.store_f64(isa.mul_add_e_f64s(many, T::load::<f64, S>(isa, x), isa.load_f64(sum)), sum);
    }
    for (sum, x) in sums.into_remainder().iter_mut().zip(blocks.remainder()) {
        *sum += a * x.to_f64();
    }
}

/// `sum += x y`, element by element.
#[inline(always)]
pub(super) fn add_elementwise_products<S: Isa, T: Element>(isa: S, sum: &mut [f64], x: &[T], y: &[T]) {
    let lanes = S::F64_LANES;
    let (mut sums, mut x_blocks, mut y_blocks) = (sum.chunks_exact_mut(lanes), x.chunks_exact(lanes), y.chunks_exact(lanes));
    for ((sum, x), y) in (&mut sums).zip(&mut x_blocks).zip(&mut y_blocks) {
        let product = isa.mul_add_e_f64s(T::load::<f64, S>(isa, x), T::load::<f64, S>(isa, y), isa.load_f64(sum));
        isa.store_f64(product, sum);
    }
    for ((sum, x), y) in sums.into_remainder().iter_mut().zip(x_blocks.remainder()).zip(y_blocks.remainder()) {
        *sum += x.to_f64() * y.to_f64();
    }
}

/// `to = s to − a x`, with an `s` and an `a` for each element.
#[inline(always)]
pub(super) fn project_elementwise<S: Isa, R: Compute>(isa: S, to: &mut [R], s: &[f64], a: &[f64], x: &[R]) {
    let lanes = S::F64_LANES;
    let (mut to_blocks, mut s_blocks, mut a_blocks, mut x_blocks) =
        (to.chunks_exact_mut(lanes), s.chunks_exact(lanes), a.chunks_exact(lanes), x.chunks_exact(lanes));
    for (((to, s), a), x) in (&mut to_blocks).zip(&mut s_blocks).zip(&mut a_blocks).zip(&mut x_blocks) {
        let product = isa.mul_f64s(isa.load_f64(a), R::load::<f64, S>(isa, x));
        let scaled = isa.mul_f64s(isa.load_f64(s), R::load::<f64, S>(isa, to));
        R::store::<f64, S>(isa, isa.sub_f64s(scaled, product), to);
    }
    let rest = s_blocks.remainder().iter().zip(a_blocks.remainder()).zip(x_blocks.remainder());
    for (to, ((s, a), x)) in to_blocks.into_remainder().iter_mut().zip(rest) {
        *to = R::from_f64(s * to.to_f64() - a * x.to_f64());
    }
}

/// Factors for [`project`] in f32. With norms in [`Compute::MATRIX_NORMS`], their products do not overflow, and lose no more than rounding
/// the result does.
const PROJECTIONS: RangeInclusive<f64> = 1e-28..=1e28;

/// `to = s to − a x`, where the norm of `x` is in [`Compute::MATRIX_NORMS`].
#[inline(always)]
pub(super) fn project<S: Isa, R: Compute>(isa: S, to: &mut [R], s: f64, a: f64, x: &[R]) {
    if PROJECTIONS.contains(&s.abs()) && (a == 0.0 || PROJECTIONS.contains(&a.abs())) {
        project_in::<R, S, R>(isa, to, s, a, x);
    } else {
        project_in::<f64, S, R>(isa, to, s, a, x);
    }
}

/// [`project`], in a compute dtype.
#[inline(always)]
fn project_in<A: Compute, S: Isa, R: Compute>(isa: S, to: &mut [R], s: f64, a: f64, x: &[R]) {
    let lanes = A::lanes::<S>();
    let (many_s, many_a) = (A::splat(isa, A::from_f64(s)), A::splat(isa, A::from_f64(-a)));
    let (mut to_blocks, mut x_blocks) = (to.chunks_exact_mut(lanes), x.chunks_exact(lanes));
    for (to, x) in (&mut to_blocks).zip(&mut x_blocks) {
        let scaled = A::mul_vectors(isa, many_s, R::load::<A, S>(isa, to));
        R::store::<A, S>(isa, A::mul_add(isa, many_a, R::load::<A, S>(isa, x), scaled), to);
    }
    for (to, x) in to_blocks.into_remainder().iter_mut().zip(x_blocks.remainder()) {
        *to = R::from_f64(s * to.to_f64() - a * x.to_f64());
    }
}

/// Load-converts to the compute dtype.
#[inline(always)]
pub(super) fn to_compute<S: Isa, T: Element>(isa: S, from: &[T], to: &mut [T::Compute]) {
    // By vectors also where nothing is converted: most often there are few, and a call of `memcpy` takes longer.
    let lanes = <T::Compute>::lanes::<S>();
    let (mut from, mut to) = (from.chunks_exact(lanes), to.chunks_exact_mut(lanes));
    for (from, to) in (&mut from).zip(&mut to) {
        <T::Compute as Element>::store::<T::Compute, S>(isa, T::load::<T::Compute, S>(isa, from), to);
    }
    for (from, to) in from.remainder().iter().zip(to.into_remainder()) {
        *to = <T::Compute>::from_f64(from.to_f64());
    }
}

/// Convert-stores from the compute dtype; to the largest finite element instead of infinity, if `finite`.
#[inline(always)]
pub(super) fn from_compute<S: Isa, T: Element>(isa: S, from: &[T::Compute], to: &mut [T], finite: bool) {
    let lanes = <T::Compute>::lanes::<S>();
    let finite = finite && !T::IS_COMPUTE;
    let max = <T::Compute>::from_f64(T::SATURATION);
    let (mut from, mut to) = (from.chunks_exact(lanes), to.chunks_exact_mut(lanes));
    for (from, to) in (&mut from).zip(&mut to) {
        let mut x = <T::Compute as Element>::load::<T::Compute, S>(isa, from);
        if finite {
            x = <T::Compute>::clamp(isa, x, max);
        }
        T::store::<T::Compute, S>(isa, x, to);
    }
    for (from, to) in from.remainder().iter().zip(to.into_remainder()) {
        *to = if finite { saturate(from.to_f64()) } else { T::from_f64(from.to_f64()) };
    }
}

/// Rounds, to the largest finite element of a 16-bit float where it is beyond that.
#[inline(always)]
fn saturate<T: Element>(x: f64) -> T {
    T::from_f64(if T::IS_COMPUTE { x } else { x.clamp(-T::SATURATION, T::SATURATION) })
}
