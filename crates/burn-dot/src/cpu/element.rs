//! The dtypes of tensors, and the two that arithmetic is done in.

use core::ops::{Add, Mul, RangeInclusive, Sub};

use burn_core::tensor::{bf16, f16};

use super::simd::{Isa, Pairs, Transposed};

/// A dtype of tensors.
pub(super) trait Element: Copy + Default + Send + Sync + 'static {
    /// The compute (accumulator) dtype.
    type Compute: Compute;
    /// Whether that is this dtype.
    const IS_COMPUTE: bool;
    /// Products that each lane adds in the compute dtype before the sum goes on in f64: so few that hardly a digit of this dtype is lost.
    const CHAIN: usize;
    /// The largest finite element, of f16 and bf16; infinite for the compute dtypes.
    const SATURATION: f64;

    fn to_f64(self) -> f64;
    /// To the nearest; to f16 and bf16 by way of f32.
    fn from_f64(x: f64) -> Self;

    /// Load-convert: a vector of `A`, from the front of a slice.
    fn load<A: Compute, S: Isa>(isa: S, from: &[Self]) -> A::Vector<S>;
    /// Convert-store, to the front of a slice.
    fn store<A: Compute, S: Isa>(isa: S, x: A::Vector<S>, to: &mut [Self]);
}

/// A compute dtype: f32 or f64. Vectors of it fill a register.
pub(super) trait Compute:
    Element<Compute = Self> + PartialOrd + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self>
{
    const IS_F64: bool = size_of::<Self>() == size_of::<f64>();
    /// Norms whose squares, inverses and products of two inverses f64 holds, with room for the gradient.
    const NORMS: RangeInclusive<f64>;
    /// Norms of vectors whose products, and the products of their inverses, stay well within this dtype.
    const MATRIX_NORMS: RangeInclusive<f64>;
    /// The smallest normal number.
    const MIN_POSITIVE: f64;

    /// A register.
    type Vector<S: Isa>: Copy;

    fn abs(self) -> Self;

    /// Elements of a vector.
    fn lanes<S: Isa>() -> usize;
    /// Rows, and elements of each, that [`Compute::transpose`] takes at once, at most.
    fn block<S: Isa>() -> usize;

    fn splat<S: Isa>(isa: S, x: Self) -> Self::Vector<S>;
    fn add_vectors<S: Isa>(isa: S, x: Self::Vector<S>, y: Self::Vector<S>) -> Self::Vector<S>;
    fn mul_vectors<S: Isa>(isa: S, x: Self::Vector<S>, y: Self::Vector<S>) -> Self::Vector<S>;
    /// `x y + z`.
    fn mul_add<S: Isa>(isa: S, x: Self::Vector<S>, y: Self::Vector<S>, z: Self::Vector<S>) -> Self::Vector<S>;
    /// [`Pairs::add`], in f32 alone.
    fn add_pairs<S: Isa>(pairs: S::Pairs, x: Self::Vector<S>, y: Self::Vector<S>, sum: Self::Vector<S>) -> Self::Vector<S>;
    fn reduce_sum<S: Isa>(isa: S, x: Self::Vector<S>) -> Self;
    /// Clamps to [-max, max]; NaN stays NaN.
    fn clamp<S: Isa>(isa: S, x: Self::Vector<S>, max: Self) -> Self::Vector<S>;

    fn load_f64<S: Isa>(isa: S, from: &[f64]) -> Self::Vector<S>;
    fn load_f32<S: Isa>(isa: S, from: &[f32]) -> Self::Vector<S>;
    fn load_f16<S: Isa>(isa: S, from: &[f16]) -> Self::Vector<S>;
    fn load_bf16<S: Isa>(isa: S, from: &[bf16]) -> Self::Vector<S>;
    fn store_f64<S: Isa>(isa: S, x: Self::Vector<S>, to: &mut [f64]);
    fn store_f32<S: Isa>(isa: S, x: Self::Vector<S>, to: &mut [f32]);
    fn store_f16<S: Isa>(isa: S, x: Self::Vector<S>, to: &mut [f16]);
    fn store_bf16<S: Isa>(isa: S, x: Self::Vector<S>, to: &mut [bf16]);

    /// # Safety
    ///
    /// A vector can be read there.
    unsafe fn load_vector<S: Isa>(isa: S, from: *const Self) -> Self::Vector<S>;
    /// # Safety
    ///
    /// A vector can be written there.
    unsafe fn store_vector<S: Isa>(isa: S, x: Self::Vector<S>, to: *mut Self);
    /// Transposes a block.
    ///
    /// # Safety
    ///
    /// As [`Transposed`] says, of at most [`Compute::block`] rows and columns.
    unsafe fn transpose<S: Isa>(isa: S, block: Transposed<Self>);
}

