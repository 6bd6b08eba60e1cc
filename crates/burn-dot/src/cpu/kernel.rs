//! The loops over numbers: on slices, and on equal steps through memory.
//!
//! Each is written once, in lanes of a fixed width that the compiler turns into vectors; [`vectorized`] compiles a whole task for the best
//! instructions that the machine has. Sums of f32 are kept in f64: products of two f32 are exact there, squares cannot overflow, and
//! where memory sets the pace it costs nothing.

use burn_core::tensor::{bf16, f16};
use half::slice::HalfFloatSliceExt;

/// Work that is compiled once for each level of instructions.
///
/// A type, not a closure: everything down to the loops must be inlined for them to see the level, and only functions that say
/// `inline(always)` surely are. For the same reason closures on the way say it too.
pub(super) trait Task {
    type Output;
    fn run(self) -> Self::Output;
}

/// Runs a task with the widest vectors of this machine.
pub(super) fn vectorized<T: Task>(task: T) -> T::Output {
    struct Vectorized<T>(T);
    impl<T: Task> pulp::WithSimd for Vectorized<T> {
        type Output = T::Output;
        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, _: S) -> T::Output {
            self.0.run()
        }
    }
    pulp::Arch::new().dispatch(Vectorized(task))
}

/// Independent sums that run side by side: enough to hide the latency of an addition.
const LANES: usize = 16;

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

#[inline(always)]
fn total(lanes: [f64; LANES]) -> f64 {
    let mut lanes = lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// `Σ x y`.
#[inline(always)]
pub(super) fn dot<R: Real>(x: &[R], y: &[R]) -> f64 {
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    let mut sum = [0.0; LANES];
    for (x, y) in x.iter().zip(y) {
        for i in 0..LANES {
            sum[i] += x[i].to_f64() * y[i].to_f64();
        }
    }
    x_rest.iter().zip(y_rest).fold(total(sum), |sum, (x, y)| sum + x.to_f64() * y.to_f64())
}

/// `Σ x y` and `Σ y y` in one pass.
#[inline(always)]
pub(super) fn dot_and_square<R: Real>(x: &[R], y: &[R]) -> (f64, f64) {
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    let (mut xy, mut yy) = ([0.0; LANES], [0.0; LANES]);
    for (x, y) in x.iter().zip(y) {
        for i in 0..LANES {
            let (x, y) = (x[i].to_f64(), y[i].to_f64());
            xy[i] += x * y;
            yy[i] += y * y;
        }
    }
    let (mut xy, mut yy) = (total(xy), total(yy));
    for (x, y) in x_rest.iter().zip(y_rest) {
        xy += x.to_f64() * y.to_f64();
        yy += y.to_f64() * y.to_f64();
    }
    (xy, yy)
}

/// `Σ x x`, `Σ x y` and `Σ y y` in one pass.
#[inline(always)]
pub(super) fn dot_and_squares<R: Real>(x: &[R], y: &[R]) -> (f64, f64, f64) {
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    let (mut xx, mut xy, mut yy) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
    for (x, y) in x.iter().zip(y) {
        for i in 0..LANES {
            let (x, y) = (x[i].to_f64(), y[i].to_f64());
            xx[i] += x * x;
            xy[i] += x * y;
            yy[i] += y * y;
        }
    }
    let (mut xx, mut xy, mut yy) = (total(xx), total(xy), total(yy));
    for (x, y) in x_rest.iter().zip(y_rest) {
        let (x, y) = (x.to_f64(), y.to_f64());
        xx += x * x;
        xy += x * y;
        yy += y * y;
    }
    (xx, xy, yy)
}

/// `to = a x + b y`, each number rounded once.
#[inline(always)]
pub(super) fn combine<R: Real, X: Real>(to: &mut [R], (a, x): (f64, &[X]), (b, y): (f64, &[R])) {
    for ((to, x), y) in to.iter_mut().zip(x).zip(y) {
        *to = R::from_f64(a * x.to_f64() + b * y.to_f64());
    }
}

/// `to = a x`.
#[inline(always)]
pub(super) fn scale<R: Real, X: Real>(to: &mut [R], a: f64, x: &[X]) {
    for (to, x) in to.iter_mut().zip(x) {
        *to = R::from_f64(a * x.to_f64());
    }
}

/// `sum += a x`.
#[inline(always)]
pub(super) fn accumulate<R: Real>(sum: &mut [f64], a: f64, x: &[R]) {
    for (sum, x) in sum.iter_mut().zip(x) {
        *sum += a * x.to_f64();
    }
}

/// `sum += x y`, number by number.
#[inline(always)]
pub(super) fn accumulate_products<R: Real>(sum: &mut [f64], x: &[R], y: &[R]) {
    for ((sum, x), y) in sum.iter_mut().zip(x).zip(y) {
        *sum += x.to_f64() * y.to_f64();
    }
}

/// `to -= a x`, number by number.
#[inline(always)]
pub(super) fn subtract_products<R: Real>(to: &mut [R], a: &[f64], x: &[R]) {
    for ((to, a), x) in to.iter_mut().zip(a).zip(x) {
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
