//! Levels of instructions: AVX-512, AVX2 with FMA and F16C, or one number at a time. [`vectorized`] runs a task at the best that the machine
//! has.

use burn_core::tensor::{bf16, f16};

/// A level of instructions: pulp's registers, and the steps between dtypes that it has for single levels or not at all.
///
/// Each method takes as many numbers as a register of f64 holds, from the front.
pub(super) trait Level: pulp::Simd {
    /// Columns of a tile of a matrix product whose accumulators, two vectors to a column, leave registers for its inputs.
    const COLUMNS: usize;

    fn load_f64(self, from: &[f64]) -> Self::f64s;
    fn load_f32(self, from: &[f32]) -> Self::f64s;
    fn load_f16(self, from: &[f16]) -> Self::f64s;
    fn load_bf16(self, from: &[bf16]) -> Self::f64s;
    fn store_f64(self, x: Self::f64s, to: &mut [f64]);
    fn store_f32(self, x: Self::f64s, to: &mut [f32]);
    fn store_f16(self, x: Self::f64s, to: &mut [f16]);
    fn store_bf16(self, x: Self::f64s, to: &mut [bf16]);
    /// NaN stays NaN.
    fn clamp(self, x: Self::f64s, least: f64, most: f64) -> Self::f64s;

    // As many numbers as a register of f32 holds.
    fn widen_f16(self, from: &[f16]) -> Self::f32s;
    fn widen_bf16(self, from: &[bf16]) -> Self::f32s;
    fn narrow_f16(self, x: Self::f32s, to: &mut [f16]);
    fn narrow_bf16(self, x: Self::f32s, to: &mut [bf16]);
    /// Brings what is beyond `most` back to it; NaN stays NaN.
    fn within(self, x: Self::f32s, most: f32) -> Self::f32s;

    /// [`Real::transpose`](super::kernel::Real::transpose) of 8 × 8.
    ///
    /// # Safety
    ///
    /// As there.
    unsafe fn transpose_f32(self, from: &[*const f32], to: *mut f32, step: usize);
    /// [`Real::transpose`](super::kernel::Real::transpose) of 4 × 4.
    ///
    /// # Safety
    ///
    /// As there.
    unsafe fn transpose_f64(self, from: &[*const f64], to: *mut f64, step: usize);

    /// Copies a register, past the caches where there is an instruction for it.
    ///
    /// # Safety
    ///
    /// `from` can be read, and `to` written and aligned as a register is.
    unsafe fn write_past_caches(self, from: *const Self::f64s, to: *mut Self::f64s);
    /// Ends what [`Level::write_past_caches`] began, before other threads may hear of it.
    fn fence(self);
}

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
#[expect(clippy::undocumented_unsafe_blocks, reason = "one reason holds for all of them, and stands before each group")]
mod x86 {
    #[cfg(target_arch = "x86")]
    use core::arch::x86::*;
    #[cfg(target_arch = "x86_64")]
    use core::arch::x86_64::*;

    use burn_core::tensor::{bf16, f16};
    use pulp::{Simd, cast};

    use super::Level;

    // The instructions of V3 that are used here, and the conversion of f16, which pulp does not count among them.
    pulp::simd_type!({
        pub(super) struct F16c {
            pub avx: f!("avx"),
            pub avx2: f!("avx2"),
            pub fma: f!("fma"),
            pub f16c: f!("f16c"),
        }
    });

