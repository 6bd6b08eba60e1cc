//! The dtypes, and the loops over slices of them.
//!
//! Each is written once, over the registers of an instruction set ([`Isa`]). Sums go on in f64. What they are made of is added in f32 first,
//! by blocks so short that hardly a digit is lost: registers of f64 hold half as many numbers, and set the pace themselves where the
//! inputs lie in a cache. Where f32 does not hold the products, all is done anew in f64, or, for the norms of matrices, left to the
//! composition. What has no part in that pace stays in f64.

use burn_core::tensor::{bf16, f16};

use super::simd::Isa;

/// A dtype of tensors.
pub(super) trait Element: Copy + Default + Send + Sync + 'static {
    /// The dtype to multiply matrices in.
    type Real: Real;

    fn load<S: Isa>(isa: S, from: &[Self]) -> S::f64s;

    /// Rounds to the nearest number of this dtype; to a half by way of f32.
    fn store<S: Isa>(isa: S, x: S::f64s, to: &mut [Self]);

    /// Brings what is beyond the largest finite number of a half dtype back to it, as no gradient of a cosine is infinite.
    fn finite<S: Isa>(isa: S, x: S::f64s) -> S::f64s;

    fn to_f64(self) -> f64;

    fn from_f64(x: f64) -> Self;

    /// Whether this is the dtype to multiply in.
    const IS_REAL: bool;

    /// Copies to the dtype to multiply in.
    fn widen<S: Isa>(isa: S, from: &[Self], to: &mut [Self::Real]);

    /// Rounds to the nearest numbers; `finite` where none is to become infinite.
    fn narrow<S: Isa>(isa: S, from: &[Self::Real], to: &mut [Self], finite: bool);

    /// `Σ x y`.
    fn dot<S: Isa>(isa: S, x: &[Self], y: &[Self]) -> f64;

    /// `Σ x x`, `Σ x y` and `Σ y y` in one pass.
    fn dot_and_squares<S: Isa>(isa: S, x: &[Self], y: &[Self]) -> [f64; 3];

    /// `sums += x x`, number by number, for each line `x`, of which there are at most [`LINES`]. A square too small for f32 may be lost,
    /// one too large for it be infinite.
    fn add_squares<S: Isa>(isa: S, sums: &mut [f64], lines: &[&[Self]]);

    /// `to = a x`, rounded. `a` is a number of the dtype to multiply in.
    fn scale<S: Isa>(isa: S, to: &mut [Self], a: f64, x: &[Self]);

    /// `to = a x + b y`, rounded, and finite. No term is larger than `most`.
    fn combine<S: Isa>(isa: S, to: &mut [Self], ax: (f64, &[Self]), by: (f64, &[Self]), most: f64);
    /// `dx = a y + b₀ x` and `dy = a x + b₁ y`, as [`Element::combine`]; with each `b` comes its `most`.
    fn combine_both<S: Isa>(isa: S, to: [&mut [Self]; 2], a: f64, vectors: [&[Self]; 2], b: [(f64, f64); 2]);
}

/// A dtype that f32 holds.
trait Single: Element {
    /// How many products each lane adds in f32 before the sum goes on in f64: so few that hardly a digit of this dtype is lost.
    const IN_F32: usize;

    /// As many numbers as a register of f32 holds.
    fn wide<S: Isa>(isa: S, from: &[Self]) -> S::f32s;

    /// Rounds to the nearest numbers.
    fn put<S: Isa>(isa: S, x: S::f32s, to: &mut [Self]);
}

/// f16 or bf16.
trait Half: Single {
    /// The largest finite number: see [`Element::finite`].
    const MOST: f32;
}

/// The compute dtype of a matrix product: f32 or f64. Vectors of it fill a register.
pub(super) trait Real:
    Element<Real = Self>
    + PartialOrd
    + core::ops::Add<Output = Self>
    + core::ops::Sub<Output = Self>
    + core::ops::Mul<Output = Self>
{
    /// Norms whose squares, inverses and products of two inverses f64 holds, with room for the gradient.
    const NORMS: core::ops::RangeInclusive<f64>;
    /// Norms of vectors whose products, and the products of their inverses, stay well within this dtype.
    const MATRIX_NORMS: core::ops::RangeInclusive<f64>;
    /// The smallest normal number.
    const SMALLEST: f64;

    /// A register.
    type Vector<S: Isa>: Copy;

    fn abs(self) -> Self;

    /// Elements of a vector.
    fn lanes<S: Isa>() -> usize;
    fn splat<S: Isa>(isa: S, x: Self) -> Self::Vector<S>;
    fn add_vectors<S: Isa>(isa: S, x: Self::Vector<S>, y: Self::Vector<S>) -> Self::Vector<S>;
    fn mul_vectors<S: Isa>(isa: S, x: Self::Vector<S>, y: Self::Vector<S>) -> Self::Vector<S>;
    /// `x y + z`.
    fn mul_add<S: Isa>(isa: S, x: Self::Vector<S>, y: Self::Vector<S>, z: Self::Vector<S>) -> Self::Vector<S>;
    /// Clamps to [-1, 1]; NaN stays NaN.
    fn into_range<S: Isa>(isa: S, x: Self::Vector<S>) -> Self::Vector<S>;
    /// # Safety
    ///
    /// A vector can be read there.
    unsafe fn load_vector<S: Isa>(isa: S, from: *const Self) -> Self::Vector<S>;
    /// # Safety
    ///
    /// A vector can be written there.
    unsafe fn store_vector<S: Isa>(isa: S, x: Self::Vector<S>, to: *mut Self);
    /// Rows, and elements of each, that [`Real::transpose`] takes at once: at most 8.
    fn block<S: Isa>() -> usize;
    /// Transposes a block: `to[j * stride + i] = from[i][j]`.
    ///
    /// # Safety
    ///
    /// `from` holds [`Real::block`] pointers, each to as many elements that can be read; as many can be written at each multiple of
    /// `stride` from `to`.
    unsafe fn transpose<S: Isa>(isa: S, from: &[*const Self], to: *mut Self, stride: usize);
}

