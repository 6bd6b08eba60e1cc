//! AVX-512, with its instruction for pairs of bf16 where there is one, and AVX2 with FMA and F16C.
//!
//! `core::arch` rather than pulp where memory is read or written: its instructions keep elements in registers, casts of arrays went by way
//! of the stack.
#![expect(clippy::undocumented_unsafe_blocks, reason = "one reason holds for all of a group, and stands before it")]

#[cfg(target_arch = "x86")]
use core::arch::x86::*;
#[cfg(target_arch = "x86_64")]
use core::arch::x86_64::*;

use core::convert::Infallible;
use core::sync::atomic::{AtomicU8, Ordering::Relaxed};

use burn_core::tensor::{bf16, f16};
#[cfg(feature = "x86-v4")]
use pulp::x86::V4;
use pulp::{Simd, cast, x86::V3};

#[cfg(feature = "x86-v4")]
use super::Pairs;
use super::{By, Isa, Task, Transposed, scalar};

mod transpose;

// The instructions of V3 that are used here, and the conversion of f16, which pulp does not count among them.
pulp::simd_type!({
    struct F16c {
        avx: f!("avx"),
        avx2: f!("avx2"),
        fma: f!("fma"),
        f16c: f!("f16c"),
    }
});

// Pairs of bf16, on top of V4's instructions.
#[cfg(feature = "x86-v4")]
pulp::simd_type!({
    pub struct Bf16 {
        avx2: f!("avx2"),
        fma: f!("fma"),
        bmi1: f!("bmi1"),
        bmi2: f!("bmi2"),
        lzcnt: f!("lzcnt"),
        popcnt: f!("popcnt"),
        avx512f: f!("avx512f"),
        avx512bw: f!("avx512bw"),
        avx512cd: f!("avx512cd"),
        avx512dq: f!("avx512dq"),
        avx512vl: f!("avx512vl"),
        avx512bf16: f!("avx512bf16"),
    }
});

/// Who made the processor, once a task has been dispatched.
static VENDOR: AtomicU8 = AtomicU8::new(UNKNOWN);
const UNKNOWN: u8 = 0;
const INTEL: u8 = 1;
const OTHER: u8 = 2;

#[cold]
fn find_vendor() {
    let id = __cpuid(0);
    let name = [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes);
    VENDOR.store(if name.as_flattened() == b"GenuineIntel" { INTEL } else { OTHER }, Relaxed);
}

