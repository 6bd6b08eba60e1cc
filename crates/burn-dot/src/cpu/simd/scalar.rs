//! The scalar fallback: a register is one element.

use core::convert::Infallible;

use burn_core::tensor::{bf16, f16};
use pulp::Scalar;

use super::{Isa, Task, Transposed};

/// # Safety
///
/// What the task says of its pointers holds.
pub unsafe fn dispatch<T: Task>(_bytes: usize, task: T) -> T::Output {
    // SAFETY: what the task says of its pointers holds, and every machine has these instructions.
    unsafe { task.run(Scalar) }
}

/// # Safety
///
/// What the tasks say of their pointers holds.
#[cfg(test)]
pub unsafe fn for_each_isa<T: Task<Output = ()>>(task: impl Fn() -> T) {
    // SAFETY: what the tasks say of their pointers holds.
    unsafe { dispatch(0, task()) };
}

impl Isa for Scalar {
    const VECTORS: usize = 2;
    const ACCUMULATORS: usize = 8;
    const F32_BLOCK: usize = 8;
    const F64_BLOCK: usize = 4;
    type Pairs = Infallible;

    #[inline(always)]
    fn pairs(self) -> Option<Infallible> {
        None
    }

    #[inline(always)]
    fn load_f64(self, from: &[f64]) -> f64 {
        from[0]
    }
    #[inline(always)]
    fn load_f32_as_f64(self, from: &[f32]) -> f64 {
        from[0].into()
    }
    #[inline(always)]
    fn load_f16_as_f64(self, from: &[f16]) -> f64 {
        from[0].into()
    }
    #[inline(always)]
    fn load_bf16_as_f64(self, from: &[bf16]) -> f64 {
        from[0].into()
    }
    #[inline(always)]
    fn load_f16_as_f32(self, from: &[f16]) -> f32 {
        from[0].into()
    }
    #[inline(always)]
    fn load_bf16_as_f32(self, from: &[bf16]) -> f32 {
        from[0].into()
    }

    #[inline(always)]
    fn store_f64(self, x: f64, to: &mut [f64]) {
        to[0] = x;
    }
    #[inline(always)]
    fn store_f64_as_f32(self, x: f64, to: &mut [f32]) {
        to[0] = x as f32;
    }
    #[inline(always)]
    fn store_f64_as_f16(self, x: f64, to: &mut [f16]) {
        to[0] = f16::from_f32(x as f32);
    }
    #[inline(always)]
    fn store_f64_as_bf16(self, x: f64, to: &mut [bf16]) {
        to[0] = bf16::from_f32(x as f32);
    }
    #[inline(always)]
    fn store_f32_as_f16(self, x: f32, to: &mut [f16]) {
        to[0] = f16::from_f32(x);
    }
    #[inline(always)]
    fn store_f32_as_bf16(self, x: f32, to: &mut [bf16]) {
        to[0] = bf16::from_f32(x);
    }

    #[inline(always)]
    fn clamp_f64s(self, x: f64, min: f64, max: f64) -> f64 {
        x.clamp(min, max)
    }
    #[inline(always)]
    fn clamp_f32s(self, x: f32, min: f32, max: f32) -> f32 {
        x.clamp(min, max)
    }

    #[inline(always)]
    unsafe fn transpose_f32(self, block: Transposed<f32>) {
        // SAFETY: the block can be read, and its transpose written, the caller says.
        unsafe { block.by_elements() }
    }
    #[inline(always)]
    unsafe fn transpose_f64(self, block: Transposed<f64>) {
        // SAFETY: as above.
        unsafe { block.by_elements() }
    }

    #[inline(always)]
    unsafe fn stream(self, from: *const f64, to: *mut f64) {
        // SAFETY: a register can be read there, and written there. By bytes: the elements need not be f64.
        unsafe { core::ptr::copy_nonoverlapping(from.cast::<u8>(), to.cast(), size_of::<f64>()) }
    }
    #[inline(always)]
    fn fence(self) {}
}