    /// What a level does with as many numbers as a register of f64 holds. `core::arch` rather than pulp where memory is read or
    /// written: its instructions keep numbers in registers, casts of arrays went by way of the stack.
    macro_rules! level {
        ($level:ty, $lanes:literal, columns: $columns:literal;
         f64: $load_f64:ident, $store_f64:ident;
         f32: $load_f32:ident, $store_f32:ident, $widen:ident, $narrow:ident;
         half: $load_half:ident, $store_half:ident, $low:expr, $high:expr;
         past_caches: $load:ident, $stream:ident;
         halves: $load_halves:ident, $store_halves:ident,
                 $wide_from_f16:ident, $wide_from_bf16:ident, $wide_to_f16:ident, $wide_to_bf16:ident) => {
            // SAFETY of all: slices are as long as what is read or written, and `vectorized` runs a level only where the machine has
            // its instructions, F16C among them.
            impl Level for $level {
                const COLUMNS: usize = $columns;
                #[inline(always)]
                unsafe fn transpose_f32(self, from: &[*const f32], to: *mut f32, step: usize) {
                    unsafe { transpose_f32(from, to, step) }
                }
                #[inline(always)]
                unsafe fn transpose_f64(self, from: &[*const f64], to: *mut f64, step: usize) {
                    unsafe { transpose_f64(from, to, step) }
                }
                #[inline(always)]
                fn load_f64(self, from: &[f64]) -> Self::f64s {
                    cast(unsafe { $load_f64(from[..$lanes].as_ptr()) })
                }
                #[inline(always)]
                fn load_f32(self, from: &[f32]) -> Self::f64s {
                    cast(unsafe { $widen($load_f32(from[..$lanes].as_ptr())) })
                }
                #[inline(always)]
                fn load_f16(self, from: &[f16]) -> Self::f64s {
                    cast(unsafe { $widen($low(widen_f16($load_half(from[..$lanes].as_ptr().cast())))) })
                }
                #[inline(always)]
                fn load_bf16(self, from: &[bf16]) -> Self::f64s {
                    cast(unsafe { $widen($low(widen_bf16($load_half(from[..$lanes].as_ptr().cast())))) })
                }
                #[inline(always)]
                fn store_f64(self, x: Self::f64s, to: &mut [f64]) {
                    unsafe { $store_f64(to[..$lanes].as_mut_ptr(), cast(x)) }
                }
                #[inline(always)]
                fn store_f32(self, x: Self::f64s, to: &mut [f32]) {
                    unsafe { $store_f32(to[..$lanes].as_mut_ptr(), $narrow(cast(x))) }
                }
                #[inline(always)]
                fn store_f16(self, x: Self::f64s, to: &mut [f16]) {
                    unsafe { $store_half(to[..$lanes].as_mut_ptr().cast(), narrow_f16($high($narrow(cast(x))))) }
                }
                #[inline(always)]
                fn store_bf16(self, x: Self::f64s, to: &mut [bf16]) {
                    unsafe { $store_half(to[..$lanes].as_mut_ptr().cast(), narrow_bf16($high($narrow(cast(x))))) }
                }
                #[inline(always)]
                fn clamp(self, x: Self::f64s, least: f64, most: f64) -> Self::f64s {
                    // These instructions give their second operand where one is NaN.
                    self.min_f64s(self.splat_f64s(most), self.max_f64s(self.splat_f64s(least), x))
                }
                #[inline(always)]
                fn within(self, x: Self::f32s, most: f32) -> Self::f32s {
                    self.min_f32s(self.splat_f32s(most), self.max_f32s(self.splat_f32s(-most), x))
                }
                #[inline(always)]
                unsafe fn write_past_caches(self, from: *const Self::f64s, to: *mut Self::f64s) {
                    unsafe { $stream(to.cast(), $load(from.cast())) }
                }
                #[inline(always)]
                fn fence(self) {
                    unsafe { _mm_sfence() }
                }
                #[inline(always)]
                fn widen_f16(self, from: &[f16]) -> Self::f32s {
                    cast(unsafe { $wide_from_f16($load_halves(from[..2 * $lanes].as_ptr().cast())) })
                }
                #[inline(always)]
                fn widen_bf16(self, from: &[bf16]) -> Self::f32s {
                    cast(unsafe { $wide_from_bf16($load_halves(from[..2 * $lanes].as_ptr().cast())) })
                }
                #[inline(always)]
                fn narrow_f16(self, x: Self::f32s, to: &mut [f16]) {
                    unsafe { $store_halves(to[..2 * $lanes].as_mut_ptr().cast(), $wide_to_f16(cast(x))) }
                }
                #[inline(always)]
                fn narrow_bf16(self, x: Self::f32s, to: &mut [bf16]) {
                    unsafe { $store_halves(to[..2 * $lanes].as_mut_ptr().cast(), $wide_to_bf16(cast(x))) }
                }
            }
        };
    }
    #[cfg(feature = "x86-v4")]
    level!(pulp::x86::V4, 8, columns: 8;
        f64: _mm512_loadu_pd, _mm512_storeu_pd;
        f32: _mm256_loadu_ps, _mm256_storeu_ps, _mm512_cvtps_pd, _mm512_cvtpd_ps;
        half: _mm_loadu_si128, _mm_storeu_si128, core::convert::identity, core::convert::identity;
        past_caches: _mm512_loadu_pd, _mm512_stream_pd;
        halves: _mm256_loadu_si256, _mm256_storeu_si256, _mm512_cvtph_ps, wide_from_bf16, wide_to_f16, wide_to_bf16);
    level!(pulp::x86::V3, 4, columns: 4;
        f64: _mm256_loadu_pd, _mm256_storeu_pd;
        f32: _mm_loadu_ps, _mm_storeu_ps, _mm256_cvtps_pd, _mm256_cvtpd_ps;
        half: _mm_loadl_epi64, _mm_storel_epi64, _mm256_castps256_ps128, _mm256_castps128_ps256;
        past_caches: _mm256_loadu_pd, _mm256_stream_pd;
        halves: _mm_loadu_si128, _mm_storeu_si128, widen_f16, widen_bf16, narrow_f16, narrow_bf16);

