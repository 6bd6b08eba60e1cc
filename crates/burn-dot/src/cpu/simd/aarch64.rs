//! NEON.
//!
//! Loads, stores and conversions by `core::arch`, arithmetic by pulp. No intrinsic reaches `stnp`, the non-temporal store.
#![expect(clippy::undocumented_unsafe_blocks, reason = "one reason holds for all of a group, and stands before it")]

use core::{arch::aarch64::*, convert::Infallible, mem::transmute};

use burn_core::tensor::{bf16, f16};
use pulp::{Simd, aarch64::Neon, cast};

use super::{By, Isa, Task, Transposed, scalar};

/// # Safety
///
/// What the task says of its pointers holds.
pub unsafe fn dispatch<T: Task>(bytes: usize, task: T) -> T::Output {
    match pulp::Arch::new() {
        pulp::Arch::Neon(neon) => Simd::vectorize(neon, By(neon, task)),
        // SAFETY: what the task says of its pointers holds by whichever instruction set it runs.
        _ => unsafe { scalar::dispatch(bytes, task) },
    }
}

/// # Safety
///
/// What the tasks say of their pointers holds.
#[cfg(test)]
pub unsafe fn for_each_isa<T: Task<Output = ()>>(task: impl Fn() -> T) {
    let neon = Neon::try_new().expect("every processor of this architecture that runs an operating system has NEON");
    Simd::vectorize(neon, By(neon, task()));
    // SAFETY: what the tasks say of their pointers holds by whichever instruction set they run.
    unsafe { scalar::for_each_isa(task) };
}

// SAFETY of all: `self` shows that the processor has NEON. Slices are as long as what is read or written, as indexing them
// checks; what is at the pointers of `transpose_*` and `stream` the caller says, by the trait.
impl Isa for Neon {
    // Of 32 registers, 24 are accumulators, and 5 are inputs.
    const VECTORS: usize = 4;
    const ACCUMULATORS: usize = 24;
    const F32_BLOCK: usize = 4;
    const F64_BLOCK: usize = 2;
    type Pairs = Infallible;

    #[inline(always)]
    fn pairs(self) -> Option<Infallible> {
        None
    }

    #[inline(always)]
    fn load_f64(self, from: &[f64]) -> Self::f64s {
        cast(unsafe { vld1q_f64(from[..2].as_ptr()) })
    }
    #[inline(always)]
    fn load_f32_as_f64(self, from: &[f32]) -> Self::f64s {
        cast(unsafe { vcvt_f64_f32(vld1_f32(from[..2].as_ptr())) })
    }
    #[inline(always)]
    fn load_f16_as_f64(self, from: &[f16]) -> Self::f64s {
        cast(unsafe { vcvt_f64_f32(vget_low_f32(f16_to_f32(load_2(from[..2].as_ptr().cast())))) })
    }
    #[inline(always)]
    fn load_bf16_as_f64(self, from: &[bf16]) -> Self::f64s {
        cast(unsafe { vcvt_f64_f32(vget_low_f32(bf16_to_f32(load_2(from[..2].as_ptr().cast())))) })
    }
    #[inline(always)]
    fn load_f16_as_f32(self, from: &[f16]) -> Self::f32s {
        cast(unsafe { f16_to_f32(vld1_u16(from[..4].as_ptr().cast())) })
    }
    #[inline(always)]
    fn load_bf16_as_f32(self, from: &[bf16]) -> Self::f32s {
        cast(unsafe { bf16_to_f32(vld1_u16(from[..4].as_ptr().cast())) })
    }

    #[inline(always)]
    fn store_f64(self, x: Self::f64s, to: &mut [f64]) {
        unsafe { vst1q_f64(to[..2].as_mut_ptr(), cast(x)) }
    }
    #[inline(always)]
    fn store_f64_as_f32(self, x: Self::f64s, to: &mut [f32]) {
        unsafe { vst1_f32(to[..2].as_mut_ptr(), vcvt_f32_f64(cast(x))) }
    }
    #[inline(always)]
    fn store_f64_as_f16(self, x: Self::f64s, to: &mut [f16]) {
        unsafe { store_2(f32_to_f16(f64_to_f32(cast(x))), to[..2].as_mut_ptr().cast()) }
    }
    #[inline(always)]
    fn store_f64_as_bf16(self, x: Self::f64s, to: &mut [bf16]) {
        unsafe { store_2(f32_to_bf16(f64_to_f32(cast(x))), to[..2].as_mut_ptr().cast()) }
    }
    #[inline(always)]
    fn store_f32_as_f16(self, x: Self::f32s, to: &mut [f16]) {
        unsafe { vst1_u16(to[..4].as_mut_ptr().cast(), f32_to_f16(cast(x))) }
    }
    #[inline(always)]
    fn store_f32_as_bf16(self, x: Self::f32s, to: &mut [bf16]) {
        unsafe { vst1_u16(to[..4].as_mut_ptr().cast(), f32_to_bf16(cast(x))) }
    }