/// Asks for memory on Intel's processors, whose own prefetch ends at each page's end: rows were read 1.4 times as fast. On AMD's Zen 4 they
/// were read a seventh slower (benches/README.md); others were not measured.
#[inline(always)]
fn prefetch(at: *const u8) {
    if VENDOR.load(Relaxed) == INTEL {
        // SAFETY: any address will do, and SSE is part of x86-64, and of AVX2.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}

/// # Safety
///
/// What the task says of its pointers holds.
pub unsafe fn dispatch<T: Task>(bytes: usize, task: T) -> T::Output {
    if VENDOR.load(Relaxed) == UNKNOWN {
        find_vendor();
    }
    if let Some(f16c) = F16c::try_new() {
        match pulp::Arch::new() {
            #[cfg(feature = "x86-v4")]
            pulp::Arch::V4(v4) if bytes > V3_REGISTER => return Simd::vectorize(v4, By(v4, task)),
            // Without the feature `x86-v4` pulp may know AVX-512 all the same, by another crate.
            _ => {
                if let Some(v3) = V3::try_new() {
                    // Not by V3 itself, which would compile the task without F16C.
                    return f16c.vectorize(By(v3, task));
                }
            }
        }
    }
    // SAFETY: what the task says of its pointers holds by whichever instruction set it runs.
    unsafe { scalar::dispatch(bytes, task) }
}

/// Bytes of a register of V3.
#[cfg(feature = "x86-v4")]
const V3_REGISTER: usize = 32;

/// # Safety
///
/// What the tasks say of their pointers holds.
#[cfg(test)]
pub unsafe fn for_each_isa<T: Task<Output = ()>>(task: impl Fn() -> T) {
    // SAFETY: what the tasks say of their pointers holds by whichever instruction set they run.
    unsafe { scalar::for_each_isa(&task) };
    let Some(f16c) = F16c::try_new() else { return };
    if let Some(v3) = V3::try_new() {
        f16c.vectorize(By(v3, task()));
    }
    #[cfg(feature = "x86-v4")]
    if let Some(v4) = V4::try_new() {
        Simd::vectorize(v4, By(v4, task()));
    }
}

// SAFETY of all: `self` shows that the processor has AVX-512, and with it F16C. Slices are as long as what is read or written, as
// indexing them checks; what is at the pointers of `transpose_*` and `stream` the caller says, by the trait.
#[cfg(feature = "x86-v4")]
impl Isa for V4 {
    // Of 32 registers, 24 are accumulators, and 5 are inputs.
    const VECTORS: usize = 4;
    const ACCUMULATORS: usize = 24;
    const F32_BLOCK: usize = 16;
    const F64_BLOCK: usize = 8;
    type Pairs = Bf16;

    #[inline(always)]
    fn pairs(self) -> Option<Bf16> {
        Bf16::try_new()
    }
    /// Not on Intel's Sapphire Rapids, where it multiplies as many in a cycle as two instructions of f32 do, and pairs take longer to pack:
    /// attention scores took half as long again. On AMD's Zen 4 it is twice as fast.
    #[inline(always)]
    fn pairs_are_faster(self) -> bool {
        VENDOR.load(Relaxed) != INTEL
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        prefetch(at);
    }
    #[inline(always)]
    fn load_f64(self, from: &[f64]) -> Self::f64s {
        cast(unsafe { _mm512_loadu_pd(from[..8].as_ptr()) })
    }
    #[inline(always)]
    fn load_f32_as_f64(self, from: &[f32]) -> Self::f64s {
        cast(unsafe { _mm512_cvtps_pd(_mm256_loadu_ps(from[..8].as_ptr())) })
    }
    #[inline(always)]
    fn load_f16_as_f64(self, from: &[f16]) -> Self::f64s {
        cast(unsafe { _mm512_cvtps_pd(f16_to_f32(_mm_loadu_si128(from[..8].as_ptr().cast()))) })
    }
    #[inline(always)]
    fn load_bf16_as_f64(self, from: &[bf16]) -> Self::f64s {
        cast(unsafe { _mm512_cvtps_pd(bf16_to_f32(_mm_loadu_si128(from[..8].as_ptr().cast()))) })
    }
    #[inline(always)]
    fn load_f16_as_f32(self, from: &[f16]) -> Self::f32s {
        cast(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from[..16].as_ptr().cast())) })
    }
    #[inline(always)]
    fn load_bf16_as_f32(self, from: &[bf16]) -> Self::f32s {
        cast(unsafe { bf16_to_f32_512(_mm256_loadu_si256(from[..16].as_ptr().cast())) })
    }

    #[inline(always)]
    fn store_f64(self, x: Self::f64s, to: &mut [f64]) {
        unsafe { _mm512_storeu_pd(to[..8].as_mut_ptr(), cast(x)) }
    }
    #[inline(always)]
    fn store_f64_as_f32(self, x: Self::f64s, to: &mut [f32]) {
        unsafe { _mm256_storeu_ps(to[..8].as_mut_ptr(), _mm512_cvtpd_ps(cast(x))) }
    }
    #[inline(always)]
    fn store_f64_as_f16(self, x: Self::f64s, to: &mut [f16]) {
        unsafe { _mm_storeu_si128(to[..8].as_mut_ptr().cast(), f32_to_f16(_mm512_cvtpd_ps(cast(x)))) }
    }
    #[inline(always)]
    fn store_f64_as_bf16(self, x: Self::f64s, to: &mut [bf16]) {
        unsafe { _mm_storeu_si128(to[..8].as_mut_ptr().cast(), f32_to_bf16(_mm512_cvtpd_ps(cast(x)))) }
    }
    #[inline(always)]
    fn store_f32_as_f16(self, x: Self::f32s, to: &mut [f16]) {
        unsafe { _mm256_storeu_si256(to[..16].as_mut_ptr().cast(), f32_to_f16_512(cast(x))) }
    }
    #[inline(always)]
    fn store_f32_as_bf16(self, x: Self::f32s, to: &mut [bf16]) {
        unsafe { _mm256_storeu_si256(to[..16].as_mut_ptr().cast(), f32_to_bf16_512(cast(x))) }
    }

    // These instructions give their second operand where one is NaN.
    #[inline(always)]
    fn clamp_f64s(self, x: Self::f64s, min: f64, max: f64) -> Self::f64s {
        self.min_f64s(self.splat_f64s(max), self.max_f64s(self.splat_f64s(min), x))
    }
    #[inline(always)]
    fn clamp_f32s(self, x: Self::f32s, min: f32, max: f32) -> Self::f32s {
        self.min_f32s(self.splat_f32s(max), self.max_f32s(self.splat_f32s(min), x))
    }

    #[inline(always)]
    unsafe fn transpose_f32(self, block: Transposed<f32>) {
        unsafe { transpose::f32_512(block) }
    }
    #[inline(always)]
    unsafe fn transpose_f64(self, block: Transposed<f64>) {
        unsafe { transpose::f64_512(block) }
    }

    #[inline(always)]
    unsafe fn stream(self, from: *const Self::f64s, to: *mut Self::f64s) {
        unsafe { _mm512_stream_pd(to.cast(), _mm512_loadu_pd(from.cast())) }
    }
    #[inline(always)]
    fn fence(self) {
        unsafe { _mm_sfence() }
    }
}