    // SAFETY of all: the caller has AVX2 and F16C.
    #[inline(always)]
    unsafe fn widen_f16(x: __m128i) -> __m256 {
        unsafe { _mm256_cvtph_ps(x) }
    }
    /// A bf16 is the upper half of an f32.
    #[inline(always)]
    unsafe fn widen_bf16(x: __m128i) -> __m256 {
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(x))) }
    }
    #[inline(always)]
    unsafe fn narrow_f16(x: __m256) -> __m128i {
        unsafe { _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x) }
    }
    /// To the nearest, ties to even; NaN keeps a digit.
    #[inline(always)]
    unsafe fn narrow_bf16(x: __m256) -> __m128i {
        unsafe {
            let bits = _mm256_castps_si256(x);
            let upper = _mm256_srli_epi32::<16>(bits);
            let odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
            let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
            let halves = _mm256_blendv_epi8(rounded, _mm256_or_si256(upper, _mm256_set1_epi32(0x40)), nan);
            // Each half of the register packs for itself; the two quarters wanted are its first and its third.
            _mm256_castsi256_si128(_mm256_permute4x64_epi64::<0b10_00>(_mm256_packus_epi32(halves, halves)))
        }
    }

    /// 8 × 8, by pairs, by fours, by halves of the register.
    #[inline(always)]
    unsafe fn transpose_f32(from: &[*const f32], to: *mut f32, step: usize) {
        // SAFETY: 8 elements can be read and written at each of 8 places.
        unsafe {
            let (mut pairs, mut fours) = ([_mm256_setzero_ps(); 8], [_mm256_setzero_ps(); 8]);
            for i in (0..8).step_by(2) {
                let (x, y) = (_mm256_loadu_ps(from[i]), _mm256_loadu_ps(from[i + 1]));
                pairs[i] = _mm256_unpacklo_ps(x, y);
                pairs[i + 1] = _mm256_unpackhi_ps(x, y);
            }
            for i in [0, 4] {
                fours[i] = _mm256_shuffle_ps::<0x44>(pairs[i], pairs[i + 2]);
                fours[i + 1] = _mm256_shuffle_ps::<0xee>(pairs[i], pairs[i + 2]);
                fours[i + 2] = _mm256_shuffle_ps::<0x44>(pairs[i + 1], pairs[i + 3]);
                fours[i + 3] = _mm256_shuffle_ps::<0xee>(pairs[i + 1], pairs[i + 3]);
            }
            for i in 0..4 {
                _mm256_storeu_ps(to.add(i * step), _mm256_permute2f128_ps::<0x20>(fours[i], fours[4 + i]));
                _mm256_storeu_ps(to.add((i + 4) * step), _mm256_permute2f128_ps::<0x31>(fours[i], fours[4 + i]));
            }
        }
    }
    /// 4 × 4, by pairs, by halves of the register.
    #[inline(always)]
    unsafe fn transpose_f64(from: &[*const f64], to: *mut f64, step: usize) {
        // SAFETY: 4 elements can be read and written at each of 4 places.
        unsafe {
            let mut pairs = [_mm256_setzero_pd(); 4];
            for i in [0, 2] {
                let (x, y) = (_mm256_loadu_pd(from[i]), _mm256_loadu_pd(from[i + 1]));
                pairs[i] = _mm256_unpacklo_pd(x, y);
                pairs[i + 1] = _mm256_unpackhi_pd(x, y);
            }
            for i in 0..2 {
                _mm256_storeu_pd(to.add(i * step), _mm256_permute2f128_pd::<0x20>(pairs[i], pairs[2 + i]));
                _mm256_storeu_pd(to.add((i + 2) * step), _mm256_permute2f128_pd::<0x31>(pairs[i], pairs[2 + i]));
            }
        }
    }

    // SAFETY of all: the caller has AVX-512.
    #[cfg(feature = "x86-v4")]
    #[inline(always)]
    unsafe fn wide_from_bf16(x: __m256i) -> __m512 {
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(x))) }
    }
    #[cfg(feature = "x86-v4")]
    #[inline(always)]
    unsafe fn wide_to_f16(x: __m512) -> __m256i {
        unsafe { _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x) }
    }
    #[cfg(feature = "x86-v4")]
    #[inline(always)]
    unsafe fn wide_to_bf16(x: __m512) -> __m256i {
        unsafe {
            let bits = _mm512_castps_si512(x);
            let upper = _mm512_srli_epi32::<16>(bits);
            let odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
            let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(rounded, nan, upper, _mm512_set1_epi32(0x40)))
        }
    }
}

