//! Products of bf16 matrices by the instruction for them, `vdpbf16ps` of AVX512_BF16: two products at a time, added in f32.
//!
//! In f32 both matrices would have to be converted first, and be multiplied half as fast.

#[cfg(all(target_arch = "x86_64", feature = "x86-v4"))]
use core::arch::x86_64::*;

use burn_core::tensor::bf16;

use super::aligned::AlignedBuffer;

#[cfg(all(target_arch = "x86_64", feature = "x86-v4"))]
pulp::simd_type!({
    struct Bf16 {
        avx512f: f!("avx512f"),
        avx512bw: f!("avx512bw"),
        avx512bf16: f!("avx512bf16"),
    }
});

/// Rows and columns of the product that stay in registers: 16 sums hide the latency of the instruction.
const ROWS: usize = 8;
const COLUMNS: usize = 32;

/// As bits: the instruction takes subnormal elements for zero, and makes none. With elements from 2^-56 on, which are multiples of 2^-63,
/// products and their sums are multiples of 2^-126: never subnormal.
const SMALLEST: u16 = (127 - 56) << 7;

/// One of the matrices: how many rows or columns, how long they are along K, and both strides.
pub(super) struct MatRef {
    pub at: *const bf16,
    pub vectors: (usize, isize),
    pub k: (usize, isize),
}

/// Where the product goes: as f32, or rounded to bf16.
pub(super) struct MatMut<T> {
    pub at: *mut T,
    pub row_stride: isize,
    pub column_stride: isize,
    /// Whether to add to what is there.
    pub add: bool,
}

/// f32 or bf16.
pub(super) trait Sum: Copy {
    fn from_f32(sum: f32) -> Self;
    fn to_f32(self) -> f32;
    /// 16 elements as f32.
    ///
    /// # Safety
    ///
    /// The processor has AVX-512, and 16 elements can be read there.
    #[cfg(all(target_arch = "x86_64", feature = "x86-v4"))]
    unsafe fn load(at: *const Self) -> __m512;
    /// The sums are not subnormal: see [`SMALLEST`].
    ///
    /// # Safety
    ///
    /// The processor has AVX512_BF16, and 16 elements can be written there.
    #[cfg(all(target_arch = "x86_64", feature = "x86-v4"))]
    unsafe fn store(sums: __m512, at: *mut Self);
}

impl Sum for f32 {
    #[inline(always)]
    fn from_f32(sum: f32) -> f32 {
        sum
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[cfg(all(target_arch = "x86_64", feature = "x86-v4"))]
    #[inline(always)]
    unsafe fn load(at: *const f32) -> __m512 {
        // SAFETY: as the trait's own.
        unsafe { _mm512_loadu_ps(at) }
    }
    #[cfg(all(target_arch = "x86_64", feature = "x86-v4"))]
    #[inline(always)]
    unsafe fn store(sums: __m512, at: *mut f32) {
        // SAFETY: as the trait's own.
        unsafe { _mm512_storeu_ps(at, sums) }
    }
}

impl Sum for bf16 {
    #[inline(always)]
    fn from_f32(sum: f32) -> bf16 {
        bf16::from_f32(sum)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self.into()
    }
    #[cfg(all(target_arch = "x86_64", feature = "x86-v4"))]
    #[inline(always)]
    unsafe fn load(at: *const bf16) -> __m512 {
        // SAFETY: as the trait's own. A bf16 is the upper half of an f32.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast())))) }
    }
    #[cfg(all(target_arch = "x86_64", feature = "x86-v4"))]
    #[inline(always)]
    unsafe fn store(sums: __m512, at: *mut bf16) {
        // SAFETY: as the trait's own.
        unsafe {
            let rounded = core::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(sums));
            _mm256_storeu_si256(at.cast(), rounded);
        }
    }
}

/// Memory for both matrices, packed.
#[derive(Default)]
pub(super) struct Packed {
    a: AlignedBuffer<u32>,
    b: AlignedBuffer<u32>,
}