macro_rules! vectors {
    ($vector:ident, $lanes:ident, $splat:ident, $add:ident, $mul:ident, $mul_add:ident, $block:ident, $transpose:ident) => {
        type Vector<S: Isa> = S::$vector;

        #[inline(always)]
        fn abs(self) -> Self {
            self.abs()
        }
        #[inline(always)]
        fn lanes<S: Isa>() -> usize {
            S::$lanes
        }
        #[inline(always)]
        fn splat<S: Isa>(isa: S, x: Self) -> Self::Vector<S> {
            isa.$splat(x)
        }
        #[inline(always)]
        fn add_vectors<S: Isa>(isa: S, x: Self::Vector<S>, y: Self::Vector<S>) -> Self::Vector<S> {
            isa.$add(x, y)
        }
        #[inline(always)]
        fn mul_vectors<S: Isa>(isa: S, x: Self::Vector<S>, y: Self::Vector<S>) -> Self::Vector<S> {
            isa.$mul(x, y)
        }
        #[inline(always)]
        fn mul_add<S: Isa>(isa: S, x: Self::Vector<S>, y: Self::Vector<S>, z: Self::Vector<S>) -> Self::Vector<S> {
            isa.$mul_add(x, y, z)
        }
        #[inline(always)]
        unsafe fn load_vector<S: Isa>(_level: S, from: *const Self) -> Self::Vector<S> {
            // SAFETY: the caller's promise; a vector is plain elements.
            unsafe { from.cast::<Self::Vector<S>>().read_unaligned() }
        }
        #[inline(always)]
        unsafe fn store_vector<S: Isa>(_level: S, x: Self::Vector<S>, to: *mut Self) {
            // SAFETY: the caller's promise; a vector is plain elements.
            unsafe { to.cast::<Self::Vector<S>>().write_unaligned(x) }
        }
        #[inline(always)]
        fn block<S: Isa>() -> usize {
            S::$block
        }
        #[inline(always)]
        unsafe fn transpose<S: Isa>(isa: S, from: &[*const Self], to: *mut Self, stride: usize) {
            // SAFETY: as this function's own.
            unsafe { isa.$transpose(from, to, stride) }
        }
    };
}

impl Real for f32 {
    const NORMS: core::ops::RangeInclusive<f64> = 0.0..=f64::INFINITY;
    const MATRIX_NORMS: core::ops::RangeInclusive<f64> = 1e-9..=1e9;
    const SMALLEST: f64 = f32::MIN_POSITIVE as f64;
    vectors!(f32s, F32_LANES, splat_f32s, add_f32s, mul_f32s, mul_add_e_f32s, F32_BLOCK, transpose_f32);
    #[inline(always)]
    fn into_range<S: Isa>(isa: S, x: S::f32s) -> S::f32s {
        isa.clamp_f32s(x, -1.0, 1.0)
    }
}

impl Real for f64 {
    const NORMS: core::ops::RangeInclusive<f64> = 1e-60..=1e60;
    const MATRIX_NORMS: core::ops::RangeInclusive<f64> = 1e-60..=1e60;
    const SMALLEST: f64 = f64::MIN_POSITIVE;
    vectors!(f64s, F64_LANES, splat_f64s, add_f64s, mul_f64s, mul_add_e_f64s, F64_BLOCK, transpose_f64);
    #[inline(always)]
    fn into_range<S: Isa>(isa: S, x: S::f64s) -> S::f64s {
        isa.clamp_f64s(x, -1.0, 1.0)
    }
}

