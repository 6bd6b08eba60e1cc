//! SIMD: the instruction sets for which the kernels are compiled, and [`dispatch`], which runs a task by the best that the machine has.
//!
//! Each file is the instruction sets of one architecture, [`scalar`] the fallback of all. A new architecture is a file, and its `cfg` below.

use core::convert::Infallible;

use burn_core::tensor::{bf16, f16};

#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod aarch64;
mod scalar;
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
mod x86;

#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
use aarch64 as native;
#[cfg(not(any(target_arch = "x86", target_arch = "x86_64", all(target_arch = "aarch64", target_endian = "little"))))]
use scalar as native;
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
use x86 as native;

#[cfg(test)]
pub(super) use native::for_each_isa;

/// An instruction set (ISA): pulp's registers and arithmetic, and what pulp has for single instruction sets or not at all.
///
/// A value shows that the machine has the instructions, as [`dispatch`] gives it to a task, which is where it comes from: pulp's
/// own V3 says nothing of F16C, which its conversions use.
pub(super) trait Isa: pulp::Simd {
    /// Vectors of a column in the largest tile of a matrix product.
    const VECTORS: usize;
    /// Accumulators of a tile, at most: they leave registers for its inputs.
    const ACCUMULATORS: usize;
    /// Rows, and elements of each, that [`Isa::transpose_f32`] takes at once, at most.
    const F32_BLOCK: usize;
    /// Rows, and elements of each, that [`Isa::transpose_f64`] takes at once, at most.
    const F64_BLOCK: usize;
    /// Its instruction for pairs of bf16.
    type Pairs: Pairs<Self>;

    /// The instruction for pairs of bf16, if the processor has one.
    fn pairs(self) -> Option<Self::Pairs>;
    /// Whether it is faster than f32, to which bf16 are converted else.
    fn pairs_are_faster(self) -> bool {
        true
    }

    // Load-convert and convert-store, from and to the front of a slice. Conversions to f16 and bf16 round by way of f32.

    fn load_f64(self, from: &[f64]) -> Self::f64s;
    fn load_f32_as_f64(self, from: &[f32]) -> Self::f64s;
    fn load_f16_as_f64(self, from: &[f16]) -> Self::f64s;
    fn load_bf16_as_f64(self, from: &[bf16]) -> Self::f64s;
    fn load_f16_as_f32(self, from: &[f16]) -> Self::f32s;
    fn load_bf16_as_f32(self, from: &[bf16]) -> Self::f32s;

    fn store_f64(self, x: Self::f64s, to: &mut [f64]);
    fn store_f64_as_f32(self, x: Self::f64s, to: &mut [f32]);
    fn store_f64_as_f16(self, x: Self::f64s, to: &mut [f16]);
    fn store_f64_as_bf16(self, x: Self::f64s, to: &mut [bf16]);
    fn store_f32_as_f16(self, x: Self::f32s, to: &mut [f16]);
    fn store_f32_as_bf16(self, x: Self::f32s, to: &mut [bf16]);

    /// Asks for memory that will be read soon, where there is an instruction for it. Any address will do.
    fn prefetch(self, _at: *const u8) {}

    /// NaN stays NaN.
    fn clamp_f64s(self, x: Self::f64s, min: f64, max: f64) -> Self::f64s;
    /// NaN stays NaN.
    fn clamp_f32s(self, x: Self::f32s, min: f32, max: f32) -> Self::f32s;

    /// Transposes a block.
    ///
    /// # Safety
    ///
    /// As [`Transposed`] says, of at most [`Isa::F32_BLOCK`] rows and columns.
    unsafe fn transpose_f32(self, block: Transposed<f32>);
    /// Transposes a block.
    ///
    /// # Safety
    ///
    /// As [`Transposed`] says, of at most [`Isa::F64_BLOCK`] rows and columns.
    unsafe fn transpose_f64(self, block: Transposed<f64>);

    /// Copies a register of f64 by a non-temporal (streaming) store, where there is an instruction for it.
    ///
    /// # Safety
    ///
    /// `from` can be read, and `to` written and aligned as a register is. Nothing else reads or writes there before this thread's next
    /// [`Isa::fence`].
    unsafe fn stream(self, from: *const Self::f64s, to: *mut Self::f64s);
    /// Orders streaming stores before what this thread writes next: other threads see them first.
    fn fence(self);
}

