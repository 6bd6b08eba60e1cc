//! The loops over numbers: on slices, and on equal steps through memory.
//!
//! Each is written once, in lanes of a fixed width that the compiler turns into vectors; [`vectorized`] compiles a whole task for the best
//! instructions that the machine has. Sums of f32 are kept in f64: products of two f32 are exact there, squares cannot overflow, and
//! where memory sets the pace it costs nothing.

use burn_core::tensor::{bf16, f16};
use half::slice::HalfFloatSliceExt;

/// A level of instructions: pulp's registers, and the steps between f32 and f64 that it has for single levels only.
pub(super) trait Level: pulp::Simd {
    /// As many numbers as a register of f64 holds, from the front.
    fn load_f32(self, from: &[f32]) -> Self::f64s;
    fn load_f64(self, from: &[f64]) -> Self::f64s;
    fn store_f32(self, x: Self::f64s, to: &mut [f32]);
    fn store_f64(self, x: Self::f64s, to: &mut [f64]);
}

macro_rules! level {
    ($level:ty, $lanes:literal, $f32:ty, $f64:ty, $widen:ident, $narrow:ident) => {
        impl Level for $level {
            #[inline(always)]
            fn load_f32(self, from: &[f32]) -> Self::f64s {
                self.$widen(pulp::cast::<[f32; $lanes], $f32>(*from.first_chunk().expect("a register's worth")))
            }
            #[inline(always)]
            fn load_f64(self, from: &[f64]) -> Self::f64s {
                pulp::cast::<[f64; $lanes], $f64>(*from.first_chunk().expect("a register's worth"))
            }
            #[inline(always)]
            fn store_f32(self, x: Self::f64s, to: &mut [f32]) {
                *to.first_chunk_mut().expect("a register's worth") = pulp::cast::<$f32, [f32; $lanes]>(self.$narrow(x));
            }
            #[inline(always)]
            fn store_f64(self, x: Self::f64s, to: &mut [f64]) {
                *to.first_chunk_mut().expect("a register's worth") = pulp::cast::<$f64, [f64; $lanes]>(x);
            }
        }
    };
}
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
level!(pulp::x86::V4, 8, pulp::f32x8, pulp::f64x8, convert_f32x8_to_f64x8, convert_f64x8_to_f32x8);
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
level!(pulp::x86::V3, 4, pulp::f32x4, pulp::f64x4, convert_f32x4_to_f64x4, convert_f64x4_to_f32x4);

impl Level for pulp::Scalar {
    #[inline(always)]
    fn load_f32(self, from: &[f32]) -> f64 {
        from[0].into()
    }
    #[inline(always)]
    fn load_f64(self, from: &[f64]) -> f64 {
        from[0]
    }
    #[inline(always)]
    fn store_f32(self, x: f64, to: &mut [f32]) {
        to[0] = x as f32;
    }
    #[inline(always)]
    fn store_f64(self, x: f64, to: &mut [f64]) {
        to[0] = x;
    }
}

/// Work that is compiled once for each level of instructions.
///
/// A type, not a closure: everything down to the loops must be inlined for them to be compiled at the level, and only functions that
/// say `inline(always)` surely are. For the same reason closures on the way say it too.
pub(super) trait Task {
    type Output;
    fn run<S: Level>(self, level: S) -> Self::Output;
}

/// Runs a task at the best level of this machine.
pub(super) fn vectorized<T: Task>(task: T) -> T::Output {
    struct At<T, S>(T, S);
    impl<T: Task, S: Level> pulp::WithSimd for At<T, S> {
        type Output = T::Output;
        #[inline(always)]
        fn with_simd<P: pulp::Simd>(self, _: P) -> T::Output {
            self.0.run(self.1)
        }
    }
    use pulp::Simd;
    match pulp::Arch::new() {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        pulp::Arch::V4(level) => Simd::vectorize(level, At(task, level)),
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        pulp::Arch::V3(level) => Simd::vectorize(level, At(task, level)),
        _ => task.run(pulp::Scalar),
    }
}

/// How many numbers of another dtype, or of other steps, are brought into a buffer at a time: 2 or 4 KiB, in the first cache.
pub(super) const CHUNK: usize = 512;