/// What all dtypes do alike.
macro_rules! element {
    ($element:ty, $load:ident, $store:ident, |$from:ident| $from_f64:expr) => {
        #[inline(always)]
        fn load<S: Isa>(isa: S, from: &[Self]) -> S::f64s {
            isa.$load(from)
        }
        #[inline(always)]
        fn store<S: Isa>(isa: S, x: S::f64s, to: &mut [Self]) {
            isa.$store(x, to)
        }
        #[inline(always)]
        fn to_f64(self) -> f64 {
            self.into()
        }
        #[inline(always)]
        fn from_f64($from: f64) -> Self {
            $from_f64
        }
    };
}
macro_rules! real {
    ($element:ty, $load:ident, $store:ident, $dot:ident, $dot_and_squares:ident, $add_squares:ident, $scale:ident, |$from:ident| $from_f64:expr) => {
        impl Element for $element {
            type Real = Self;
            const IS_REAL: bool = true;
            element!($element, $load, $store, |$from| $from_f64);
            #[inline(always)]
            fn finite<S: Isa>(_level: S, x: S::f64s) -> S::f64s {
                x
            }
            #[inline(always)]
            fn widen<S: Isa>(isa: S, from: &[Self], to: &mut [Self]) {
                // By vectors: most often there are few, and a call of `memcpy` takes longer.
                let lanes = Self::lanes::<S>();
                let (mut from, mut to) = (from.chunks_exact(lanes), to.chunks_exact_mut(lanes));
                for (from, to) in (&mut from).zip(&mut to) {
                    // SAFETY: both have the elements of a vector.
                    unsafe { Self::store_vector(isa, Self::load_vector(isa, from.as_ptr()), to.as_mut_ptr()) };
                }
                for (from, to) in from.remainder().iter().zip(to.into_remainder()) {
                    *to = *from;
                }
            }
            #[inline(always)]
            fn narrow<S: Isa>(_level: S, from: &[Self], to: &mut [Self], _finite: bool) {
                to.copy_from_slice(from);
            }
            #[inline(always)]
            fn dot<S: Isa>(isa: S, x: &[Self], y: &[Self]) -> f64 {
                $dot(isa, x, y)
            }
            #[inline(always)]
            fn dot_and_squares<S: Isa>(isa: S, x: &[Self], y: &[Self]) -> [f64; 3] {
                $dot_and_squares(isa, x, y)
            }
            #[inline(always)]
            fn add_squares<S: Isa>(isa: S, sums: &mut [f64], lines: &[&[Self]]) {
                $add_squares(isa, sums, lines);
            }
            #[inline(always)]
            fn scale<S: Isa>(isa: S, to: &mut [Self], a: f64, x: &[Self]) {
                $scale(isa, to, a, x);
            }
            #[inline(always)]
            fn combine<S: Isa>(isa: S, to: &mut [Self], ax: (f64, &[Self]), by: (f64, &[Self]), _most: f64) {
                combine(isa, to, ax, by);
            }
            #[inline(always)]
            fn combine_both<S: Isa>(isa: S, to: [&mut [Self]; 2], a: f64, [x, y]: [&[Self]; 2], b: [(f64, f64); 2]) {
                combine_both(isa, to, a, [x, y], [b[0].0, b[1].0]);
            }
        }
    };
}
// Constants are converted as such: at run time, the conversion of a single f16 first asks for the processor's features.
macro_rules! half {
    ($element:ty, $load:ident, $store:ident, $widen:ident, $narrow:ident) => {
        impl Element for $element {
            type Real = f32;
            const IS_REAL: bool = false;
            element!($element, $load, $store, |x| <$element>::from_f32(x as f32));
            #[inline(always)]
            fn finite<S: Isa>(isa: S, x: S::f64s) -> S::f64s {
                isa.clamp_f64s(x, Self::MIN.to_f64_const(), Self::MAX.to_f64_const())
            }
            #[inline(always)]
            fn widen<S: Isa>(isa: S, from: &[Self], to: &mut [f32]) {
                let mut from = from.chunks_exact(S::F32_LANES);
                let (to, to_rest) = S::as_mut_simd_f32s(to);
                for (to, from) in to.iter_mut().zip(&mut from) {
                    *to = isa.$widen(from);
                }
                for (to, from) in to_rest.iter_mut().zip(from.remainder()) {
                    *to = (*from).into();
                }
            }
            #[inline(always)]
            fn narrow<S: Isa>(isa: S, from: &[f32], to: &mut [Self], finite: bool) {
                let most = if finite { Self::MAX.to_f32_const() } else { f32::INFINITY };
                let (from, from_rest) = S::as_simd_f32s(from);
                let mut to = to.chunks_exact_mut(S::F32_LANES);
                for (from, to) in from.iter().zip(&mut to) {
                    isa.$narrow(isa.clamp_f32s(*from, -most, most), to);
                }
                for (from, to) in from_rest.iter().zip(to.into_remainder()) {
                    *to = Self::from_f32(from.clamp(-most, most));
                }
            }
            #[inline(always)]
            fn dot<S: Isa>(isa: S, x: &[Self], y: &[Self]) -> f64 {
                dot_in_f32(isa, x, y)
            }
            #[inline(always)]
            fn dot_and_squares<S: Isa>(isa: S, x: &[Self], y: &[Self]) -> [f64; 3] {
                dot_and_squares_in_f32(isa, x, y)
            }
            #[inline(always)]
            fn add_squares<S: Isa>(isa: S, sums: &mut [f64], lines: &[&[Self]]) {
                add_squares_in_f32(isa, sums, lines);
            }
            #[inline(always)]
            fn scale<S: Isa>(isa: S, to: &mut [Self], a: f64, x: &[Self]) {
                scale_in_f32(isa, to, a, x);
            }
            #[inline(always)]
            fn combine<S: Isa>(isa: S, to: &mut [Self], ax: (f64, &[Self]), by: (f64, &[Self]), most: f64) {
                combine_in_f32(isa, to, ax, by, most);
            }
            #[inline(always)]
            fn combine_both<S: Isa>(isa: S, [dx, dy]: [&mut [Self]; 2], a: f64, [x, y]: [&[Self]; 2], b: [(f64, f64); 2]) {
                combine_in_f32(isa, dx, (a, y), (b[0].0, x), b[0].1);
                combine_in_f32(isa, dy, (a, x), (b[1].0, y), b[1].1);
            }
        }
        impl Single for $element {
            const IN_F32: usize = 64;
            #[inline(always)]
            fn wide<S: Isa>(isa: S, from: &[Self]) -> S::f32s {
                isa.$widen(from)
            }
            #[inline(always)]
            fn put<S: Isa>(isa: S, x: S::f32s, to: &mut [Self]) {
                isa.$narrow(x, to);
            }
        }
        impl Half for $element {
            const MOST: f32 = Self::MAX.to_f32_const();
        }
    };
}
real!(f64, load_f64, store_f64, dot, dot_and_squares, add_squares, scale, |x| x);
real!(f32, load_f32_as_f64, store_f64_as_f32, dot_in_f32, dot_and_squares_in_f32, add_squares_in_f32, scale_in_f32, |x| x
    as f32);