/// A block of a matrix, and where its transpose goes: `to[j * to_stride + i] = from[i * from_stride + j]`.
///
/// # Safety
///
/// Of each row `columns` elements can be read, aligned to 2 bytes at least. For each column `rows` elements can be written, aligned, which
/// nothing else reads or writes. There is at least one row, and one column.
#[derive(Clone, Copy)]
pub(super) struct Transposed<T> {
    pub from: *const T,
    pub from_stride: isize,
    pub rows: usize,
    pub columns: usize,
    pub to: *mut T,
    pub to_stride: usize,
}

impl<T: Copy> Transposed<T> {
    #[inline(always)]
    fn row(&self, i: usize) -> *const T {
        self.from.wrapping_offset(i as isize * self.from_stride)
    }

    #[inline(always)]
    fn is_whole(&self, block: usize) -> bool {
        (self.rows, self.columns) == (block, block)
    }

    /// Transposes it element by element.
    ///
    /// # Safety
    ///
    /// As the type says.
    #[inline(always)]
    unsafe fn by_elements(self) {
        for i in 0..self.rows {
            for j in 0..self.columns {
                // SAFETY: the element is one of the block.
                unsafe { *self.to.add(j * self.to_stride + i) = self.row(i).add(j).read_unaligned() };
            }
        }
    }
}

/// An instruction that multiplies and adds pairs of bf16, on top of an instruction set.
///
/// It takes subnormal numbers for zero, and gives zero for them. A value shows that the processor has the instruction.
pub(super) trait Pairs<S: Isa>: Copy {
    /// Calls a function that is compiled for this instruction, too.
    fn vectorize<F: pulp::NullaryFnOnce>(self, f: F) -> F::Output;
    /// `x₀ y₀ + x₁ y₁ + sum`, where the bits of each f32 of `x` and `y` are a pair of bf16.
    fn add(self, x: S::f32s, y: S::f32s, sum: S::f32s) -> S::f32s;
}

/// Where there is none.
impl<S: Isa> Pairs<S> for Infallible {
    fn vectorize<F: pulp::NullaryFnOnce>(self, _: F) -> F::Output {
        match self {}
    }
    fn add(self, _: S::f32s, _: S::f32s, _: S::f32s) -> S::f32s {
        match self {}
    }
}

/// Whether [`dispatch`] gives a task an instruction set with [`Isa::pairs`] that are faster. The kernels' own tests take them wherever there
/// are any.
pub(super) fn prefers_pairs() -> bool {
    struct PrefersPairs;
    impl Task for PrefersPairs {
        type Output = bool;

        #[inline(always)]
        unsafe fn run<S: Isa>(self, isa: S) -> bool {
            isa.pairs().is_some() && (cfg!(test) || isa.pairs_are_faster())
        }
    }
    // SAFETY: the task has no pointers.
    unsafe { dispatch(PrefersPairs) }
}

/// Work that is compiled once for each instruction set.
///
/// A type, not a closure: everything down to the loops must be inlined for the instruction set to be used in them, and only functions that
/// say `inline(always)` surely are. For the same reason closures on the way say it too. Tiles of matrix products alone are functions, each
/// compiled for the instruction set by itself.
///
/// What must hold of the pointers in a task is said where its type is documented. One without pointers has nothing to say.
pub(super) trait Task {
    type Output;
    /// # Safety
    ///
    /// What the task says of its pointers holds, and `isa` is one that [`dispatch`] gives.
    unsafe fn run<S: Isa>(self, isa: S) -> Self::Output;
}

/// Runs a task by the best instruction set that the machine has.
///
/// # Safety
///
/// What the task says of its pointers holds.
pub(super) unsafe fn dispatch<T: Task>(task: T) -> T::Output {
    // SAFETY: what the task says of its pointers holds; that the machine has the instructions is tested there.
    unsafe { native::dispatch(usize::MAX, task) }
}

/// [`dispatch`], for a task whose contiguous stretches have so many bytes: where they fit a register of AVX2, by AVX2 in place of AVX-512.
///
/// # Safety
///
/// What the task says of its pointers holds.
pub(super) unsafe fn dispatch_narrow<T: Task>(bytes: usize, task: T) -> T::Output {
    // SAFETY: what the task says of its pointers holds; that the machine has the instructions is tested there.
    unsafe { native::dispatch(bytes, task) }
}

/// A task and the instruction set to run it by, as pulp calls it.
#[allow(dead_code, reason = "not needed where there is the scalar fallback alone")]
struct By<S, T>(S, T);

impl<S: Isa, T: Task> pulp::NullaryFnOnce for By<S, T> {
    type Output = T::Output;

    #[inline(always)]
    fn call(self) -> T::Output {
        // SAFETY: `dispatch` and `for_each_isa` alone make one, of a task that may be run and an instruction set that the machine
        // has.
        unsafe { self.1.run(self.0) }
    }
}