/// A dtype to multiply in: f32 or f64.
pub(super) trait Real: Element<Real = Self> + PartialOrd + core::ops::Mul<Output = Self> {
    /// Norms whose squares neither overflow nor lose digits in f64, and neither do products of two such numbers and their inverses.
    const NORMS: core::ops::RangeInclusive<f64>;
    /// Norms of vectors whose products, and the products of their inverses, stay well within this dtype.
    const MATRIX_NORMS: core::ops::RangeInclusive<f64>;
    /// The smallest normal number.
    const SMALLEST: f64;

    fn to_f64(self) -> f64;
    fn from_f64(x: f64) -> Self;
    fn load<S: Level>(level: S, from: &[Self]) -> S::f64s;
    fn store<S: Level>(level: S, x: S::f64s, to: &mut [Self]);
}

impl Real for f32 {
    const NORMS: core::ops::RangeInclusive<f64> = 0.0..=f64::INFINITY;
    const MATRIX_NORMS: core::ops::RangeInclusive<f64> = 1e-9..=1e9;
    const SMALLEST: f64 = f32::MIN_POSITIVE as f64;

    #[inline(always)]
    fn to_f64(self) -> f64 {
        self.into()
    }
    #[inline(always)]
    fn from_f64(x: f64) -> Self {
        x as f32
    }
    #[inline(always)]
    fn load<S: Level>(level: S, from: &[Self]) -> S::f64s {
        level.load_f32(from)
    }
    #[inline(always)]
    fn store<S: Level>(level: S, x: S::f64s, to: &mut [Self]) {
        level.store_f32(x, to)
    }
}

impl Real for f64 {
    const NORMS: core::ops::RangeInclusive<f64> = 1e-120..=1e120;
    const MATRIX_NORMS: core::ops::RangeInclusive<f64> = 1e-60..=1e60;
    const SMALLEST: f64 = f64::MIN_POSITIVE;

    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
    #[inline(always)]
    fn from_f64(x: f64) -> Self {
        x
    }
    #[inline(always)]
    fn load<S: Level>(level: S, from: &[Self]) -> S::f64s {
        level.load_f64(from)
    }
    #[inline(always)]
    fn store<S: Level>(level: S, x: S::f64s, to: &mut [Self]) {
        level.store_f64(x, to)
    }
}

/// A dtype of tensors.
pub(super) trait Element: Copy + Default + Send + Sync + 'static {
    /// The dtype to multiply in.
    type Real: Real;

    fn real(self) -> Self::Real;

    fn rounded(x: Self::Real) -> Self;

    /// Rounds; the largest finite number stands for what is beyond it, as no gradient or cosine is infinite.
    fn saturated(x: Self::Real) -> Self;

    /// The numbers as they are, where no conversion is needed.
    fn as_real(slice: &[Self]) -> Option<&[Self::Real]>;

    fn as_real_mut(slice: &mut [Self]) -> Option<&mut [Self::Real]>;

    fn widen(from: &[Self], to: &mut [Self::Real]);

    /// Rounds numbers that may be changed on the way.
    fn narrow(from: &mut [Self::Real], to: &mut [Self], saturate: bool);
}

macro_rules! real_element {
    ($real:ty) => {
        impl Element for $real {
            type Real = $real;
            #[inline(always)]
            fn real(self) -> $real {
                self
            }
            #[inline(always)]
            fn rounded(x: $real) -> Self {
                x
            }
            #[inline(always)]
            fn saturated(x: $real) -> Self {
                x
            }
            #[inline(always)]
            fn as_real(slice: &[Self]) -> Option<&[$real]> {
                Some(slice)
            }
            #[inline(always)]
            fn as_real_mut(slice: &mut [Self]) -> Option<&mut [$real]> {
                Some(slice)
            }
            #[inline(always)]
            fn widen(from: &[Self], to: &mut [$real]) {
                to.copy_from_slice(from);
            }
            #[inline(always)]
            fn narrow(from: &mut [$real], to: &mut [Self], _: bool) {
                to.copy_from_slice(from);
            }
        }
    };
}
real_element!(f32);
real_element!(f64);