impl Single for f32 {
    const IN_F32: usize = 16;
    #[inline(always)]
    fn wide<S: Isa>(_level: S, from: &[Self]) -> S::f32s {
        S::as_simd_f32s(&from[..S::F32_LANES]).0[0]
    }
    #[inline(always)]
    fn put<S: Isa>(_level: S, x: S::f32s, to: &mut [Self]) {
        S::as_mut_simd_f32s(&mut to[..S::F32_LANES]).0[0] = x;
    }
}
half!(f16, load_f16_as_f64, store_f64_as_f16, load_f16_as_f32, store_f32_as_f16);
half!(bf16, load_bf16_as_f64, store_f64_as_bf16, load_bf16_as_f32, store_f32_as_bf16);

/// [`Element::finite`] for one number.
#[inline(always)]
fn finite_from_f64<T: Element>(x: f64) -> T {
    T::from_f64(T::finite(pulp::Scalar, x))
}

/// Sums that run side by side: enough to hide the latency of an addition.
const SUMS: usize = 4;

/// Sums of squares that f32 holds with all their digits: what overflows makes them infinite, and a square too small for f32 is nothing
/// beside them.
const SQUARES: core::ops::Range<f64> = 1e-24..f64::INFINITY;

/// Sums of products beside which a product too small for f32 is nothing.
const LEAST_PRODUCT: f64 = 1e-30;

/// Lines of memory whose squares are added in f32 before the sums go on in f64.
pub(super) const LINES: usize = 16;

/// Factors, and terms, with which f32 neither overflows nor loses digits.
const FACTORS: core::ops::RangeInclusive<f64> = 1e-30..=1e30;

/// Terms that each lane adds before the sum goes on compensated: so few that hardly a digit is lost.
const CHAIN: usize = 64;

/// `Σ x y`.
#[inline(always)]
pub(super) fn dot<S: Isa, T: Element, U: Element>(isa: S, x: &[T], y: &[U]) -> f64 {
    let block = CHAIN * SUMS * S::F64_LANES;
    if x.len() <= block {
        return dot_block(isa, x, y);
    }
    let mut total = Compensated::default();
    for (x, y) in x.chunks(block).zip(y.chunks(block)) {
        total.add(dot_block(isa, x, y));
    }
    total.total()
}

#[inline(always)]
fn dot_block<S: Isa, T: Element, U: Element>(isa: S, x: &[T], y: &[U]) -> f64 {
    let lanes = S::F64_LANES;
    let mut sums = [isa.splat_f64s(0.0); SUMS];
    let (mut x_blocks, mut y_blocks) = (x.chunks_exact(SUMS * lanes), y.chunks_exact(SUMS * lanes));
    for (x, y) in (&mut x_blocks).zip(&mut y_blocks) {
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = isa.mul_add_e_f64s(T::load(isa, &x[i * lanes..]), U::load(isa, &y[i * lanes..]), *sum);
        }
    }
    let (mut x_rest, mut y_rest) = (x_blocks.remainder().chunks_exact(lanes), y_blocks.remainder().chunks_exact(lanes));
    for (x, y) in (&mut x_rest).zip(&mut y_rest) {
        sums[0] = isa.mul_add_e_f64s(T::load(isa, x), U::load(isa, y), sums[0]);
    }
    let sum = isa.add_f64s(isa.add_f64s(sums[0], sums[1]), isa.add_f64s(sums[2], sums[3]));
    let rest = x_rest.remainder().iter().zip(y_rest.remainder());
    rest.fold(isa.reduce_sum_f64s(sum), |sum, (x, y)| sum + x.to_f64() * y.to_f64())
}