/// `to = a b`, or `to += a b`. False, and nothing is written, where the machine lacks the instruction or an element is too small for it.
///
/// # Safety
///
/// Both matrices are within their allocations, and can be read; `to` within one that nothing else reads or writes, and
/// initialized if it is added to. Both are as long along K.
pub(super) unsafe fn multiply<T: Sum>(to: MatMut<T>, a: MatRef, b: MatRef, packed: &mut Packed) -> bool {
    #[cfg(all(target_arch = "x86_64", feature = "x86-v4"))]
    if let Some(simd) = Bf16::try_new() {
        return simd.vectorize(Multiply { to, a, b, packed });
    }
    let _ = (to, a, b, packed);
    false
}

/// Made by [`multiply`] alone, whose caller answers for the matrices.
#[cfg(all(target_arch = "x86_64", feature = "x86-v4"))]
struct Multiply<'a, T> {
    to: MatMut<T>,
    a: MatRef,
    b: MatRef,
    packed: &'a mut Packed,
}

#[cfg(all(target_arch = "x86_64", feature = "x86-v4"))]
impl<T: Sum> pulp::NullaryFnOnce for Multiply<'_, T> {
    type Output = bool;

    #[inline(always)]
    fn call(self) -> bool {
        let Multiply { to, a, b, packed } = self;
        let pairs = a.k.0.div_ceil(2);
        // Rows whose pairs are contiguous are read in place.
        let in_place = a.k.1 == 1 && a.k.0.is_multiple_of(2);
        // SAFETY: the matrices can be read, and `vectorize` runs this only where the instructions are.
        unsafe {
            if a.has_small() || b.has_small() {
                return false;
            }
            b.pack::<COLUMNS>(&mut packed.b);
            if !in_place {
                a.pack::<ROWS>(&mut packed.a);
            }
        }
        let packed_a = packed.a.as_slice().as_ptr();
        for (j, b_panel) in packed.b.as_slice().chunks_exact(COLUMNS * pairs).enumerate() {
            let columns = COLUMNS.min(b.vectors.0 - j * COLUMNS);
            for i in 0..a.vectors.0.div_ceil(ROWS) {
                let rows = ROWS.min(a.vectors.0 - i * ROWS);
                // SAFETY: rows and columns are within the matrices, or within what was packed, and so is their product within
                // `to`.
                unsafe {
                    let mut rows_at = [packed_a; ROWS];
                    for (row, row_at) in rows_at.iter_mut().enumerate() {
                        *row_at = match in_place {
                            // Rows beyond the last are computed and not written.
                            true => a.at.offset((i * ROWS + row.min(rows - 1)) as isize * a.vectors.1).cast(),
                            false => row_at.add(i * ROWS * pairs + row),
                        };
                    }
                    let sums = panels(rows_at, if in_place { 1 } else { ROWS }, b_panel);
                    let at = to.at.offset((i * ROWS) as isize * to.row_stride + (j * COLUMNS) as isize * to.column_stride);
                    to.write(at, rows, columns, sums);
                }
            }
        }
        true
    }
}

/// The product of a panel of rows and a panel of columns. The pairs of a row are so many elements apart.
///
/// # Safety
///
/// The processor has AVX512_BF16, and each row as many pairs that can be read as `b` has chunks of [`COLUMNS`].
#[cfg(all(target_arch = "x86_64", feature = "x86-v4"))]
#[inline(always)]
unsafe fn panels(rows: [*const u32; ROWS], stride: usize, b: &[u32]) -> [[__m512; 2]; ROWS] {
    // SAFETY: as this function's own; a chunk of b is two registers.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        for (pair, b) in b.as_chunks::<COLUMNS>().0.iter().enumerate() {
            let b = [_mm512_loadu_si512(b.as_ptr().cast()), _mm512_loadu_si512(b.as_ptr().add(16).cast())];
            for row in 0..ROWS {
                let a = _mm512_set1_epi32(rows[row].add(pair * stride).read_unaligned() as i32);
                for half in 0..2 {
                    sums[row][half] = _mm512_dpbf16_ps(
                        sums[row][half],
                        core::mem::transmute::<__m512i, __m512bh>(a),
                        core::mem::transmute::<__m512i, __m512bh>(b[half]),
                    );
                }
            }
        }
        sums
    }
}