macro_rules! half_element {
    ($half:ty) => {
        impl Element for $half {
            type Real = f32;
            #[inline(always)]
            fn real(self) -> f32 {
                self.to_f32()
            }
            #[inline(always)]
            fn rounded(x: f32) -> Self {
                Self::from_f32(x)
            }
            #[inline(always)]
            fn saturated(x: f32) -> Self {
                // NaN stays NaN.
                Self::from_f32(x.clamp(Self::MIN.to_f32(), Self::MAX.to_f32()))
            }
            #[inline(always)]
            fn as_real(_: &[Self]) -> Option<&[f32]> {
                None
            }
            #[inline(always)]
            fn as_real_mut(_: &mut [Self]) -> Option<&mut [f32]> {
                None
            }
            #[inline(always)]
            fn widen(from: &[Self], to: &mut [f32]) {
                from.convert_to_f32_slice(to);
            }
            #[inline(always)]
            fn narrow(from: &mut [f32], to: &mut [Self], saturate: bool) {
                if saturate {
                    let (least, most) = (Self::MIN.to_f32(), Self::MAX.to_f32());
                    from.iter_mut().for_each(
                        #[inline(always)]
                        |x| *x = x.clamp(least, most),
                    );
                }
                to.convert_from_f32_slice(from);
            }
        }
    };
}
half_element!(f16);
half_element!(bf16);

/// Numbers at equal steps in memory.
#[derive(Clone, Copy)]
pub(super) struct Run<T> {
    pub at: *const T,
    pub step: isize,
    pub len: usize,
}

impl<T: Element> Run<T> {
    /// The numbers side by side, in the dtype to multiply in, where they already are.
    ///
    /// # Safety
    ///
    /// All of them lie within one allocation that is not written to while the slice lives.
    #[inline(always)]
    pub unsafe fn as_real<'a>(self) -> Option<&'a [T::Real]> {
        // SAFETY: the caller's promise, at step 1.
        (self.step == 1).then(|| unsafe { core::slice::from_raw_parts(self.at, self.len) }).and_then(T::as_real)
    }

    /// Copies the numbers side by side, in the dtype to multiply in.
    ///
    /// # Safety
    ///
    /// All of them lie within one allocation; there are no more than the buffer holds.
    #[inline(always)]
    pub unsafe fn copy(self, buffer: &mut [T::Real]) -> &[T::Real] {
        let to = &mut buffer[..self.len];
        if self.step == 1 {
            // SAFETY: the caller's promise, at step 1.
            T::widen(unsafe { core::slice::from_raw_parts(self.at, self.len) }, to);
        } else {
            for (i, to) in to.iter_mut().enumerate() {
                // SAFETY: the caller's promise.
                *to = unsafe { *self.at.offset(i as isize * self.step) }.real();
            }
        }
        to
    }
}

/// Numbers to write at equal steps in memory.
#[derive(Clone, Copy)]
pub(super) struct RunMut<T> {
    pub at: *mut T,
    pub step: isize,
    pub len: usize,
    /// Whether the largest finite number stands for what is beyond it.
    pub saturate: bool,
}

impl<T: Element> RunMut<T> {
    /// Lets `write` fill the numbers: in place where they are side by side in the dtype to multiply in, else by way of the buffer.
    ///
    /// # Safety
    ///
    /// All the places lie within one allocation that nothing else reads or writes meanwhile. At most as many as the buffer holds,
    /// unless they are side by side in a [`Real`] dtype.
    #[inline(always)]
    pub unsafe fn fill(self, buffer: &mut [T::Real], write: impl FnOnce(&mut [T::Real])) {
        if self.step == 1 {
            // SAFETY: the caller's promise, at step 1.
            let slice = unsafe { core::slice::from_raw_parts_mut(self.at, self.len) };
            if let Some(real) = T::as_real_mut(slice) {
                return write(real);
            }
            let buffer = &mut buffer[..self.len];
            write(buffer);
            return T::narrow(buffer, slice, self.saturate);
        }
        let buffer = &mut buffer[..self.len];
        write(buffer);
        for (i, &x) in buffer.iter().enumerate() {
            let x = if self.saturate { T::saturated(x) } else { T::rounded(x) };
            // SAFETY: the caller's promise.
            unsafe { *self.at.offset(i as isize * self.step) = x };
        }
    }
}

/// Sums that run side by side: enough to hide the latency of an addition.
const SUMS: usize = 4;

