//! Products of bf16 by pairs along K, where the processor has an instruction for them: each pair is handled as an element of f32 is.
//!
//! The instruction takes what is below the smallest normal number for zero. [`halved`] looks at the inputs first: where no product of theirs, and
//! no sum of such products, can be so small, nothing is lost.

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::super::{
    element::Compute,
    layout::{Axes, Axis},
    simd::{self, Isa, Task},
    threads,
};
use super::{Input, Product};

/// The axes of K with a pair for each two indices of the last, if the product may be taken by pairs.
///
/// # Safety
///
/// Every index of the product's axes is within its inputs, and nobody writes to them.
pub(super) unsafe fn halved<R: Compute>(product: &Product<'_, R>) -> Option<Axes> {
    let Product { batch, rows, columns, sum, a, b, b_factors, .. } = product;
    let (outer, last) = sum.inner();
    let can_be = a.is_bf16 && b.is_bf16 && b_factors.is_none() && last.size.is_multiple_of(2);
    if !(can_be && simd::prefers_pairs()) {
        return None;
    }
    // SAFETY: these are all axes of either input.
    let exponents = unsafe { [(a, rows), (b, columns)].map(|(input, free)| least_exponent(input, [batch, free, sum])) };
    lose_nothing(exponents).then(|| {
        let pairs = Axis { size: last.size / 2, stride: last.stride.map(|stride| 2 * stride) };
        outer.followed_by(&Axes::new([pairs]))
    })
}

/// Whether sums of products of elements with these least exponents, biased as in their bits, are zero or normal numbers.
///
/// A bf16 with exponent `e` is a multiple of `2^(e − 7)`. So products are multiples of `2^(x + y − 14)`, and so are their sums, rounded or not:
/// none is nearer to zero than that.
fn lose_nothing([x, y]: [u32; 2]) -> bool {
    const BIAS: u32 = 127;
    const SMALLEST_NORMAL: u32 = 1;
    let normal = x >= SMALLEST_NORMAL && y >= SMALLEST_NORMAL;
    normal && x + y >= BIAS + SMALLEST_NORMAL + 14
}

/// Elements of a task that looks at them.
const BLOCK: usize = 1 << 14;

/// The least exponent of an element that is not zero, as it is in its bits.
///
/// # Safety
///
/// Every index of these axes is within the input, and nobody writes to it.
unsafe fn least_exponent<R: Compute>(input: &Input<R>, axes: [&Axes; 3]) -> u32 {
    // Each element once, in the order that they have in memory.
    let axes = axes[0].followed_by(axes[1]).followed_by(axes[2]).in_memory_order(input.tensor);
    let stride = axes.inner_stride()[input.tensor];
    let least = AtomicU32::new(u32::MAX);
    let len = axes.len();
    threads::for_each_range(len.div_ceil(BLOCK), BLOCK / 16, |blocks| {
        for (_, len, at) in axes.segments_in(input.tensor, blocks.start * BLOCK..len.min(blocks.end * BLOCK)) {
            // SAFETY: the segment is within the input.
            let exponent = unsafe { simd::dispatch(LeastExponent { from: input.offset(at).cast(), len, stride }) };
            least.fetch_min(exponent, Relaxed);
        }
    });
    least.into_inner()
}

/// # Safety
///
/// So many elements, so far apart, can be read, and nobody writes to them.
struct LeastExponent {
    from: *const u16,
    len: usize,
    stride: isize,
}

impl Task for LeastExponent {
    type Output = u32;

    #[inline(always)]
    unsafe fn run<S: Isa>(self, _: S) -> u32 {
        // Zero comes last.
        let before = |x: u16| (x & 0x7fff).wrapping_sub(1);
        // SAFETY: the task says that the elements can be read.
        let least = unsafe {
            match self.stride {
                1 => core::slice::from_raw_parts(self.from, self.len).iter().fold(u16::MAX, |least, &x| least.min(before(x))),
                stride => (0..self.len as isize).fold(u16::MAX, |least, i| least.min(before(*self.from.offset(i * stride)))),
            }
        };
        (u32::from(least) + 1) >> 7
    }
}

/// [`Load`](super::input::Load), of pairs: each is of an element and the one `pair_stride` after it, as wide as an f32.
///
/// # Safety
///
/// As there; `from`, and `to`, are elements of 16, and of 32 bits.
pub(super) struct LoadPairs {
    pub from: *const u16,
    pub pair_stride: isize,
    pub outer: (usize, isize),
    pub inner: (usize, isize),
    pub to: *mut u32,
    pub to_stride: usize,
}