    // `fmin` and `fmax`, unlike `fminnm` and `fmaxnm`, give NaN where one operand is NaN.
    #[inline(always)]
    fn clamp_f64s(self, x: Self::f64s, min: f64, max: f64) -> Self::f64s {
        cast(unsafe { vminq_f64(vmaxq_f64(cast(x), vdupq_n_f64(min)), vdupq_n_f64(max)) })
    }
    #[inline(always)]
    fn clamp_f32s(self, x: Self::f32s, min: f32, max: f32) -> Self::f32s {
        cast(unsafe { vminq_f32(vmaxq_f32(cast(x), vdupq_n_f32(min)), vdupq_n_f32(max)) })
    }

    /// By pairs of elements, then by halves of the register.
    #[inline(always)]
    unsafe fn transpose_f32(self, block: Transposed<f32>) {
        if !block.is_whole(Self::F32_BLOCK) {
            return unsafe { block.by_elements() };
        }
        let Transposed { to, to_stride: stride, .. } = block;
        unsafe {
            let [a, b, c, d] = [0, 1, 2, 3].map(
                #[inline(always)]
                |i| vld1q_f32(block.row(i)),
            );
            let [ab, cd] = [(vtrn1q_f32(a, b), vtrn2q_f32(a, b)), (vtrn1q_f32(c, d), vtrn2q_f32(c, d))];
            vst1q_f32(to, vcombine_f32(vget_low_f32(ab.0), vget_low_f32(cd.0)));
            vst1q_f32(to.add(stride), vcombine_f32(vget_low_f32(ab.1), vget_low_f32(cd.1)));
            vst1q_f32(to.add(2 * stride), vcombine_f32(vget_high_f32(ab.0), vget_high_f32(cd.0)));
            vst1q_f32(to.add(3 * stride), vcombine_f32(vget_high_f32(ab.1), vget_high_f32(cd.1)));
        }
    }
    #[inline(always)]
    unsafe fn transpose_f64(self, block: Transposed<f64>) {
        if !block.is_whole(Self::F64_BLOCK) {
            return unsafe { block.by_elements() };
        }
        unsafe {
            let (a, b) = (vld1q_f64(block.row(0)), vld1q_f64(block.row(1)));
            vst1q_f64(block.to, vtrn1q_f64(a, b));
            vst1q_f64(block.to.add(block.to_stride), vtrn2q_f64(a, b));
        }
    }

    #[inline(always)]
    unsafe fn stream(self, from: *const Self::f64s, to: *mut Self::f64s) {
        // By bytes: the elements need not be f64.
        unsafe { vst1q_u8(to.cast(), vld1q_u8(from.cast())) }
    }
    #[inline(always)]
    fn fence(self) {}
}

// The 16-bit floats, as bits. SAFETY of all: as each function's own.

/// Two elements and, behind them, any.
///
/// # Safety
///
/// The processor has NEON, and two elements can be read there.
#[inline(always)]
unsafe fn load_2(from: *const u16) -> uint16x4_t {
    unsafe { vreinterpret_u16_u32(vdup_n_u32(from.cast::<u32>().read_unaligned())) }
}
/// Stores the first two elements.
///
/// # Safety
///
/// The processor has NEON, and two elements can be written there.
#[inline(always)]
unsafe fn store_2(x: uint16x4_t, to: *mut u16) {
    unsafe { to.cast::<u32>().write_unaligned(vget_lane_u32::<0>(vreinterpret_u32_u16(x))) }
}
/// The two elements, and zeros.
///
/// # Safety
///
/// The processor has NEON.
#[inline(always)]
unsafe fn f64_to_f32(x: float64x2_t) -> float32x4_t {
    unsafe { vcombine_f32(vcvt_f32_f64(x), vdup_n_f32(0.0)) }
}
/// `transmute`, as `vreinterpret_f16_u16` may ask for arithmetic on f16, which not every processor has.
///
/// # Safety
///
/// The processor has NEON.
#[inline(always)]
unsafe fn f16_to_f32(x: uint16x4_t) -> float32x4_t {
    unsafe { vcvt_f32_f16(transmute::<uint16x4_t, float16x4_t>(x)) }
}
/// # Safety
///
/// The processor has NEON.
#[inline(always)]
unsafe fn f32_to_f16(x: float32x4_t) -> uint16x4_t {
    unsafe { transmute::<float16x4_t, uint16x4_t>(vcvt_f16_f32(x)) }
}
/// A bf16 is the upper half of an f32.
///
/// # Safety
///
/// The processor has NEON.
#[inline(always)]
unsafe fn bf16_to_f32(x: uint16x4_t) -> float32x4_t {
    unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(x)) }
}
/// To the nearest, ties to even; NaN stays NaN.
///
/// # Safety
///
/// The processor has NEON.
#[inline(always)]
unsafe fn f32_to_bf16(x: float32x4_t) -> uint16x4_t {
    unsafe {
        let bits = vreinterpretq_u32_f32(x);
        let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
        let rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
        let nan = vorrq_u32(bits, vdupq_n_u32(0x40_0000));
        vshrn_n_u32::<16>(vbslq_u32(vceqq_f32(x, x), rounded, nan))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Lanes;

    impl Task for Lanes {
        type Output = [usize; 2];

        unsafe fn run<S: Isa>(self, _isa: S) -> [usize; 2] {
            [S::F32_LANES, S::F64_LANES]
        }
    }

    #[test]
    fn neon_is_what_runs() {
        // SAFETY: the task has no pointers.
        assert_eq!(unsafe { dispatch(usize::MAX, Lanes) }, [4, 2]);
    }
}