#[cfg(feature = "x86-v4")]
impl Pairs<V4> for Bf16 {
    #[inline(always)]
    fn vectorize<F: pulp::NullaryFnOnce>(self, f: F) -> F::Output {
        self.vectorize(f)
    }
    #[inline(always)]
    fn add(self, x: <V4 as Simd>::f32s, y: <V4 as Simd>::f32s, sum: <V4 as Simd>::f32s) -> <V4 as Simd>::f32s {
        // SAFETY: `self` shows that the processor has the instruction. A register of f32 has as many bits as one of pairs.
        cast(unsafe {
            _mm512_dpbf16_ps(
                cast(sum),
                core::mem::transmute::<__m512, __m512bh>(cast(x)),
                core::mem::transmute::<__m512, __m512bh>(cast(y)),
            )
        })
    }
}

// SAFETY of all: `self` shows that the processor has AVX2, and, as `dispatch` gave it, F16C. Slices and pointers as above.
impl Isa for V3 {
    // Of 16 registers, 12 are accumulators, and 3 are inputs.
    const VECTORS: usize = 2;
    const ACCUMULATORS: usize = 12;
    const F32_BLOCK: usize = 8;
    const F64_BLOCK: usize = 4;
    type Pairs = Infallible;

    #[inline(always)]
    fn pairs(self) -> Option<Infallible> {
        None
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        prefetch(at);
    }
    #[inline(always)]
    fn load_f64(self, from: &[f64]) -> Self::f64s {
        cast(unsafe { _mm256_loadu_pd(from[..4].as_ptr()) })
    }
    #[inline(always)]
    fn load_f32_as_f64(self, from: &[f32]) -> Self::f64s {
        cast(unsafe { _mm256_cvtps_pd(_mm_loadu_ps(from[..4].as_ptr())) })
    }
    #[inline(always)]
    fn load_f16_as_f64(self, from: &[f16]) -> Self::f64s {
        cast(unsafe { _mm256_cvtps_pd(_mm256_castps256_ps128(f16_to_f32(_mm_loadl_epi64(from[..4].as_ptr().cast())))) })
    }
    #[inline(always)]
    fn load_bf16_as_f64(self, from: &[bf16]) -> Self::f64s {
        cast(unsafe { _mm256_cvtps_pd(_mm256_castps256_ps128(bf16_to_f32(_mm_loadl_epi64(from[..4].as_ptr().cast())))) })
    }
    #[inline(always)]
    fn load_f16_as_f32(self, from: &[f16]) -> Self::f32s {
        cast(unsafe { f16_to_f32(_mm_loadu_si128(from[..8].as_ptr().cast())) })
    }
    #[inline(always)]
    fn load_bf16_as_f32(self, from: &[bf16]) -> Self::f32s {
        cast(unsafe { bf16_to_f32(_mm_loadu_si128(from[..8].as_ptr().cast())) })
    }

    #[inline(always)]
    fn store_f64(self, x: Self::f64s, to: &mut [f64]) {
        unsafe { _mm256_storeu_pd(to[..4].as_mut_ptr(), cast(x)) }
    }
    #[inline(always)]
    fn store_f64_as_f32(self, x: Self::f64s, to: &mut [f32]) {
        unsafe { _mm_storeu_ps(to[..4].as_mut_ptr(), _mm256_cvtpd_ps(cast(x))) }
    }
    #[inline(always)]
    fn store_f64_as_f16(self, x: Self::f64s, to: &mut [f16]) {
        unsafe { _mm_storel_epi64(to[..4].as_mut_ptr().cast(), f32_to_f16(_mm256_castps128_ps256(_mm256_cvtpd_ps(cast(x))))) }
    }
    #[inline(always)]
    fn store_f64_as_bf16(self, x: Self::f64s, to: &mut [bf16]) {
        unsafe { _mm_storel_epi64(to[..4].as_mut_ptr().cast(), f32_to_bf16(_mm256_castps128_ps256(_mm256_cvtpd_ps(cast(x))))) }
    }
    #[inline(always)]
    fn store_f32_as_f16(self, x: Self::f32s, to: &mut [f16]) {
        unsafe { _mm_storeu_si128(to[..8].as_mut_ptr().cast(), f32_to_f16(cast(x))) }
    }
    #[inline(always)]
    fn store_f32_as_bf16(self, x: Self::f32s, to: &mut [bf16]) {
        unsafe { _mm_storeu_si128(to[..8].as_mut_ptr().cast(), f32_to_bf16(cast(x))) }
    }