/// `Σ x x`, `Σ x y` and `Σ y y` in one pass.
#[inline(always)]
fn dot_and_squares<S: Isa, R: Element>(isa: S, x: &[R], y: &[R]) -> [f64; 3] {
    let block = CHAIN * 2 * S::F64_LANES;
    if x.len() <= block {
        return dot_and_squares_block(isa, x, y);
    }
    let mut total = [Compensated::default(); 3];
    for (x, y) in x.chunks(block).zip(y.chunks(block)) {
        let sums = dot_and_squares_block(isa, x, y);
        for i in 0..3 {
            total[i].add(sums[i]);
        }
    }
    [total[0].total(), total[1].total(), total[2].total()]
}

#[inline(always)]
fn dot_and_squares_block<S: Isa, R: Element>(isa: S, x: &[R], y: &[R]) -> [f64; 3] {
    let lanes = S::F64_LANES;
    let mut xx = [isa.splat_f64s(0.0); 2];
    let (mut xy, mut yy) = (xx, xx);
    let (mut x_blocks, mut y_blocks) = (x.chunks_exact(2 * lanes), y.chunks_exact(2 * lanes));
    for (x, y) in (&mut x_blocks).zip(&mut y_blocks) {
        for i in 0..2 {
            let (x, y) = (R::load(isa, &x[i * lanes..]), R::load(isa, &y[i * lanes..]));
            xx[i] = isa.mul_add_e_f64s(x, x, xx[i]);
            xy[i] = isa.mul_add_e_f64s(x, y, xy[i]);
            yy[i] = isa.mul_add_e_f64s(y, y, yy[i]);
        }
    }
    let total = |sums: [S::f64s; 2]| isa.reduce_sum_f64s(isa.add_f64s(sums[0], sums[1]));
    let (mut xx, mut xy, mut yy) = (total(xx), total(xy), total(yy));
    for (x, y) in x_blocks.remainder().iter().zip(y_blocks.remainder()) {
        let (x, y) = (x.to_f64(), y.to_f64());
        xx += x * x;
        xy += x * y;
        yy += y * y;
    }
    [xx, xy, yy]
}

/// [`dot`], by blocks in f32 unless a sum overflows there. What is lost of a product, below 1e-45, f32 could not show.
#[inline(always)]
fn dot_in_f32<S: Isa, T: Single>(isa: S, x: &[T], y: &[T]) -> f64 {
    let lanes = S::F32_LANES;
    let block = T::IN_F32 * SUMS * lanes;
    let mut total = 0.0;
    for (x, y) in x.chunks(block).zip(y.chunks(block)) {
        let mut sums = [isa.splat_f32s(0.0); SUMS];
        let (mut x, mut y) = (x.chunks_exact(SUMS * lanes), y.chunks_exact(SUMS * lanes));
        for (x, y) in (&mut x).zip(&mut y) {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = isa.mul_add_e_f32s(T::wide(isa, &x[i * lanes..]), T::wide(isa, &y[i * lanes..]), *sum);
            }
        }
        let (mut x, mut y) = (x.remainder().chunks_exact(lanes), y.remainder().chunks_exact(lanes));
        for (x, y) in (&mut x).zip(&mut y) {
            sums[0] = isa.mul_add_e_f32s(T::wide(isa, x), T::wide(isa, y), sums[0]);
        }
        let sum = isa.add_f32s(isa.add_f32s(sums[0], sums[1]), isa.add_f32s(sums[2], sums[3]));
        total += f64::from(isa.reduce_sum_f32s(sum));
        if !x.remainder().is_empty() {
            total += dot(isa, x.remainder(), y.remainder());
        }
    }
    if total.is_finite() { total } else { dot(isa, x, y) }
}

/// [`dot_and_squares`], by blocks in f32 where it holds the squares.
#[inline(always)]
fn dot_and_squares_in_f32<S: Isa, T: Single>(isa: S, x: &[T], y: &[T]) -> [f64; 3] {
    let lanes = S::F32_LANES;
    if x.len() >= lanes {
        let block = T::IN_F32 * 2 * lanes;
        let mut total = [0.0; 3];
        for (x, y) in x.chunks(block).zip(y.chunks(block)) {
            let mut sums = [[isa.splat_f32s(0.0); 2]; 3];
            let (mut x, mut y) = (x.chunks_exact(2 * lanes), y.chunks_exact(2 * lanes));
            for (x, y) in (&mut x).zip(&mut y) {
                for i in 0..2 {
                    let (x, y) = (T::wide(isa, &x[i * lanes..]), T::wide(isa, &y[i * lanes..]));
                    sums[0][i] = isa.mul_add_e_f32s(x, x, sums[0][i]);
                    sums[1][i] = isa.mul_add_e_f32s(x, y, sums[1][i]);
                    sums[2][i] = isa.mul_add_e_f32s(y, y, sums[2][i]);
                }
            }
            let (mut x, mut y) = (x.remainder().chunks_exact(lanes), y.remainder().chunks_exact(lanes));
            for (x, y) in (&mut x).zip(&mut y) {
                let (x, y) = (T::wide(isa, x), T::wide(isa, y));
                sums[0][0] = isa.mul_add_e_f32s(x, x, sums[0][0]);
                sums[1][0] = isa.mul_add_e_f32s(x, y, sums[1][0]);
                sums[2][0] = isa.mul_add_e_f32s(y, y, sums[2][0]);
            }
            for i in 0..3 {
                total[i] += f64::from(isa.reduce_sum_f32s(isa.add_f32s(sums[i][0], sums[i][1])));
            }
            for (x, y) in x.remainder().iter().zip(y.remainder()) {
                let (x, y) = (x.to_f64(), y.to_f64());
                total = [total[0] + x * x, total[1] + x * y, total[2] + y * y];
            }
        }
        if SQUARES.contains(&total[0]) && SQUARES.contains(&total[2]) && total[1].abs() >= LEAST_PRODUCT {
            return total;
        }
    }
    dot_and_squares(isa, x, y)
}

