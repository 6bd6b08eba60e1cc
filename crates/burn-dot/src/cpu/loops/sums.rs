//! Sums of products of rows, and of squares.
//!
//! They go on in f64. What they are made of is added in the compute dtype first, by chains so short that hardly a digit is lost: registers
//! of f64 hold half as many elements, and set the pace where the inputs are in a cache. Where f32 does not hold the products, the sum is
//! recomputed in f64.

use core::ops::Range;

use super::{
    super::{
        aligned::MAX_LANES,
        compensated::Compensated,
        element::{Compute, Element},
        simd::Isa,
    },
    prefetch,
};

/// Independent accumulators: enough to hide the latency of an addition.
const ACCUMULATORS: usize = 4;

/// Sums of squares that f32 holds with all their digits: what overflows makes them infinite, and a square too small for f32 is nothing
/// beside them.
const SQUARES: Range<f64> = 1e-24..f64::INFINITY;

/// Sums of products beside which a product too small for f32 is nothing.
const LEAST_PRODUCT: f64 = 1e-30;

/// Rows of memory whose squares are added in the compute dtype before the sums go on in f64.
pub(in super::super) const SQUARED_ROWS: usize = 16;

/// `Σ x y`.
#[inline(always)]
pub(in super::super) fn dot<S: Isa, T: Element>(isa: S, x: &[T], y: &[T]) -> f64 {
    let sum = dot_in::<T::Compute, S, T>(isa, x, y);
    if sum.is_finite() || <T::Compute>::IS_F64 { sum } else { dot_in::<f64, S, T>(isa, x, y) }
}

/// `Σ x y`, where products may be too small for the compute dtype.
#[inline(always)]
pub(in super::super) fn dot_of_any<S: Isa, R: Compute>(isa: S, x: &[R], y: &[R]) -> f64 {
    let sum = dot_in::<R, S, R>(isa, x, y);
    let is_exact = R::IS_F64 || (LEAST_PRODUCT..f64::INFINITY).contains(&sum.abs());
    if is_exact { sum } else { dot_in::<f64, S, R>(isa, x, y) }
}

/// `Σ x y`, in a compute dtype.
#[inline(always)]
pub(in super::super) fn dot_in<A: Compute, S: Isa, T: Element>(isa: S, x: &[T], y: &[T]) -> f64 {
    let block = chain::<A, T>() * ACCUMULATORS * A::lanes::<S>();
    if x.len() <= block {
        return dot_of_block::<A, S, T>(isa, x, y);
    }
    let mut total = Compensated::default();
    for (x, y) in x.chunks(block).zip(y.chunks(block)) {
        prefetch(isa, x.as_ptr());
        prefetch(isa, y.as_ptr());
        total.add(dot_of_block::<A, S, T>(isa, x, y));
    }
    total.total()
}

/// Products that each lane adds in the compute dtype `A` before the sum goes on in f64.
#[inline(always)]
fn chain<A: Compute, T: Element>() -> usize {
    if A::IS_F64 { f64::CHAIN } else { T::CHAIN }
}

/// `Σ x y` of so few elements that no accumulator adds more than its chain.
#[inline(always)]
fn dot_of_block<A: Compute, S: Isa, T: Element>(isa: S, x: &[T], y: &[T]) -> f64 {
    let lanes = A::lanes::<S>();
    let mut sums = [A::splat(isa, A::default()); ACCUMULATORS];
    let (mut x, mut y) = (x.chunks_exact(ACCUMULATORS * lanes), y.chunks_exact(ACCUMULATORS * lanes));
    for (x, y) in (&mut x).zip(&mut y) {
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = A::mul_add(isa, T::load::<A, S>(isa, &x[i * lanes..]), T::load::<A, S>(isa, &y[i * lanes..]), *sum);
        }
    }
    let (mut x, mut y) = (x.remainder().chunks_exact(lanes), y.remainder().chunks_exact(lanes));
    for (x, y) in (&mut x).zip(&mut y) {
        sums[0] = A::mul_add(isa, T::load::<A, S>(isa, x), T::load::<A, S>(isa, y), sums[0]);
    }
    let [s0, s1, s2, s3] = sums;
    let sum = A::add_vectors(isa, A::add_vectors(isa, s0, s1), A::add_vectors(isa, s2, s3));
    let rest = x.remainder().iter().zip(y.remainder());
    rest.fold(A::reduce_sum(isa, sum).to_f64(), |sum, (x, y)| sum + x.to_f64() * y.to_f64())
}

/// `Σ x y`, or, if `N` is 3, `Σ x x`, `Σ x y` and `Σ y y`, of a few elements, in f64.
#[inline(always)]
pub(in super::super) fn short_sums<S: Isa, T: Element, const N: usize>(isa: S, x: &[T], y: &[T]) -> [f64; N] {
    let lanes = S::F64_LANES;
    let mut vectors = [isa.splat_f64s(0.0); N];
    let (mut x, mut y) = (x.chunks_exact(lanes), y.chunks_exact(lanes));
    for (x, y) in (&mut x).zip(&mut y) {
        let (x, y) = (T::load::<f64, S>(isa, x), T::load::<f64, S>(isa, y));
        for (n, sum) in vectors.iter_mut().enumerate() {
            let (a, b) = factors::<_, N>(n, x, y);
            *sum = isa.mul_add_e_f64s(a, b, *sum);
        }
    }
    let mut sums = [0.0; N];
    for (sum, vector) in sums.iter_mut().zip(vectors) {
        *sum = isa.reduce_sum_f64s(vector);
    }
    for (x, y) in x.remainder().iter().zip(y.remainder()) {
        let (x, y) = (x.to_f64(), y.to_f64());
        for (n, sum) in sums.iter_mut().enumerate() {
            let (a, b) = factors::<_, N>(n, x, y);
            *sum += a * b;
        }
    }
    sums
}