    // These instructions give their second operand where one is NaN.
    #[inline(always)]
    fn clamp_f64s(self, x: Self::f64s, min: f64, max: f64) -> Self::f64s {
        self.min_f64s(self.splat_f64s(max), self.max_f64s(self.splat_f64s(min), x))
    }
    #[inline(always)]
    fn clamp_f32s(self, x: Self::f32s, min: f32, max: f32) -> Self::f32s {
        self.min_f32s(self.splat_f32s(max), self.max_f32s(self.splat_f32s(min), x))
    }

    #[inline(always)]
    unsafe fn transpose_f32(self, block: Transposed<f32>) {
        unsafe { if block.is_whole(Self::F32_BLOCK) { transpose::f32(block) } else { block.by_elements() } }
    }
    #[inline(always)]
    unsafe fn transpose_f64(self, block: Transposed<f64>) {
        unsafe { if block.is_whole(Self::F64_BLOCK) { transpose::f64(block) } else { block.by_elements() } }
    }

    #[inline(always)]
    unsafe fn stream(self, from: *const Self::f64s, to: *mut Self::f64s) {
        unsafe { _mm256_stream_pd(to.cast(), _mm256_loadu_pd(from.cast())) }
    }
    #[inline(always)]
    fn fence(self) {
        unsafe { _mm_sfence() }
    }
}

// The 16-bit floats, in registers. SAFETY of all: as each function's own.

/// # Safety
///
/// The processor has F16C.
#[inline(always)]
unsafe fn f16_to_f32(x: __m128i) -> __m256 {
    unsafe { _mm256_cvtph_ps(x) }
}
/// A bf16 is the upper half of an f32.
///
/// # Safety
///
/// The processor has AVX2.
#[inline(always)]
unsafe fn bf16_to_f32(x: __m128i) -> __m256 {
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(x))) }
}
/// # Safety
///
/// The processor has F16C.
#[inline(always)]
unsafe fn f32_to_f16(x: __m256) -> __m128i {
    unsafe { _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x) }
}
/// To the nearest, ties to even; NaN stays NaN.
///
/// # Safety
///
/// The processor has AVX2.
#[inline(always)]
unsafe fn f32_to_bf16(x: __m256) -> __m128i {
    unsafe {
        let bits = _mm256_castps_si256(x);
        let upper = _mm256_srli_epi32::<16>(bits);
        let odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
        let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
        let bf16s = _mm256_blendv_epi8(rounded, _mm256_or_si256(upper, _mm256_set1_epi32(0x40)), nan);
        // Each 128-bit lane packs by itself: the elements are in the first and the third quarter.
        _mm256_castsi256_si128(_mm256_permute4x64_epi64::<0b10_00>(_mm256_packus_epi32(bf16s, bf16s)))
    }
}

/// # Safety
///
/// The processor has AVX-512.
#[cfg(feature = "x86-v4")]
#[inline(always)]
unsafe fn bf16_to_f32_512(x: __m256i) -> __m512 {
    unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(x))) }
}
/// # Safety
///
/// The processor has AVX-512.
#[cfg(feature = "x86-v4")]
#[inline(always)]
unsafe fn f32_to_f16_512(x: __m512) -> __m256i {
    unsafe { _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x) }
}
/// # Safety
///
/// The processor has AVX-512.
#[cfg(feature = "x86-v4")]
#[inline(always)]
unsafe fn f32_to_bf16_512(x: __m512) -> __m256i {
    unsafe {
        let bits = _mm512_castps_si512(x);
        let upper = _mm512_srli_epi32::<16>(bits);
        let odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
        let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
        _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(rounded, nan, upper, _mm512_set1_epi32(0x40)))
    }
}