/// `sums += x x`, number by number, for each line `x`.
#[inline(always)]
fn add_squares<S: Isa, R: Element>(isa: S, sums: &mut [f64], lines: &[&[R]]) {
    let (lanes, whole) = (S::F64_LANES, sums.len() / S::F64_LANES * S::F64_LANES);
    for first in (0..whole).step_by(lanes) {
        let mut sum = isa.load_f64(&sums[first..]);
        for line in lines {
            let x = R::load(isa, &line[first..]);
            sum = isa.mul_add_e_f64s(x, x, sum);
        }
        isa.store_f64(sum, &mut sums[first..]);
    }
    for (i, sum) in sums.iter_mut().enumerate().skip(whole) {
        for line in lines {
            *sum += line[i].to_f64() * line[i].to_f64();
        }
    }
}

/// [`add_squares`] of at most [`LINES`], first in f32. Squares that f32 does not hold become infinite, or are nothing beside those of
/// [`Real::MATRIX_NORMS`].
#[inline(always)]
fn add_squares_in_f32<S: Isa, T: Single>(isa: S, sums: &mut [f64], lines: &[&[T]]) {
    debug_assert!(lines.len() <= LINES, "{} lines: too many for sums in f32", lines.len());
    let (lanes, whole) = (S::F32_LANES, sums.len() / S::F32_LANES * S::F32_LANES);
    for first in (0..whole).step_by(lanes) {
        let mut sum = isa.splat_f32s(0.0);
        for line in lines {
            let x = T::wide(isa, &line[first..]);
            sum = isa.mul_add_e_f32s(x, x, sum);
        }
        // By way of the stack, once for all lines.
        let sum: &[f32] = bytemuck::cast_slice(core::slice::from_ref(&sum));
        for (to, sum) in sums[first..][..lanes].chunks_exact_mut(S::F64_LANES).zip(sum.chunks_exact(S::F64_LANES)) {
            isa.store_f64(isa.add_f64s(isa.load_f64(to), isa.load_f32_as_f64(sum)), to);
        }
    }
    if whole < sums.len() {
        let mut rest: [&[T]; LINES] = [&[]; LINES];
        for (rest, line) in rest.iter_mut().zip(lines) {
            *rest = &line[whole..];
        }
        add_squares(isa, &mut sums[whole..], &rest[..lines.len()]);
    }
}

/// `to = a x + b y`, computed in f64, and finite.
#[inline(always)]
pub(super) fn combine<S: Isa, R: Element, X: Element>(isa: S, to: &mut [R], (a, x): (f64, &[X]), (b, y): (f64, &[R])) {
    let lanes = S::F64_LANES;
    let (many_a, many_b) = (isa.splat_f64s(a), isa.splat_f64s(b));
    let (mut to_blocks, mut x_blocks, mut y_blocks) =
        (to.chunks_exact_mut(lanes), x.chunks_exact(lanes), y.chunks_exact(lanes));
    for ((to, x), y) in (&mut to_blocks).zip(&mut x_blocks).zip(&mut y_blocks) {
        let sum = isa.mul_f64s(many_b, R::load(isa, y));
        let sum = isa.mul_add_e_f64s(many_a, X::load(isa, x), sum);
        R::store(isa, R::finite(isa, sum), to);
    }
    for ((to, x), y) in to_blocks.into_remainder().iter_mut().zip(x_blocks.remainder()).zip(y_blocks.remainder()) {
        *to = finite_from_f64(a * x.to_f64() + b * y.to_f64());
    }
}

/// `dx = a y + b₀ x` and `dy = a x + b₁ y`, as [`combine`]: each number is converted once.
#[inline(always)]
fn combine_both<S: Isa, R: Real>(isa: S, [dx, dy]: [&mut [R]; 2], a: f64, [x, y]: [&[R]; 2], b: [f64; 2]) {
    let lanes = S::F64_LANES;
    let (many_a, many_b) = (isa.splat_f64s(a), [isa.splat_f64s(b[0]), isa.splat_f64s(b[1])]);
    let (mut dx_blocks, mut dy_blocks, mut x_blocks, mut y_blocks) =
        (dx.chunks_exact_mut(lanes), dy.chunks_exact_mut(lanes), x.chunks_exact(lanes), y.chunks_exact(lanes));
    for (((dx, dy), x), y) in (&mut dx_blocks).zip(&mut dy_blocks).zip(&mut x_blocks).zip(&mut y_blocks) {
        let (x, y) = (R::load(isa, x), R::load(isa, y));
        R::store(isa, isa.mul_add_e_f64s(many_a, y, isa.mul_f64s(many_b[0], x)), dx);
        R::store(isa, isa.mul_add_e_f64s(many_a, x, isa.mul_f64s(many_b[1], y)), dy);
    }
    let rest = dx_blocks.into_remainder().iter_mut().zip(dy_blocks.into_remainder());
    for ((dx, dy), (x, y)) in rest.zip(x_blocks.remainder().iter().zip(y_blocks.remainder())) {
        let (x, y) = (x.to_f64(), y.to_f64());
        *dx = R::from_f64(a * y + b[0] * x);
        *dy = R::from_f64(a * x + b[1] * y);
    }
}