/// Writes `to[j * step + i] = from[i][j]`, element by element.
///
/// # Safety
///
/// As many elements as there are pointers can be read at each, and as many written at each of as many steps.
#[inline(always)]
unsafe fn transpose<T: Copy>(from: &[*const T], to: *mut T, step: usize) {
    for (i, row) in from.iter().enumerate() {
        for j in 0..from.len() {
            // SAFETY: the caller's promise.
            unsafe { *to.add(j * step + i) = *row.add(j) };
        }
    }
}

impl Level for pulp::Scalar {
    const COLUMNS: usize = 4;

    #[inline(always)]
    unsafe fn transpose_f32(self, from: &[*const f32], to: *mut f32, step: usize) {
        // SAFETY: the caller's promise.
        unsafe { transpose(from, to, step) }
    }
    #[inline(always)]
    unsafe fn transpose_f64(self, from: &[*const f64], to: *mut f64, step: usize) {
        // SAFETY: the caller's promise.
        unsafe { transpose(from, to, step) }
    }
    #[inline(always)]
    fn load_f64(self, from: &[f64]) -> f64 {
        from[0]
    }
    #[inline(always)]
    fn load_f32(self, from: &[f32]) -> f64 {
        from[0].into()
    }
    #[inline(always)]
    fn load_f16(self, from: &[f16]) -> f64 {
        from[0].into()
    }
    #[inline(always)]
    fn load_bf16(self, from: &[bf16]) -> f64 {
        from[0].into()
    }
    #[inline(always)]
    fn store_f64(self, x: f64, to: &mut [f64]) {
        to[0] = x;
    }
    #[inline(always)]
    fn store_f32(self, x: f64, to: &mut [f32]) {
        to[0] = x as f32;
    }
    #[inline(always)]
    fn store_f16(self, x: f64, to: &mut [f16]) {
        to[0] = f16::from_f32(x as f32);
    }
    #[inline(always)]
    fn store_bf16(self, x: f64, to: &mut [bf16]) {
        to[0] = bf16::from_f32(x as f32);
    }
    #[inline(always)]
    fn clamp(self, x: f64, least: f64, most: f64) -> f64 {
        x.clamp(least, most)
    }