#[cfg(all(target_arch = "x86_64", feature = "x86-v4"))]
impl<T: Sum> MatMut<T> {
    /// Writes the first rows and columns of a panel's sums.
    ///
    /// # Safety
    ///
    /// The processor has AVX512_BF16, and from `at` on so many rows and columns are within the matrix, as [`multiply`] says of
    /// it.
    #[inline(always)]
    unsafe fn write(&self, at: *mut T, rows: usize, columns: usize, sums: [[__m512; 2]; ROWS]) {
        // SAFETY: as this function's own.
        unsafe {
            if self.column_stride == 1 && columns == COLUMNS {
                for (row, sums) in sums.iter().enumerate().take(rows) {
                    for (half, &sum) in sums.iter().enumerate() {
                        let at = at.offset(row as isize * self.row_stride).add(16 * half);
                        T::store(if self.add { _mm512_add_ps(sum, T::load(at)) } else { sum }, at);
                    }
                }
                return;
            }
            let sums = core::mem::transmute::<[[__m512; 2]; ROWS], [[f32; COLUMNS]; ROWS]>(sums);
            for (row, sums) in sums.iter().enumerate().take(rows) {
                for (column, sum) in sums.iter().enumerate().take(columns) {
                    let at = at.offset(row as isize * self.row_stride + column as isize * self.column_stride);
                    *at = T::from_f32(if self.add { (*at).to_f32() + sum } else { *sum });
                }
            }
        }
    }
}

#[cfg(all(target_arch = "x86_64", feature = "x86-v4"))]
impl MatRef {
    /// Whether there is an element smaller than [`SMALLEST`] that is not zero.
    ///
    /// # Safety
    ///
    /// The processor has AVX-512, and the matrix can be read.
    #[inline(always)]
    unsafe fn has_small(&self) -> bool {
        // Zero, less one, is the largest. By name: the compiler makes vectors of eight.
        let size = |x: bf16| (x.to_bits() & 0x7fff).wrapping_sub(1);
        // SAFETY: the processor has the instructions.
        let (mask, one, mut many_least) = unsafe { (_mm512_set1_epi16(0x7fff), _mm512_set1_epi16(1), _mm512_set1_epi16(-1)) };
        let ((outer, outer_step), (inner, inner_step)) =
            if self.vectors.1 == 1 { (self.k, self.vectors) } else { (self.vectors, self.k) };
        let mut least = u16::MAX;
        for i in 0..outer as isize {
            // SAFETY: this is the place of one of the vectors, or of one of the indices of K.
            let at = unsafe { self.at.offset(i * outer_step) };
            let mut done = 0;
            while inner_step == 1 && done + 32 <= inner {
                // SAFETY: 32 contiguous elements are left of it.
                unsafe {
                    let elements = _mm512_and_si512(_mm512_loadu_si512(at.add(done).cast()), mask);
                    many_least = _mm512_min_epu16(many_least, _mm512_sub_epi16(elements, one));
                }
                done += 32;
            }
            for j in done..inner {
                // SAFETY: this is one of its elements.
                least = least.min(size(unsafe { *at.offset(j as isize * inner_step) }));
            }
        }
        let too_small = SMALLEST - 1;
        // SAFETY: the processor has the instructions.
        least < too_small || unsafe { _mm512_cmplt_epu16_mask(many_least, _mm512_set1_epi16(too_small as i16)) } != 0
    }