impl Task for LoadPairs {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Isa>(self, _: S) {
        let LoadPairs { from, pair_stride, outer, inner: (len, stride), to, to_stride } = self;
        let pair = |x: u16, y: u16| u32::from(x) | u32::from(y) << 16;
        for i in 0..outer.0 {
            // SAFETY: the task says that a segment of pairs can be read, and `to` written.
            unsafe {
                let from = from.offset(i as isize * outer.1);
                let to = core::slice::from_raw_parts_mut(to.add(i * to_stride), len);
                match (pair_stride, stride) {
                    (1, 2) => {
                        let pairs = core::slice::from_raw_parts(from.cast::<[u16; 2]>(), len);
                        to.iter_mut().zip(pairs).for_each(|(to, &[x, y])| *to = pair(x, y));
                    }
                    (_, 1) => {
                        let (x, y) = (
                            core::slice::from_raw_parts(from, len),
                            core::slice::from_raw_parts(from.offset(pair_stride), len),
                        );
                        to.iter_mut().zip(x.iter().zip(y)).for_each(|(to, (&x, &y))| *to = pair(x, y));
                    }
                    _ => {
                        for (j, to) in to.iter_mut().enumerate() {
                            let from = from.offset(j as isize * stride);
                            *to = pair(*from, *from.offset(pair_stride));
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use burn_core::tensor::bf16;

    use super::{
        super::{
            super::layout::{OUT, X, Y},
            Epilogue, Output,
        },
        *,
    };

    #[test]
    fn pairs_are_taken_only_where_no_sum_of_products_is_below_the_smallest_normal_number() {
        let exponent = |x: f32| u32::from(bf16::from_f32(x).to_bits() >> 7);
        for (x, y, expected) in [
            (1.0, 1.0, true),
            (2f32.powi(-56), 2f32.powi(-56), true),
            (2f32.powi(-56), 2f32.powi(-57), false),
            (2f32.powi(-112), 1.0, true),
            (2f32.powi(-113), 1.0, false),
            (f32::MIN_POSITIVE, 2f32.powi(14), true),
            // Subnormal, however large the other is.
            (f32::MIN_POSITIVE / 2.0, 2f32.powi(100), false),
        ] {
            assert_eq!(lose_nothing([exponent(x), exponent(y)]), expected, "{x:e} and {y:e}");
            assert_eq!(lose_nothing([exponent(y), exponent(x)]), expected, "{y:e} and {x:e}");
        }
    }

    /// Else every test would pass without them.
    #[test]
    fn ordinary_elements_are_multiplied_by_pairs_where_the_processor_can() {
        const K: usize = 6;
        let (ordinary, mut small) = ([bf16::ONE; K], [bf16::ONE; K]);
        small[K - 1] = bf16::from_f32(1e-39);
        for (b, k, expected) in [(&ordinary, K, true), (&ordinary, K - 1, false), (&small, K, false)] {
            let mut axis = Axis { size: k, stride: Default::default() };
            (axis.stride[X], axis.stride[Y]) = (1, 1);
            let (one, sum) = (Axes::new([]), Axes::new([axis]));
            let mut out = 0.0f32;
            let product = Product {
                batch: &one,
                rows: &one,
                columns: &one,
                sum: &sum,
                a: Input::<f32>::new(ordinary.as_ptr(), X),
                b: Input::new(b.as_ptr(), Y),
                b_factors: None,
                c: Output::new(&raw mut out, OUT),
                epilogue: Epilogue::None,
            };
            // SAFETY: the axis is within both inputs.
            let pairs = unsafe { halved(&product) };
            assert_eq!(pairs.map(|pairs| pairs.len()), (expected && simd::prefers_pairs()).then_some(K / 2), "{k} of {b:?}");
        }
    }

    #[test]
    fn every_element_is_looked_at_however_the_axes_lie() {
        const SMALL: f32 = 1e-39;
        let exponent = |x: f32| u32::from(bf16::from_f32(x).to_bits() >> 7);
        let axis = |size, stride| {
            let mut axis = Axis { size, stride: Default::default() };
            axis.stride[X] = stride;
            Axes::new([axis])
        };
        // More than a task looks at. The first element of the axes, and these.
        let elements = 2 * BLOCK + 40;
        for (first, axes, at) in [
            (0, [axis(elements, 1), axis(1, 0), axis(1, 0)], elements - 1),
            (0, [axis(7, 5), axis(9, 40), axis(5, 1)], 6 * 5 + 8 * 40 + 4),
            (elements - 1, [axis(3, 0), axis(elements / 2, -2), axis(1, 0)], elements + 1 - 2 * (elements / 2)),
            (400, [axis(3, -100), axis(4, 0), axis(50, -2)], 400 - 200 - 98),
        ] {
            let mut x = vec![bf16::ONE; elements];
            let least = |x: &[bf16]| {
                let input = Input::<f32>::new(&raw const x[first], X);
                // SAFETY: the axes are within the elements.
                unsafe { least_exponent(&input, axes.each_ref()) }
            };
            x[at] = bf16::ZERO;
            assert_eq!(least(&x), exponent(1.0), "zero is passed over");
            x[at] = bf16::from_f32(SMALL);
            assert_eq!(least(&x), exponent(SMALL), "the element at {at}");
            x.fill(bf16::ZERO);
            assert!(least(&x) > exponent(f32::INFINITY), "nothing but zeros");
        }
    }
}
