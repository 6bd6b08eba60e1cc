//! The loops over contiguous elements, each written once over the vectors of a compute dtype and an instruction set.
//!
//! Sums go on in f64. What they are made of is added in the compute dtype first, by chains so short that hardly a digit is lost: registers
//! of f64 hold half as many elements, and set the pace where the inputs are in a cache. Where f32 does not hold the products, the sum is
//! recomputed in f64.

use core::ops::{Range, RangeInclusive};

use super::{
    aligned::LINE,
    compensated::Compensated,
    element::{Compute, Element},
    simd::Isa,
};

/// Independent accumulators: enough to hide the latency of an addition.
const ACCUMULATORS: usize = 4;

/// Sums of squares that f32 holds with all their digits: what overflows makes them infinite, and a square too small for f32 is nothing
/// beside them.
const SQUARES: Range<f64> = 1e-24..f64::INFINITY;

/// Sums of products beside which a product too small for f32 is nothing.
const LEAST_PRODUCT: f64 = 1e-30;

/// Rows of memory whose squares are added in the compute dtype before the sums go on in f64.
pub(super) const SQUARED_ROWS: usize = 16;

/// Factors, and terms, with which f32 neither overflows nor loses digits.
const FACTORS: RangeInclusive<f64> = 1e-30..=1e30;

/// `Σ x y`.
#[inline(always)]
pub(super) fn dot<S: Isa, T: Element>(isa: S, x: &[T], y: &[T]) -> f64 {
    let sum = dot_in::<T::Compute, S, T, T>(isa, x, y);
    if sum.is_finite() || size_of::<T::Compute>() == size_of::<f64>() { sum } else { dot_in::<f64, S, T, T>(isa, x, y) }
}

/// Bytes from what is read to what is asked for: two pages. One line wakes the processor's own prefetch, which ends at each page's end, and has
/// the page's address found in the meantime.
const AHEAD: usize = 8192;

/// Asks for memory that is read soon after this. Once for each row, or block of a long one, is enough.
#[inline(always)]
pub(super) fn prefetch<S: Isa, T>(isa: S, at: *const T) {
    isa.prefetch(at.cast::<u8>().wrapping_add(AHEAD));
}

/// `Σ x y`, in a compute dtype.
#[inline(always)]
pub(super) fn dot_in<A: Compute, S: Isa, T: Element, U: Element>(isa: S, x: &[T], y: &[U]) -> f64 {
    let block = chain::<A, T>() * ACCUMULATORS * A::lanes::<S>();
    if x.len() <= block {
        return dot_of_block::<A, S, T, U>(isa, x, y);
    }
    let mut total = Compensated::default();
    for (x, y) in x.chunks(block).zip(y.chunks(block)) {
        prefetch(isa, x.as_ptr());
        prefetch(isa, y.as_ptr());
        total.add(dot_of_block::<A, S, T, U>(isa, x, y));
    }
    total.total()
}

/// Products that each lane adds in the compute dtype `A` before the sum goes on in f64.
#[inline(always)]
fn chain<A: Compute, T: Element>() -> usize {
    if size_of::<A>() == size_of::<f64>() { f64::CHAIN } else { T::CHAIN }
}

/// `Σ x y` of so few elements that no accumulator adds more than its chain.
#[inline(always)]
fn dot_of_block<A: Compute, S: Isa, T: Element, U: Element>(isa: S, x: &[T], y: &[U]) -> f64 {
    let lanes = A::lanes::<S>();
    let mut sums = [A::splat(isa, A::default()); ACCUMULATORS];
    let (mut x, mut y) = (x.chunks_exact(ACCUMULATORS * lanes), y.chunks_exact(ACCUMULATORS * lanes));
    for (x, y) in (&mut x).zip(&mut y) {
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = A::mul_add(isa, T::load::<A, S>(isa, &x[i * lanes..]), U::load::<A, S>(isa, &y[i * lanes..]), *sum);
        }
    }
    let (mut x, mut y) = (x.remainder().chunks_exact(lanes), y.remainder().chunks_exact(lanes));
    for (x, y) in (&mut x).zip(&mut y) {
        sums[0] = A::mul_add(isa, T::load::<A, S>(isa, x), U::load::<A, S>(isa, y), sums[0]);
    }
    let [s0, s1, s2, s3] = sums;
    let sum = A::add_vectors(isa, A::add_vectors(isa, s0, s1), A::add_vectors(isa, s2, s3));
    let rest = x.remainder().iter().zip(y.remainder());
    rest.fold(A::reduce_sum(isa, sum).to_f64(), |sum, (x, y)| sum + x.to_f64() * y.to_f64())
}