macro_rules! element {
    ($element:ty, $compute:ty, chain: $chain:literal, saturation: $saturation:expr, $load:ident, $store:ident, |$x:ident| $from_f64:expr) => {
        impl Element for $element {
            type Compute = $compute;
            const IS_COMPUTE: bool = size_of::<Self>() == size_of::<$compute>();
            const CHAIN: usize = $chain;
            const SATURATION: f64 = $saturation;

            #[inline(always)]
            fn to_f64(self) -> f64 {
                self.into()
            }
            #[inline(always)]
            fn from_f64($x: f64) -> Self {
                $from_f64
            }
            #[inline(always)]
            fn load<A: Compute, S: Isa>(isa: S, from: &[Self]) -> A::Vector<S> {
                A::$load(isa, from)
            }
            #[inline(always)]
            fn store<A: Compute, S: Isa>(isa: S, x: A::Vector<S>, to: &mut [Self]) {
                A::$store(isa, x, to);
            }
        }
    };
}
element!(f64, f64, chain: 32, saturation: f64::INFINITY, load_f64, store_f64, |x| x);
element!(f32, f32, chain: 16, saturation: f64::INFINITY, load_f32, store_f32, |x| x as f32);
// Constants are converted as such: at run time, the conversion of a single f16 first asks for the processor's features.
element!(f16, f32, chain: 32, saturation: f16::MAX.to_f64_const(), load_f16, store_f16, |x| f16::from_f32(x as f32));
element!(bf16, f32, chain: 32, saturation: bf16::MAX.to_f64_const(), load_bf16, store_bf16, |x| bf16::from_f32(x as f32));