    #[inline(always)]
    fn widen_f16(self, from: &[f16]) -> f32 {
        from[0].into()
    }
    #[inline(always)]
    fn widen_bf16(self, from: &[bf16]) -> f32 {
        from[0].into()
    }
    #[inline(always)]
    fn narrow_f16(self, x: f32, to: &mut [f16]) {
        to[0] = f16::from_f32(x);
    }
    #[inline(always)]
    fn narrow_bf16(self, x: f32, to: &mut [bf16]) {
        to[0] = bf16::from_f32(x);
    }
    #[inline(always)]
    fn within(self, x: f32, most: f32) -> f32 {
        x.clamp(-most, most)
    }
    #[inline(always)]
    unsafe fn write_past_caches(self, from: *const f64, to: *mut f64) {
        // SAFETY: the caller's promise.
        unsafe { core::ptr::copy_nonoverlapping(from.cast::<u8>(), to.cast(), size_of::<f64>()) }
    }
    #[inline(always)]
    fn fence(self) {}
}

/// Copies numbers to where they will not be read soon, past the caches, where the processor has an instruction for it.
///
/// # Safety
///
/// There is room for them, that nothing else reads or writes before this thread's next [`Level::fence`].
#[inline(always)]
pub(super) unsafe fn write_past_caches<S: Level, T: Copy>(level: S, from: &[T], to: *mut T) {
    let several = size_of::<S::f64s>() / size_of::<T>();
    let mut at = to.align_offset(size_of::<S::f64s>()).min(from.len());
    // SAFETY: the caller's promise; after the first numbers, `to` is aligned.
    unsafe {
        core::ptr::copy_nonoverlapping(from.as_ptr(), to, at);
        while at + several <= from.len() {
            level.write_past_caches(from.as_ptr().add(at).cast(), to.add(at).cast());
            at += several;
        }
        core::ptr::copy_nonoverlapping(from.as_ptr().add(at), to.add(at), from.len() - at);
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
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    if let Some(f16c) = x86::F16c::try_new() {
        match pulp::Arch::new() {
            #[cfg(feature = "x86-v4")]
            pulp::Arch::V4(level) => return pulp::Simd::vectorize(level, At(task, level)),
            // Not by V3 itself, which would compile the task without F16C.
            pulp::Arch::V3(level) => return f16c.vectorize(At(task, level)),
            _ => {}
        }
    }
    task.run(pulp::Scalar)
}

/// A task and the level to run it at.
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
struct At<T, S>(T, S);

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
impl<T: Task, S: Level> pulp::NullaryFnOnce for At<T, S> {
    type Output = T::Output;

    #[inline(always)]
    fn call(self) -> T::Output {
        self.0.run(self.1)
    }
}

/// Runs a task at each level that this machine has.
#[cfg(test)]
pub(super) fn at_every_level<T: Task<Output = ()>>(task: impl Fn() -> T) {
    vectorized(task());
    task().run(pulp::Scalar);
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    if let (Some(level), Some(f16c)) = (pulp::x86::V3::try_new(), x86::F16c::try_new()) {
        f16c.vectorize(At(task(), level));
    }
}