/// What the n-th of `N` sums is of.
#[inline(always)]
fn factors<V: Copy, const N: usize>(n: usize, x: V, y: V) -> (V, V) {
    match n {
        0 if N == 3 => (x, x),
        2 => (y, y),
        _ => (x, y),
    }
}

/// `Σ x x`, `Σ x y` and `Σ y y` in one pass.
#[inline(always)]
pub(in super::super) fn dot_and_squares<S: Isa, T: Element>(isa: S, x: &[T], y: &[T]) -> [f64; 3] {
    if !<T::Compute>::IS_F64 && x.len() >= S::F32_LANES {
        let sums @ [xx, xy, yy] = dot_and_squares_in::<T::Compute, S, T>(isa, x, y);
        if SQUARES.contains(&xx) && SQUARES.contains(&yy) && xy.abs() >= LEAST_PRODUCT {
            return sums;
        }
    }
    dot_and_squares_in::<f64, S, T>(isa, x, y)
}

#[inline(always)]
fn dot_and_squares_in<A: Compute, S: Isa, T: Element>(isa: S, x: &[T], y: &[T]) -> [f64; 3] {
    let block = chain::<A, T>() * 2 * A::lanes::<S>();
    if x.len() <= block {
        return dot_and_squares_of_block::<A, S, T>(isa, x, y);
    }
    let mut total = [Compensated::default(); 3];
    for (x, y) in x.chunks(block).zip(y.chunks(block)) {
        prefetch(isa, x.as_ptr());
        prefetch(isa, y.as_ptr());
        for (total, sum) in total.iter_mut().zip(dot_and_squares_of_block::<A, S, T>(isa, x, y)) {
            total.add(sum);
        }
    }
    total.map(Compensated::total)
}

/// [`dot_and_squares`] of so few elements that no accumulator adds more than its chain.
#[inline(always)]
fn dot_and_squares_of_block<A: Compute, S: Isa, T: Element>(isa: S, x: &[T], y: &[T]) -> [f64; 3] {
    let lanes = A::lanes::<S>();
    let mut sums = [[A::splat(isa, A::default()); 2]; 3];
    let (mut x, mut y) = (x.chunks_exact(2 * lanes), y.chunks_exact(2 * lanes));
    for (x, y) in (&mut x).zip(&mut y) {
        for i in 0..2 {
            let (x, y) = (T::load::<A, S>(isa, &x[i * lanes..]), T::load::<A, S>(isa, &y[i * lanes..]));
            add_products::<A, S>(isa, &mut sums, i, x, y);
        }
    }
    let (mut x, mut y) = (x.remainder().chunks_exact(lanes), y.remainder().chunks_exact(lanes));
    for (x, y) in (&mut x).zip(&mut y) {
        add_products::<A, S>(isa, &mut sums, 0, T::load::<A, S>(isa, x), T::load::<A, S>(isa, y));
    }
    let mut total = [0.0; 3];
    for (total, [s0, s1]) in total.iter_mut().zip(sums) {
        *total = A::reduce_sum(isa, A::add_vectors(isa, s0, s1)).to_f64();
    }
    for (x, y) in x.remainder().iter().zip(y.remainder()) {
        let (x, y) = (x.to_f64(), y.to_f64());
        total[0] += x * x;
        total[1] += x * y;
        total[2] += y * y;
    }
    total
}

#[inline(always)]
fn add_products<A: Compute, S: Isa>(isa: S, sums: &mut [[A::Vector<S>; 2]; 3], i: usize, x: A::Vector<S>, y: A::Vector<S>) {
    sums[0][i] = A::mul_add(isa, x, x, sums[0][i]);
    sums[1][i] = A::mul_add(isa, x, y, sums[1][i]);
    sums[2][i] = A::mul_add(isa, y, y, sums[2][i]);
}

/// `sums += x x`, element by element, for each row `x`, of which there are at most [`SQUARED_ROWS`]. A square too small for the compute
/// dtype may be lost, one too large for it be infinite.
#[inline(always)]
pub(in super::super) fn add_squares<S: Isa, T: Element>(isa: S, sums: &mut [f64], rows: &[&[T]]) {
    debug_assert!(rows.len() <= SQUARED_ROWS, "{} rows: too many for sums in f32", rows.len());
    let lanes = <T::Compute>::lanes::<S>();
    let whole = sums.len() / lanes * lanes;
    let mut squares = [<T::Compute>::default(); MAX_LANES];
    for first in (0..whole).step_by(lanes) {
        let mut sum = <T::Compute>::splat(isa, <T::Compute>::default());
        for row in rows {
            let x = T::load::<T::Compute, S>(isa, &row[first..]);
            sum = <T::Compute>::mul_add(isa, x, x, sum);
        }
        // By way of the stack, once for all rows.
        let squares = &mut squares[..lanes];
        <T::Compute as Element>::store::<T::Compute, S>(isa, sum, squares);
        for (to, squares) in sums[first..][..lanes].chunks_exact_mut(S::F64_LANES).zip(squares.chunks_exact(S::F64_LANES)) {
            let sum = isa.add_f64s(isa.load_f64(to), <T::Compute as Element>::load::<f64, S>(isa, squares));
            isa.store_f64(sum, to);
        }
    }
    for (i, sum) in sums.iter_mut().enumerate().skip(whole) {
        // First by themselves: the sums may be of many rows.
        *sum += rows.iter().fold(0.0, |squares, row| squares + row[i].to_f64() * row[i].to_f64());
    }
}