    /// Packs each `WIDTH` vectors, by pairs along K, filled up with zeros.
    ///
    /// # Safety
    ///
    /// The processor has AVX-512, and the matrix can be read.
    #[inline(always)]
    unsafe fn pack<const WIDTH: usize>(&self, to: &mut AlignedBuffer<u32>) {
        let &MatRef { at, vectors: (vectors, vector_stride), k: (k, k_stride) } = self;
        let pairs = k.div_ceil(2);
        let to = to.resize(vectors.div_ceil(WIDTH) * pairs * WIDTH);
        for (panel, to) in to.chunks_exact_mut(pairs * WIDTH).enumerate() {
            let first = panel * WIDTH;
            let width = WIDTH.min(vectors - first);
            let at = |vector: usize, index: usize| {
                at.wrapping_offset((first + vector) as isize * vector_stride + index as isize * k_stride)
            };
            let mut done = 0;
            if width == WIDTH && vector_stride == 1 {
                // A pair of all vectors.
                for (pair, to) in to.as_chunks_mut::<WIDTH>().0.iter_mut().enumerate().take(k / 2) {
                    let (x, y): (*const [u16; WIDTH], *const [u16; WIDTH]) =
                        (at(0, 2 * pair).cast(), at(0, 2 * pair + 1).cast());
                    // SAFETY: the elements of all vectors of the panel are contiguous at an index of K.
                    let (x, y) = unsafe { (&*x, &*y) };
                    for vector in 0..WIDTH {
                        to[vector] = u32::from(x[vector]) | u32::from(y[vector]) << 16;
                    }
                }
                done = k / 2;
            } else if width == WIDTH && WIDTH.is_multiple_of(16) && k_stride == 1 {
                // 16 pairs of 16 vectors.
                while done + 16 <= k / 2 {
                    for vector in (0..WIDTH).step_by(16) {
                        // SAFETY: the vectors are contiguous along K, and each has 32 elements left.
                        unsafe {
                            let mut square = [_mm512_setzero_si512(); 16];
                            for (i, row) in square.iter_mut().enumerate() {
                                *row = _mm512_loadu_si512(at(vector + i, 2 * done).cast());
                            }
                            for (i, column) in transposed(square).into_iter().enumerate() {
                                _mm512_storeu_si512(to[(done + i) * WIDTH + vector..][..16].as_mut_ptr().cast(), column);
                            }
                        }
                    }
                    done += 16;
                }
            }
            for (pair, to) in to.as_chunks_mut::<WIDTH>().0.iter_mut().enumerate().skip(done) {
                for (vector, to) in to.iter_mut().enumerate() {
                    let bits = |index: usize| match vector < width && index < k {
                        // SAFETY: this is an element of the matrix.
                        true => u32::from(unsafe { *at(vector, index) }.to_bits()),
                        false => 0,
                    };
                    *to = bits(2 * pair) | bits(2 * pair + 1) << 16;
                }
            }
        }
    }
}

/// Rows become columns.
///
/// # Safety
///
/// The processor has AVX-512.
#[cfg(all(target_arch = "x86_64", feature = "x86-v4"))]
#[inline(always)]
unsafe fn transposed(rows: [__m512i; 16]) -> [__m512i; 16] {
    // SAFETY: as this function's own.
    unsafe {
        let (mut two, mut four, mut all) = (rows, rows, rows);
        for i in (0..16).step_by(2) {
            two[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
            two[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
        }
        for i in (0..16).step_by(4) {
            four[i] = _mm512_unpacklo_epi64(two[i], two[i + 2]);
            four[i + 1] = _mm512_unpackhi_epi64(two[i], two[i + 2]);
            four[i + 2] = _mm512_unpacklo_epi64(two[i + 1], two[i + 3]);
            four[i + 3] = _mm512_unpackhi_epi64(two[i + 1], two[i + 3]);
        }
        // Each quarter of a register now holds four rows of one column: of columns i, 4 + i, 8 + i and 12 + i.
        for i in 0..4 {
            let (upper, lower) =
                (_mm512_shuffle_i32x4::<0x88>(four[i], four[4 + i]), _mm512_shuffle_i32x4::<0x88>(four[8 + i], four[12 + i]));
            all[i] = _mm512_shuffle_i32x4::<0x88>(upper, lower);
            all[8 + i] = _mm512_shuffle_i32x4::<0xdd>(upper, lower);
            let (upper, lower) =
                (_mm512_shuffle_i32x4::<0xdd>(four[i], four[4 + i]), _mm512_shuffle_i32x4::<0xdd>(four[8 + i], four[12 + i]));
            all[4 + i] = _mm512_shuffle_i32x4::<0x88>(upper, lower);
            all[12 + i] = _mm512_shuffle_i32x4::<0xdd>(upper, lower);
        }
        all
    }
}