/// [`combine`], in f32 where that neither overflows nor loses digits of a half.
#[inline(always)]
fn combine_in_f32<S: Isa, T: Half>(isa: S, to: &mut [T], (a, x): (f64, &[T]), (b, y): (f64, &[T]), most: f64) {
    if !fit_f32([a, b, most]) {
        combine(isa, to, (a, x), (b, y));
    } else if 2.0 * most < T::MOST.into() {
        combine_in_f32_alone::<S, T, false>(isa, to, (a, x), (b, y));
    } else {
        combine_in_f32_alone::<S, T, true>(isa, to, (a, x), (b, y));
    }
}

/// Kept from leaving the finite range only if it might.
#[inline(always)]
fn combine_in_f32_alone<S: Isa, T: Half, const MIGHT: bool>(isa: S, to: &mut [T], (a, x): (f64, &[T]), (b, y): (f64, &[T])) {
    let lanes = S::F32_LANES;
    let (many_a, many_b) = (isa.splat_f32s(a as f32), isa.splat_f32s(b as f32));
    let (mut to_blocks, mut x_blocks, mut y_blocks) =
        (to.chunks_exact_mut(lanes), x.chunks_exact(lanes), y.chunks_exact(lanes));
    for ((to, x), y) in (&mut to_blocks).zip(&mut x_blocks).zip(&mut y_blocks) {
        let sum = isa.mul_f32s(many_b, T::wide(isa, y));
        let sum = isa.mul_add_e_f32s(many_a, T::wide(isa, x), sum);
        T::put(isa, if MIGHT { isa.clamp_f32s(sum, -T::MOST, T::MOST) } else { sum }, to);
    }
    combine(pulp::Scalar, to_blocks.into_remainder(), (a, x_blocks.remainder()), (b, y_blocks.remainder()));
}

/// Whether f32 neither overflows nor loses digits with these.
#[inline(always)]
fn fit_f32(factors: [f64; 3]) -> bool {
    factors.iter().all(
        #[inline(always)]
        |&factor| factor == 0.0 || FACTORS.contains(&factor.abs()),
    )
}

/// `to = a x`.
#[inline(always)]
pub(super) fn scale<S: Isa, R: Element, X: Element>(isa: S, to: &mut [R], a: f64, x: &[X]) {
    let lanes = S::F64_LANES;
    let many = isa.splat_f64s(a);
    let (mut to_blocks, mut x_blocks) = (to.chunks_exact_mut(lanes), x.chunks_exact(lanes));
    for (to, x) in (&mut to_blocks).zip(&mut x_blocks) {
        R::store(isa, isa.mul_f64s(many, X::load(isa, x)), to);
    }
    for (to, x) in to_blocks.into_remainder().iter_mut().zip(x_blocks.remainder()) {
        *to = R::from_f64(a * x.to_f64());
    }
}

/// [`scale`] in f32, which holds the factor.
#[inline(always)]
fn scale_in_f32<S: Isa, T: Single>(isa: S, to: &mut [T], a: f64, x: &[T]) {
    let many = isa.splat_f32s(a as f32);
    let (mut to_blocks, mut x_blocks) = (to.chunks_exact_mut(S::F32_LANES), x.chunks_exact(S::F32_LANES));
    for (to, x) in (&mut to_blocks).zip(&mut x_blocks) {
        T::put(isa, isa.mul_f32s(many, T::wide(isa, x)), to);
    }
    scale(pulp::Scalar, to_blocks.into_remainder(), a, x_blocks.remainder());
}

/// `sum += a x`.
#[inline(always)]
pub(super) fn accumulate<S: Isa, R: Element>(isa: S, sum: &mut [f64], a: f64, x: &[R]) {
    let lanes = S::F64_LANES;
    let many = isa.splat_f64s(a);
    let (mut sums, mut blocks) = (sum.chunks_exact_mut(lanes), x.chunks_exact(lanes));
    for (sum, x) in (&mut sums).zip(&mut blocks) {
        isa.store_f64(isa.mul_add_e_f64s(many, R::load(isa, x), isa.load_f64(sum)), sum);
    }
    for (sum, x) in sums.into_remainder().iter_mut().zip(blocks.remainder()) {
        *sum += a * x.to_f64();
    }
}