/// `Σ x y`, or, if `N` is 3, `Σ x x`, `Σ x y` and `Σ y y`, of a few elements, in f64.
#[inline(always)]
pub(super) fn short_sums<S: Isa, T: Element, const N: usize>(isa: S, x: &[T], y: &[T]) -> [f64; N] {
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
pub(super) fn dot_and_squares<S: Isa, T: Element>(isa: S, x: &[T], y: &[T]) -> [f64; 3] {
    if size_of::<T::Compute>() == size_of::<f32>() && x.len() >= S::F32_LANES {
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
pub(super) fn add_squares<S: Isa, T: Element>(isa: S, sums: &mut [f64], rows: &[&[T]]) {
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
        for row in rows {
            *sum += row[i].to_f64() * row[i].to_f64();
        }
    }
}

/// Lanes of the longest register, of f32.
const MAX_LANES: usize = LINE / size_of::<f32>();

/// What the gradients of a row and of its counterpart are made of: `a` times the other, and `b` times the vector itself where the product is
/// normalized. No term is larger than its bound.
#[derive(Clone, Copy, Default)]
pub(super) struct Factors {
    pub a: f64,
    pub b: [f64; 2],
    pub bounds: [f64; 2],
}

impl Factors {
    /// Those of the other vector.
    #[inline(always)]
    pub fn swapped(self) -> Self {
        let Factors { a, b: [b0, b1], bounds: [bound0, bound1] } = self;
        Factors { a, b: [b1, b0], bounds: [bound1, bound0] }
    }
}

/// Two vectors of `len` elements, and where their gradients go, which may be where they are.
#[derive(Clone, Copy)]
pub(super) struct Pair<T> {
    pub len: usize,
    pub vectors: [*const T; 2],
    pub grads: [*mut T; 2],
}

/// Writes `a y + b₀ x` to the first gradient, and, if `BOTH`, `a x + b₁ y` to the second. Without the terms in `b`, if `PLAIN`; else
/// finite.
///
/// # Safety
///
/// The vectors have `len` elements that can be read; the first gradient, or both if `BOTH`, as many that are initialized, and
/// that nothing else reads or writes. A gradient may be where its own vector is.
#[inline(always)]
pub(super) unsafe fn gradients<S: Isa, T: Element, const BOTH: bool, const PLAIN: bool>(
    isa: S,
    pair: Pair<T>,
    factors: Factors,
) {
    // A 16-bit float loses no digit in f32, which has the range of the factors most of the time. A vector that does not fill a register of
    // f32 may fill one of f64.
    let in_f32 = if PLAIN { pair.len >= S::F32_LANES } else { !T::IS_COMPUTE && fits_f32(factors) };
    // SAFETY: as this function's own.
    unsafe {
        if in_f32 {
            gradients_in::<T::Compute, S, T, BOTH, PLAIN>(isa, pair, factors);
        } else {
            gradients_in::<f64, S, T, BOTH, PLAIN>(isa, pair, factors);
        }
    }
}

/// # Safety
///
/// As for [`gradients`].
#[inline(always)]
unsafe fn gradients_in<A: Compute, S: Isa, T: Element, const BOTH: bool, const PLAIN: bool>(
    isa: S,
    pair: Pair<T>,
    factors: Factors,
) {
    let Pair { len, vectors, grads } = pair;
    let lanes = A::lanes::<S>();
    let a = A::splat(isa, A::from_f64(factors.a));
    let b = [A::splat(isa, A::from_f64(factors.b[0])), A::splat(isa, A::from_f64(factors.b[1]))];
    let mut i = 0;
    while i + lanes <= len {
        // SAFETY: a register of each is left. Both are read before a gradient may be written over them.
        unsafe {
            let x = T::load::<A, S>(isa, core::slice::from_raw_parts(vectors[0].add(i), lanes));
            let y = T::load::<A, S>(isa, core::slice::from_raw_parts(vectors[1].add(i), lanes));
            T::store::<A, S>(
                isa,
                gradient::<A, S, T, PLAIN>(isa, a, y, b[0], x),
                core::slice::from_raw_parts_mut(grads[0].add(i), lanes),
            );
            if BOTH {
                T::store::<A, S>(
                    isa,
                    gradient::<A, S, T, PLAIN>(isa, a, x, b[1], y),
                    core::slice::from_raw_parts_mut(grads[1].add(i), lanes),
                );
            }
        }
        i += lanes;
    }
    let gradient = |b: f64, own: f64, other: f64| {
        if PLAIN { T::from_f64(factors.a * other) } else { saturate(factors.a * other + b * own) }
    };
    while i < len {
        // SAFETY: as above.
        unsafe {
            let (x, y) = ((*vectors[0].add(i)).to_f64(), (*vectors[1].add(i)).to_f64());
            *grads[0].add(i) = gradient(factors.b[0], x, y);
            if BOTH {
                *grads[1].add(i) = gradient(factors.b[1], y, x);
            }
        }
        i += 1;
    }
}

/// `a other`, or `a other + b own`, finite.
#[inline(always)]
fn gradient<A: Compute, S: Isa, T: Element, const PLAIN: bool>(
    isa: S,
    a: A::Vector<S>,
    other: A::Vector<S>,
    b: A::Vector<S>,
    own: A::Vector<S>,
) -> A::Vector<S> {
    if PLAIN {
        return A::mul_vectors(isa, a, other);
    }
    let sum = A::mul_add(isa, a, other, A::mul_vectors(isa, b, own));
    if T::IS_COMPUTE { sum } else { A::clamp(isa, sum, A::from_f64(T::SATURATION)) }
}

/// Whether f32 neither overflows nor loses digits with these.
#[inline(always)]
fn fits_f32(Factors { a, b, bounds }: Factors) -> bool {
    let fits = |x: f64| x == 0.0 || FACTORS.contains(&x.abs());
    fits(a) && fits(b[0]) && fits(b[1]) && fits(bounds[0]) && fits(bounds[1])
}

/// Rounds, to the largest finite element of a 16-bit float where it is beyond that.
#[inline(always)]
fn saturate<T: Element>(x: f64) -> T {
    T::from_f64(if T::IS_COMPUTE { x } else { x.clamp(-T::SATURATION, T::SATURATION) })
}

/// `to = a sum + b x`, finite; without the term in `b`, if there is none.
///
/// # Safety
///
/// `to` has as many elements as `sum`, initialized, which nothing else reads or writes; `x` as many that can be read, if `b` is
/// given. They may be the same.
#[inline(always)]
pub(super) unsafe fn gradient_of_sum<S: Isa, T: Element>(isa: S, to: *mut T, a: f64, sum: &[f64], b: Option<f64>, x: *const T) {
    let lanes = S::F64_LANES;
    let (many_a, many_b) = (isa.splat_f64s(a), isa.splat_f64s(b.unwrap_or(0.0)));
    let mut i = 0;
    while i + lanes <= sum.len() {
        // SAFETY: a register of each is left, and is read before it may be written over.
        unsafe {
            let mut gradient = isa.mul_f64s(many_a, isa.load_f64(&sum[i..]));
            if b.is_some() {
                let x = T::load::<f64, S>(isa, core::slice::from_raw_parts(x.add(i), lanes));
                gradient = isa.mul_add_e_f64s(many_b, x, gradient);
                if !T::IS_COMPUTE {
                    gradient = <f64 as Compute>::clamp(isa, gradient, T::SATURATION);
                }
            }
            T::store::<f64, S>(isa, gradient, core::slice::from_raw_parts_mut(to.add(i), lanes));
        }
        i += lanes;
    }
    for (i, &sum) in sum.iter().enumerate().skip(i) {
        // SAFETY: as above.
        unsafe {
            *to.add(i) = match b {
                None => T::from_f64(a * sum),
                Some(b) => saturate(a * sum + b * (*x.add(i)).to_f64()),
            }
        }
    }
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
pub(super) fn add_elementwise_products<S: Isa, T: Element, U: Element>(isa: S, sum: &mut [f64], x: &[T], y: &[U]) {
    let lanes = S::F64_LANES;
    let (mut sums, mut x_blocks, mut y_blocks) = (sum.chunks_exact_mut(lanes), x.chunks_exact(lanes), y.chunks_exact(lanes));
    for ((sum, x), y) in (&mut sums).zip(&mut x_blocks).zip(&mut y_blocks) {
        let product = isa.mul_add_e_f64s(T::load::<f64, S>(isa, x), U::load::<f64, S>(isa, y), isa.load_f64(sum));
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

/// `to = s to − a x`.
#[inline(always)]
pub(super) fn project<S: Isa, R: Compute>(isa: S, to: &mut [R], s: f64, a: f64, x: &[R]) {
    let lanes = S::F64_LANES;
    let (many_s, many_a) = (isa.splat_f64s(s), isa.splat_f64s(-a));
    let (mut to_blocks, mut x_blocks) = (to.chunks_exact_mut(lanes), x.chunks_exact(lanes));
    for (to, x) in (&mut to_blocks).zip(&mut x_blocks) {
        let scaled = isa.mul_f64s(many_s, R::load::<f64, S>(isa, to));
        R::store::<f64, S>(isa, isa.mul_add_e_f64s(many_a, R::load::<f64, S>(isa, x), scaled), to);
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
    let max = <T::Compute>::from_f64(if finite { T::SATURATION } else { f64::INFINITY });
    let (mut from, mut to) = (from.chunks_exact(lanes), to.chunks_exact_mut(lanes));
    for (from, to) in (&mut from).zip(&mut to) {
        let mut x = <T::Compute as Element>::load::<T::Compute, S>(isa, from);
        if !T::IS_COMPUTE {
            x = <T::Compute>::clamp(isa, x, max);
        }
        T::store::<T::Compute, S>(isa, x, to);
    }
    for (from, to) in from.remainder().iter().zip(to.into_remainder()) {
        *to = if finite { saturate(from.to_f64()) } else { T::from_f64(from.to_f64()) };
    }
}