/// `Σ x y`.
#[inline(always)]
pub(super) fn dot<S: Level, R: Real>(level: S, x: &[R], y: &[R]) -> f64 {
    let lanes = S::F64_LANES;
    let mut sums = [level.splat_f64s(0.0); SUMS];
    let (mut x_blocks, mut y_blocks) = (x.chunks_exact(SUMS * lanes), y.chunks_exact(SUMS * lanes));
    for (x, y) in (&mut x_blocks).zip(&mut y_blocks) {
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = level.mul_add_e_f64s(R::load(level, &x[i * lanes..]), R::load(level, &y[i * lanes..]), *sum);
        }
    }
    let (mut x_rest, mut y_rest) = (x_blocks.remainder().chunks_exact(lanes), y_blocks.remainder().chunks_exact(lanes));
    for (x, y) in (&mut x_rest).zip(&mut y_rest) {
        sums[0] = level.mul_add_e_f64s(R::load(level, x), R::load(level, y), sums[0]);
    }
    let sum = level.add_f64s(level.add_f64s(sums[0], sums[1]), level.add_f64s(sums[2], sums[3]));
    let rest = x_rest.remainder().iter().zip(y_rest.remainder());
    rest.fold(level.reduce_sum_f64s(sum), |sum, (x, y)| sum + x.to_f64() * y.to_f64())
}

/// `Σ x y` and `Σ y y` in one pass.
#[inline(always)]
pub(super) fn dot_and_square<S: Level, R: Real>(level: S, x: &[R], y: &[R]) -> (f64, f64) {
    let lanes = S::F64_LANES;
    let mut xy = [level.splat_f64s(0.0); 2];
    let mut yy = xy;
    let (mut x_blocks, mut y_blocks) = (x.chunks_exact(2 * lanes), y.chunks_exact(2 * lanes));
    for (x, y) in (&mut x_blocks).zip(&mut y_blocks) {
        for i in 0..2 {
            let (x, y) = (R::load(level, &x[i * lanes..]), R::load(level, &y[i * lanes..]));
            xy[i] = level.mul_add_e_f64s(x, y, xy[i]);
            yy[i] = level.mul_add_e_f64s(y, y, yy[i]);
        }
    }
    let (mut xy, mut yy) =
        (level.reduce_sum_f64s(level.add_f64s(xy[0], xy[1])), level.reduce_sum_f64s(level.add_f64s(yy[0], yy[1])));
    for (x, y) in x_blocks.remainder().iter().zip(y_blocks.remainder()) {
        xy += x.to_f64() * y.to_f64();
        yy += y.to_f64() * y.to_f64();
    }
    (xy, yy)
}

/// `Σ x x`, `Σ x y` and `Σ y y` in one pass.
#[inline(always)]
pub(super) fn dot_and_squares<S: Level, R: Real>(level: S, x: &[R], y: &[R]) -> (f64, f64, f64) {
    let lanes = S::F64_LANES;
    let mut xx = [level.splat_f64s(0.0); 2];
    let (mut xy, mut yy) = (xx, xx);
    let (mut x_blocks, mut y_blocks) = (x.chunks_exact(2 * lanes), y.chunks_exact(2 * lanes));
    for (x, y) in (&mut x_blocks).zip(&mut y_blocks) {
        for i in 0..2 {
            let (x, y) = (R::load(level, &x[i * lanes..]), R::load(level, &y[i * lanes..]));
            xx[i] = level.mul_add_e_f64s(x, x, xx[i]);
            xy[i] = level.mul_add_e_f64s(x, y, xy[i]);
            yy[i] = level.mul_add_e_f64s(y, y, yy[i]);
        }
    }
    let total = |sums: [S::f64s; 2]| level.reduce_sum_f64s(level.add_f64s(sums[0], sums[1]));
    let (mut xx, mut xy, mut yy) = (total(xx), total(xy), total(yy));
    for (x, y) in x_blocks.remainder().iter().zip(y_blocks.remainder()) {
        let (x, y) = (x.to_f64(), y.to_f64());
        xx += x * x;
        xy += x * y;
        yy += y * y;
    }
    (xx, xy, yy)
}

/// `to = a x + b y`, each number rounded once.
#[inline(always)]
pub(super) fn combine<S: Level, R: Real, X: Real>(level: S, to: &mut [R], (a, x): (f64, &[X]), (b, y): (f64, &[R])) {
    let lanes = S::F64_LANES;
    let (many_a, many_b) = (level.splat_f64s(a), level.splat_f64s(b));
    let (mut to_blocks, mut x_blocks, mut y_blocks) =
        (to.chunks_exact_mut(lanes), x.chunks_exact(lanes), y.chunks_exact(lanes));
    for ((to, x), y) in (&mut to_blocks).zip(&mut x_blocks).zip(&mut y_blocks) {
        let sum = level.mul_f64s(many_b, R::load(level, y));
        R::store(level, level.mul_add_e_f64s(many_a, X::load(level, x), sum), to);
    }
    for ((to, x), y) in to_blocks.into_remainder().iter_mut().zip(x_blocks.remainder()).zip(y_blocks.remainder()) {
        *to = R::from_f64(a * x.to_f64() + b * y.to_f64());
    }
}

