//! Transposition of blocks, by AVX and by AVX-512.
#![expect(clippy::undocumented_unsafe_blocks, reason = "one reason holds for all, and stands before them")]

#[cfg(target_arch = "x86")]
use core::arch::x86::*;
#[cfg(target_arch = "x86_64")]
use core::arch::x86_64::*;

use super::Transposed;

// SAFETY of all: as each function's own.

/// 8 × 8: by pairs of elements, then by fours, then by halves of the register.
///
/// # Safety
///
/// The processor has AVX, and [`Isa::transpose_f32`](super::Isa::transpose_f32) holds of a block of 8 × 8.
#[inline(always)]
pub(super) unsafe fn f32(block: Transposed<f32>) {
    let Transposed { to, to_stride: stride, .. } = block;
    unsafe {
        let (mut pairs, mut fours) = ([_mm256_setzero_ps(); 8], [_mm256_setzero_ps(); 8]);
        for i in (0..8).step_by(2) {
            let (x, y) = (_mm256_loadu_ps(block.row(i)), _mm256_loadu_ps(block.row(i + 1)));
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
            _mm256_storeu_ps(to.add(i * stride), _mm256_permute2f128_ps::<0x20>(fours[i], fours[4 + i]));
            _mm256_storeu_ps(to.add((i + 4) * stride), _mm256_permute2f128_ps::<0x31>(fours[i], fours[4 + i]));
        }
    }
}
/// 4 × 4: by pairs of elements, then by halves of the register.
///
/// # Safety
///
/// The processor has AVX, and [`Isa::transpose_f64`](super::Isa::transpose_f64) holds of a block of 4 × 4.
#[inline(always)]
pub(super) unsafe fn f64(block: Transposed<f64>) {
    let Transposed { to, to_stride: stride, .. } = block;
    unsafe {
        let mut pairs = [_mm256_setzero_pd(); 4];
        for i in [0, 2] {
            let (x, y) = (_mm256_loadu_pd(block.row(i)), _mm256_loadu_pd(block.row(i + 1)));
            pairs[i] = _mm256_unpacklo_pd(x, y);
            pairs[i + 1] = _mm256_unpackhi_pd(x, y);
        }
        for i in 0..2 {
            _mm256_storeu_pd(to.add(i * stride), _mm256_permute2f128_pd::<0x20>(pairs[i], pairs[2 + i]));
            _mm256_storeu_pd(to.add((i + 2) * stride), _mm256_permute2f128_pd::<0x31>(pairs[i], pairs[2 + i]));
        }
    }
}

/// Up to 16 × 16: by pairs of elements, then by fours, then by quarters of the register. Where there are fewer rows, the last one is read in
/// place of more.
///
/// # Safety
///
/// The processor has AVX-512, and [`Isa::transpose_f32`](super::Isa::transpose_f32) holds of a block of 16.
#[cfg(feature = "x86-v4")]
#[inline(always)]
pub(super) unsafe fn f32_512(block: Transposed<f32>) {
    let Transposed { rows, columns, to, to_stride, .. } = block;
    let of_row: __mmask16 = u16::MAX >> (16 - columns);
    let of_column: __mmask16 = u16::MAX >> (16 - rows);
    unsafe {
        let (mut pairs, mut fours) = ([_mm512_setzero_ps(); 16], [_mm512_setzero_ps(); 16]);
        for i in (0..16).step_by(2) {
            let x = _mm512_maskz_loadu_ps(of_row, block.row(i.min(rows - 1)));
            let y = _mm512_maskz_loadu_ps(of_row, block.row((i + 1).min(rows - 1)));
            pairs[i] = _mm512_unpacklo_ps(x, y);
            pairs[i + 1] = _mm512_unpackhi_ps(x, y);
        }
        for i in (0..16).step_by(4) {
            for half in [0, 1] {
                let (x, y) = (pairs[i + half], pairs[i + 2 + half]);
                fours[i + 2 * half] = _mm512_shuffle_ps::<0x44>(x, y);
                fours[i + 2 * half + 1] = _mm512_shuffle_ps::<0xee>(x, y);
            }
        }
        for i in 0..4 {
            let columns_of_i = quarters([fours[i], fours[i + 4], fours[i + 8], fours[i + 12]]);
            for (quarter, column) in columns_of_i.into_iter().enumerate() {
                let j = 4 * quarter + i;
                if j < columns {
                    _mm512_mask_storeu_ps(to.add(j * to_stride), of_column, column);
                }
            }
        }
    }
}
/// Up to 8 × 8, as [`f32_512`], without fours.
///
/// # Safety
///
/// The processor has AVX-512, and [`Isa::transpose_f64`](super::Isa::transpose_f64) holds of a block of 8.
#[cfg(feature = "x86-v4")]
#[inline(always)]
pub(super) unsafe fn f64_512(block: Transposed<f64>) {
    let Transposed { rows, columns, to, to_stride, .. } = block;
    let of_row: __mmask8 = u8::MAX >> (8 - columns);
    let of_column: __mmask8 = u8::MAX >> (8 - rows);
    unsafe {
        let mut pairs = [_mm512_setzero_ps(); 8];
        for i in (0..8).step_by(2) {
            let x = _mm512_maskz_loadu_pd(of_row, block.row(i.min(rows - 1)));
            let y = _mm512_maskz_loadu_pd(of_row, block.row((i + 1).min(rows - 1)));
            pairs[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
            pairs[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
        }
        for i in 0..2 {
            let columns_of_i = quarters([pairs[i], pairs[i + 2], pairs[i + 4], pairs[i + 6]]);
            for (quarter, column) in columns_of_i.into_iter().enumerate() {
                let j = 2 * quarter + i;
                if j < columns {
                    _mm512_mask_storeu_pd(to.add(j * to_stride), of_column, _mm512_castps_pd(column));
                }
            }
        }
    }
}
/// 4 × 4 quarters of registers, whatever these hold.
///
/// # Safety
///
/// The processor has AVX-512.
#[cfg(feature = "x86-v4")]
#[inline(always)]
unsafe fn quarters([a, b, c, d]: [__m512; 4]) -> [__m512; 4] {
    unsafe {
        let even = [_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(c, d)];
        let odd = [_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(c, d)];
        [
            _mm512_shuffle_f32x4::<0x88>(even[0], even[1]),
            _mm512_shuffle_f32x4::<0x88>(odd[0], odd[1]),
            _mm512_shuffle_f32x4::<0xdd>(even[0], even[1]),
            _mm512_shuffle_f32x4::<0xdd>(odd[0], odd[1]),
        ]
    }
}