/// What the two compute dtypes do alike, by pulp's names for each.
macro_rules! compute {
    ($vector:ident, $lanes:ident, $block:ident, $splat:ident, $add:ident, $mul:ident, $mul_add:ident, $reduce:ident, $clamp:ident, $transpose:ident) => {
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
        fn block<S: Isa>() -> usize {
            S::$block
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
        fn reduce_sum<S: Isa>(isa: S, x: Self::Vector<S>) -> Self {
            isa.$reduce(x)
        }
        #[inline(always)]
        fn clamp<S: Isa>(isa: S, x: Self::Vector<S>, max: Self) -> Self::Vector<S> {
            isa.$clamp(x, -max, max)
        }
        #[inline(always)]
        unsafe fn load_vector<S: Isa>(_isa: S, from: *const Self) -> Self::Vector<S> {
            // SAFETY: a vector is plain elements, and the caller says that they can be read.
            unsafe { from.cast::<Self::Vector<S>>().read_unaligned() }
        }
        #[inline(always)]
        unsafe fn store_vector<S: Isa>(_isa: S, x: Self::Vector<S>, to: *mut Self) {
            // SAFETY: a vector is plain elements, and the caller says that they can be written.
            unsafe { to.cast::<Self::Vector<S>>().write_unaligned(x) }
        }
        #[inline(always)]
        unsafe fn transpose<S: Isa>(isa: S, block: Transposed<Self>) {
            // SAFETY: the block is no larger than the instruction set's, and can be read and written, the caller says.
            unsafe { isa.$transpose(block) }
        }
    };
}

impl Compute for f32 {
    const NORMS: RangeInclusive<f64> = 0.0..=f64::INFINITY;
    const MATRIX_NORMS: RangeInclusive<f64> = 1e-9..=1e9;
    const MIN_POSITIVE: f64 = f32::MIN_POSITIVE as f64;
    compute!(
        f32s,
        F32_LANES,
        F32_BLOCK,
        splat_f32s,
        add_f32s,
        mul_f32s,
        mul_add_e_f32s,
        reduce_sum_f32s,
        clamp_f32s,
        transpose_f32
    );

    #[inline(always)]
    fn add_pairs<S: Isa>(pairs: S::Pairs, x: S::f32s, y: S::f32s, sum: S::f32s) -> S::f32s {
        pairs.add(x, y, sum)
    }
    // No loop converts f64 on its way in, or to f64 on its way out; so these need not be fast.
    #[inline(always)]
    fn load_f64<S: Isa>(isa: S, from: &[f64]) -> S::f32s {
        let mut x = isa.splat_f32s(0.0);
        let lanes = bytemuck::cast_slice_mut::<S::f32s, f32>(core::slice::from_mut(&mut x));
        lanes.iter_mut().zip(from).for_each(|(x, &from)| *x = from as f32);
        x
    }
    #[inline(always)]
    fn store_f64<S: Isa>(_isa: S, x: S::f32s, to: &mut [f64]) {
        let lanes = bytemuck::cast_slice::<S::f32s, f32>(core::slice::from_ref(&x));
        to.iter_mut().zip(lanes).for_each(|(to, &x)| *to = x.into());
    }
    #[inline(always)]
    fn load_f32<S: Isa>(_isa: S, from: &[f32]) -> S::f32s {
        S::as_simd_f32s(&from[..S::F32_LANES]).0[0]
    }
    #[inline(always)]
    fn store_f32<S: Isa>(_isa: S, x: S::f32s, to: &mut [f32]) {
        S::as_mut_simd_f32s(&mut to[..S::F32_LANES]).0[0] = x;
    }
    #[inline(always)]
    fn load_f16<S: Isa>(isa: S, from: &[f16]) -> S::f32s {
        isa.load_f16_as_f32(from)
    }
    #[inline(always)]
    fn store_f16<S: Isa>(isa: S, x: S::f32s, to: &mut [f16]) {
        isa.store_f32_as_f16(x, to);
    }
    #[inline(always)]
    fn load_bf16<S: Isa>(isa: S, from: &[bf16]) -> S::f32s {
        isa.load_bf16_as_f32(from)
    }
    #[inline(always)]
    fn store_bf16<S: Isa>(isa: S, x: S::f32s, to: &mut [bf16]) {
        isa.store_f32_as_bf16(x, to);
    }
}

impl Compute for f64 {
    const NORMS: RangeInclusive<f64> = 1e-60..=1e60;
    const MATRIX_NORMS: RangeInclusive<f64> = 1e-60..=1e60;
    const MIN_POSITIVE: f64 = f64::MIN_POSITIVE;
    compute!(
        f64s,
        F64_LANES,
        F64_BLOCK,
        splat_f64s,
        add_f64s,
        mul_f64s,
        mul_add_e_f64s,
        reduce_sum_f64s,
        clamp_f64s,
        transpose_f64
    );

    fn add_pairs<S: Isa>(_: S::Pairs, _: S::f64s, _: S::f64s, _: S::f64s) -> S::f64s {
        unreachable!("pairs of bf16 are added in f32")
    }
    #[inline(always)]
    fn load_f64<S: Isa>(isa: S, from: &[f64]) -> S::f64s {
        isa.load_f64(from)
    }
    #[inline(always)]
    fn store_f64<S: Isa>(isa: S, x: S::f64s, to: &mut [f64]) {
        isa.store_f64(x, to);
    }
    #[inline(always)]
    fn load_f32<S: Isa>(isa: S, from: &[f32]) -> S::f64s {
        isa.load_f32_as_f64(from)
    }
    #[inline(always)]
    fn store_f32<S: Isa>(isa: S, x: S::f64s, to: &mut [f32]) {
        isa.store_f64_as_f32(x, to);
    }
    #[inline(always)]
    fn load_f16<S: Isa>(isa: S, from: &[f16]) -> S::f64s {
        isa.load_f16_as_f64(from)
    }
    #[inline(always)]
    fn store_f16<S: Isa>(isa: S, x: S::f64s, to: &mut [f16]) {
        isa.store_f64_as_f16(x, to);
    }
    #[inline(always)]
    fn load_bf16<S: Isa>(isa: S, from: &[bf16]) -> S::f64s {
        isa.load_bf16_as_f64(from)
    }
    #[inline(always)]
    fn store_bf16<S: Isa>(isa: S, x: S::f64s, to: &mut [bf16]) {
        isa.store_f64_as_bf16(x, to);
    }
}

/// Clamps to [-1, 1]; NaN stays NaN.
#[inline(always)]
pub(super) fn clamp_to_one<R: Compute>(x: R) -> R {
    let (min, max) = (R::from_f64(-1.0), R::from_f64(1.0));
    if x > max {
        max
    } else if x < min {
        min
    } else {
        x
    }
}

/// Also without std.
#[inline(always)]
pub(super) fn sqrt(x: f64) -> f64 {
    pulp::Simd::sqrt_f64s(pulp::Scalar, x)
}