/// `to = a x`.
#[inline(always)]
pub(super) fn scale<S: Level, R: Real, X: Real>(level: S, to: &mut [R], a: f64, x: &[X]) {
    let lanes = S::F64_LANES;
    let many = level.splat_f64s(a);
    let (mut to_blocks, mut x_blocks) = (to.chunks_exact_mut(lanes), x.chunks_exact(lanes));
    for (to, x) in (&mut to_blocks).zip(&mut x_blocks) {
        R::store(level, level.mul_f64s(many, X::load(level, x)), to);
    }
    for (to, x) in to_blocks.into_remainder().iter_mut().zip(x_blocks.remainder()) {
        *to = R::from_f64(a * x.to_f64());
    }
}

/// `sum += a x`.
#[inline(always)]
pub(super) fn accumulate<S: Level, R: Real>(level: S, sum: &mut [f64], a: f64, x: &[R]) {
    let lanes = S::F64_LANES;
    let many = level.splat_f64s(a);
    let (mut sums, mut blocks) = (sum.chunks_exact_mut(lanes), x.chunks_exact(lanes));
    for (sum, x) in (&mut sums).zip(&mut blocks) {
        level.store_f64(level.mul_add_e_f64s(many, R::load(level, x), level.load_f64(sum)), sum);
    }
    for (sum, x) in sums.into_remainder().iter_mut().zip(blocks.remainder()) {
        *sum += a * x.to_f64();
    }
}

/// `sum += x y`, number by number.
#[inline(always)]
pub(super) fn accumulate_products<S: Level, R: Real>(level: S, sum: &mut [f64], x: &[R], y: &[R]) {
    let lanes = S::F64_LANES;
    let (mut sums, mut x_blocks, mut y_blocks) = (sum.chunks_exact_mut(lanes), x.chunks_exact(lanes), y.chunks_exact(lanes));
    for ((sum, x), y) in (&mut sums).zip(&mut x_blocks).zip(&mut y_blocks) {
        level.store_f64(level.mul_add_e_f64s(R::load(level, x), R::load(level, y), level.load_f64(sum)), sum);
    }
    for ((sum, x), y) in sums.into_remainder().iter_mut().zip(x_blocks.remainder()).zip(y_blocks.remainder()) {
        *sum += x.to_f64() * y.to_f64();
    }
}

/// `to -= a x`, number by number.
#[inline(always)]
pub(super) fn subtract_products<S: Level, R: Real>(level: S, to: &mut [R], a: &[f64], x: &[R]) {
    let lanes = S::F64_LANES;
    let (mut to_blocks, mut a_blocks, mut x_blocks) =
        (to.chunks_exact_mut(lanes), a.chunks_exact(lanes), x.chunks_exact(lanes));
    for ((to, a), x) in (&mut to_blocks).zip(&mut a_blocks).zip(&mut x_blocks) {
        let product = level.mul_f64s(level.load_f64(a), R::load(level, x));
        R::store(level, level.sub_f64s(R::load(level, to), product), to);
    }
    for ((to, a), x) in to_blocks.into_remainder().iter_mut().zip(a_blocks.remainder()).zip(x_blocks.remainder()) {
        *to = R::from_f64(to.to_f64() - a * x.to_f64());
    }
}

/// `to -= a x`.
#[inline(always)]
pub(super) fn subtract_scaled<S: Level, R: Real>(level: S, to: &mut [R], a: f64, x: &[R]) {
    let lanes = S::F64_LANES;
    let many = level.splat_f64s(-a);
    let (mut to_blocks, mut x_blocks) = (to.chunks_exact_mut(lanes), x.chunks_exact(lanes));
    for (to, x) in (&mut to_blocks).zip(&mut x_blocks) {
        R::store(level, level.mul_add_e_f64s(many, R::load(level, x), R::load(level, to)), to);
    }
    for (to, x) in to_blocks.into_remainder().iter_mut().zip(x_blocks.remainder()) {
        *to = R::from_f64(to.to_f64() - a * x.to_f64());
    }
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