/// `sum += x y`, number by number.
#[inline(always)]
pub(super) fn accumulate_products<S: Isa, T: Element, U: Element>(isa: S, sum: &mut [f64], x: &[T], y: &[U]) {
    let lanes = S::F64_LANES;
    let (mut sums, mut x_blocks, mut y_blocks) = (sum.chunks_exact_mut(lanes), x.chunks_exact(lanes), y.chunks_exact(lanes));
    for ((sum, x), y) in (&mut sums).zip(&mut x_blocks).zip(&mut y_blocks) {
        isa.store_f64(isa.mul_add_e_f64s(T::load(isa, x), U::load(isa, y), isa.load_f64(sum)), sum);
    }
    for ((sum, x), y) in sums.into_remainder().iter_mut().zip(x_blocks.remainder()).zip(y_blocks.remainder()) {
        *sum += x.to_f64() * y.to_f64();
    }
}

/// `to = s to − a x`, number by number.
#[inline(always)]
pub(super) fn combine_each<L: Isa, R: Real, X: Element>(isa: L, to: &mut [R], s: &[f64], a: &[f64], x: &[X]) {
    let lanes = L::F64_LANES;
    let (mut to_blocks, mut s_blocks, mut a_blocks, mut x_blocks) =
        (to.chunks_exact_mut(lanes), s.chunks_exact(lanes), a.chunks_exact(lanes), x.chunks_exact(lanes));
    for (((to, s), a), x) in (&mut to_blocks).zip(&mut s_blocks).zip(&mut a_blocks).zip(&mut x_blocks) {
        let product = isa.mul_f64s(isa.load_f64(a), X::load(isa, x));
        let scaled = isa.mul_f64s(isa.load_f64(s), R::load(isa, to));
        R::store(isa, isa.sub_f64s(scaled, product), to);
    }
    let rest = s_blocks.remainder().iter().zip(a_blocks.remainder()).zip(x_blocks.remainder());
    for (to, ((s, a), x)) in to_blocks.into_remainder().iter_mut().zip(rest) {
        *to = R::from_f64(s * to.to_f64() - a * x.to_f64());
    }
}

/// `to = s to − a x`.
#[inline(always)]
pub(super) fn combine_in_place<L: Isa, R: Real, X: Element>(isa: L, to: &mut [R], s: f64, a: f64, x: &[X]) {
    let lanes = L::F64_LANES;
    let (many_s, many_a) = (isa.splat_f64s(s), isa.splat_f64s(-a));
    let (mut to_blocks, mut x_blocks) = (to.chunks_exact_mut(lanes), x.chunks_exact(lanes));
    for (to, x) in (&mut to_blocks).zip(&mut x_blocks) {
        let scaled = isa.mul_f64s(many_s, R::load(isa, to));
        R::store(isa, isa.mul_add_e_f64s(many_a, X::load(isa, x), scaled), to);
    }
    for (to, x) in to_blocks.into_remainder().iter_mut().zip(x_blocks.remainder()) {
        *to = R::from_f64(s * to.to_f64() - a * x.to_f64());
    }
}

/// A sum, and the rounding errors that it has made so far (Neumaier; <https://doi.org/10.1002/zamm.19740540106>).
#[derive(Clone, Copy, Default)]
pub(super) struct Compensated {
    sum: f64,
    lost: f64,
}

impl Compensated {
    #[inline(always)]
    pub fn add(&mut self, x: f64) {
        let (sum, lost) = two_sum(self.sum, x);
        self.sum = sum;
        self.lost += lost;
    }

    #[inline(always)]
    pub fn total(self) -> f64 {
        with_lost(self.sum, self.lost)
    }
}

/// A sum and its rounding errors. Those of a sum that overflowed are not numbers: it stays infinite.
#[inline(always)]
pub(super) fn with_lost<R: PartialOrd + Copy + core::ops::Add<Output = R>>(sum: R, lost: R) -> R {
    let is_number = lost.partial_cmp(&lost).is_some();
    if is_number { sum + lost } else { sum }
}

/// `x + y`, and the rounding error of it (Knuth): exact unless the sum overflows.
#[inline(always)]
fn two_sum<T: Copy + core::ops::Add<Output = T> + core::ops::Sub<Output = T>>(x: T, y: T) -> (T, T) {
    let sum = x + y;
    let y_part = sum - x;
    let x_part = sum - y_part;
    (sum, (x - x_part) + (y - y_part))
}

/// [`Compensated::add`] for each element.
#[inline(always)]
pub(super) fn add_compensated<R>(sums: &mut [R], lost: &mut [R], x: &[R])
where
    R: Copy + core::ops::Add<Output = R> + core::ops::Sub<Output = R>,
{
    for ((sum, lost), &x) in sums.iter_mut().zip(lost).zip(x) {
        let (total, error) = two_sum(*sum, x);
        *sum = total;
        *lost = *lost + error;
    }
}

/// Also without std.
#[inline(always)]
pub(super) fn sqrt(x: f64) -> f64 {
    pulp::Simd::sqrt_f64s(pulp::Scalar, x)
}

/// Clamps to [-1, 1]; NaN stays NaN.
#[inline(always)]
pub(super) fn into_range<R: Real>(x: R) -> R {
    let (least, most) = (R::from_f64(-1.0), R::from_f64(1.0));
    if x > most {
        most
    } else if x < least {
        least
    } else {
        x
    }
}
