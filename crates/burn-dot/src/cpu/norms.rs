//! Norms of vectors, as the factors `1 / max(‖x‖, epsilon)`.

use alloc::{vec, vec::Vec};
use core::{
    ops::{Range, RangeInclusive},
    sync::atomic::{AtomicBool, Ordering},
};

use super::{
    aligned::MAX_LANES,
    compensated::{self, Compensated},
    element::{self, Compute, Element},
    layout::{Axes, Space, X, X_INDEX, Y, Y_INDEX, advance},
    loops::{self, SQUARED_ROWS},
    simd::{self, Isa, Task},
    strided::{CHUNK, Strided},
    threads::{self, SharedPtr},
};

/// The factor of a vector, as one element: negative where the norm is below epsilon.
#[derive(Clone, Copy, Default)]
pub(super) struct Scale(pub f64);

impl Scale {
    /// From the sum of squares.
    #[inline(always)]
    pub fn new<R: Compute>(square: f64, epsilon: f64) -> Self {
        let (norm, epsilon) = (element::sqrt(square), epsilon.max(R::MIN_POSITIVE));
        let sign = if norm >= epsilon { 1.0 } else { -1.0 };
        // A norm that is not a number gives epsilon: what is multiplied by it is not a number itself.
        Scale(sign / norm.max(epsilon))
    }

    /// Whether the larger of norm and epsilon is in a range. The range is symmetric under `1/x`, so the inverse is tested.
    #[inline(always)]
    pub fn is_within(self, in_range: RangeInclusive<f64>) -> bool {
        in_range.contains(&self.inverse())
    }

    #[inline(always)]
    pub fn inverse(self) -> f64 {
        self.0.abs()
    }

    /// The factor of the projection.
    #[inline(always)]
    pub fn projected(self) -> f64 {
        if self.0.is_sign_positive() { self.0 * self.0 } else { 0.0 }
    }

    /// The projection coefficient, and an upper bound on each term of the gradient.
    #[inline(always)]
    pub fn projection(self, g: f64, cosine: f64) -> (f64, f64) {
        (g * cosine * self.projected(), g.abs() * self.inverse())
    }
}

/// The [`Scale`]s of all vectors of `x`, then of `y`. `None` where a norm is so large or so small that the plain product of the vectors
/// might overflow or lose digits.
///
/// # Safety
///
/// Every index of `space` is within the tensors, which nobody writes to, and nothing in it is empty.
pub(super) unsafe fn scales_of_both<T: Element>(
    x: *const T,
    y: *const T,
    space: &Space,
    [x_count, y_count]: [usize; 2],
    epsilon: f64,
) -> Option<Vec<T::Compute>> {
    let mut scales = vec![T::Compute::default(); x_count + y_count];
    let (of_x, of_y) = scales.split_at_mut(x_count);
    // SAFETY: the space is within both inputs, the caller says; its batch and free axes have their vectors.
    let in_range = unsafe {
        scales_of(of_x, x, space, &space.i, [X, X_INDEX], epsilon) && scales_of(of_y, y, space, &space.j, [Y, Y_INDEX], epsilon)
    };
    in_range.then_some(scales)
}

/// Those of one input, `free` being its own axes. False as [`scales_of_both`].
///
/// # Safety
///
/// Every index of `space` is within `x`, which nobody writes to, and nothing in it is empty.
unsafe fn scales_of<T: Element>(
    scales: &mut [T::Compute],
    x: *const T,
    space: &Space,
    free: &Axes,
    [tensor, index]: [usize; 2],
    epsilon: f64,
) -> bool {
    let (outer, inner) = space.batch.split_by(index).0.followed_by(free).inner();
    let blocks = inner.size.div_ceil(CHUNK);
    let (count, k) = (outer.len() * blocks, space.k.len());
    // The vectors are numbered in the order of the axes, so those of a block are contiguous, and all of them fit.
    assert!(scales.len() == outer.len() * inner.size, "{} scales of {} vectors", scales.len(), outer.len() * inner.size);
    // Few and long vectors are cut along K.
    let work = scales.len().saturating_mul(k);
    let parts = threads::count(work).div_ceil(count).min(k.div_ceil(PART_K));
    let mut squares = vec![0.0; if parts > 1 { parts * scales.len() } else { 0 }];
    let in_range = AtomicBool::new(true);
    let all = scales.len();
    let (x, scales_at, squares_at) =
        (SharedPtr::new(x), SharedPtr::new(scales.as_mut_ptr()), SharedPtr::new(squares.as_mut_ptr()));
    threads::for_each_range(count * parts, work / (count * parts), |range| {
        let (x, scales, squares) = (x.get(), scales_at.get(), squares_at.get());
        for task in range {
            let (block, part) = (task / parts, task % parts);
            let first = block % blocks * CHUNK;
            let at = advance(outer.offset(block / blocks), &inner, first);
            let vectors = CHUNK.min(inner.size - first);
            let index = block / blocks * inner.size + first;
            let k_range = threads::part(k, parts, part);
            let mut local = [0.0; CHUNK];
            // SAFETY: the vectors of a block are within the input, as the space is; each block has scales, and each of its parts
            // squares, of its own.
            unsafe {
                let to = match parts {
                    1 => &mut local[..vectors],
                    _ => core::slice::from_raw_parts_mut(squares.add(part * all + index), vectors),
                };
                let x = x.offset(at[tensor]);
                simd::dispatch(Squares { x, stride: inner.stride[tensor], k: &space.k, k_range, tensor, to });
                if parts == 1 && !from_squares(to, core::slice::from_raw_parts_mut(scales.add(index), vectors), epsilon) {
                    in_range.store(false, Ordering::Relaxed);
                }
            }
        }
    });
    if parts > 1 {
        let (first, rest) = squares.split_at_mut(all);
        rest.chunks(all).for_each(|more| first.iter_mut().zip(more).for_each(|(square, more)| *square += more));
        return from_squares(first, scales, epsilon);
    }
    in_range.into_inner()
}

/// The length of a part of K, at least.
const PART_K: usize = 4096;

/// From sums of squares. False as [`scales_of_both`].
fn from_squares<R: Compute>(squares: &[f64], to: &mut [R], epsilon: f64) -> bool {
    let mut in_range = true;
    for (to, &square) in to.iter_mut().zip(squares) {
        let scale = Scale::new::<R>(square, epsilon);
        // Also below epsilon: products of tiny vectors would be subnormal.
        let tiny = square > 0.0 && element::sqrt(square) < *R::MATRIX_NORMS.start();
        in_range &= scale.is_within(R::MATRIX_NORMS) && !tiny;
        *to = R::from_f64(scale.0);
    }
    in_range
}

/// The squares of vectors at equal strides, summed over a range of K.
///
/// # Safety
///
/// There are as many vectors from `x` on as in `to`, whose elements in the range can be read, and nobody writes to them.
struct Squares<'a, T: Element> {
    x: *const T,
    stride: isize,
    k: &'a Axes,
    k_range: Range<usize>,
    tensor: usize,
    to: &'a mut [f64],
}

/// Rows of memory whose squares are added before their sum goes to one that is compensated.
const PARTIAL: usize = 16 * SQUARED_ROWS;

/// Up to this length setting up a sum by blocks costs more than adding in f64.
const SHORT: usize = 64;

/// Sums of squares below this may have lost some that f32 does not hold.
const LOST: f64 = 1e-18;

impl<T: Element> Task for Squares<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Isa>(mut self, isa: S) {
        // Vectors perpendicular to memory are read row of memory by row of memory, others one by one.
        // SAFETY: the task says that they can be read.
        unsafe {
            let is_contiguous = self.k.stride_of(self.tensor) == Some(1);
            if self.stride == 1 && self.k.inner().1.stride[self.tensor] != 1 {
                self.perpendicular(isa);
            } else if is_contiguous && self.k_range.len() <= SHORT {
                self.short(isa);
            } else {
                for vector in 0..self.to.len() {
                    self.to[vector] = self.along::<S, false>(isa, vector);
                }
            }
            for vector in 0..self.to.len() {
                // Zeros, or squares that f32 lost.
                if self.to[vector] < LOST {
                    self.to[vector] = self.along::<S, true>(isa, vector);
                }
            }
        }
    }
}

impl<T: Element> Squares<'_, T> {
    /// Rows of memory, each with an element of every vector. Those that follow one another are read as one, of whole registers.
    ///
    /// # Safety
    ///
    /// As the task says; vectors are one element apart.
    #[inline(always)]
    unsafe fn perpendicular<S: Isa>(&mut self, isa: S) {
        let Squares { x, k, ref k_range, tensor, ref mut to, .. } = *self;
        let (vectors, k_stride) = (to.len(), k.inner().1.stride[tensor]);
        let of_whole_registers = MAX_LANES >> vectors.trailing_zeros().min(MAX_LANES.trailing_zeros());
        let group = if k_stride == vectors as isize { of_whole_registers.min(CHUNK / vectors) } else { 1 };
        let (mut partial, mut squares, mut lost) = ([0.0; CHUNK], [0.0; CHUNK], [0.0; CHUNK]);
        for (_, len, from) in k.segments(k_range.clone()) {
            // SAFETY: a segment begins within the range.
            let x = unsafe { x.offset(from[tensor]) };
            let mut rest = 0..len;
            // First by groups, then what is left of them, row by row.
            for group in [group, 1] {
                let width = vectors * group;
                let (partial, squares, lost) = (&mut partial[..width], &mut squares[..width], &mut lost[..width]);
                while rest.len() >= group {
                    let end = rest.end.min(rest.start + PARTIAL * group);
                    partial.fill(0.0);
                    while end - rest.start >= group {
                        let mut rows: [&[T]; SQUARED_ROWS] = [&[]; SQUARED_ROWS];
                        let rows = &mut rows[..SQUARED_ROWS.min((end - rest.start) / group)];
                        for row in rows.iter_mut() {
                            // SAFETY: the elements of all vectors at an index of K are contiguous, and so are the rows of a
                            // group.
                            *row = unsafe { core::slice::from_raw_parts(x.offset(rest.start as isize * k_stride), width) };
                            rest.start += group;
                        }
                        loops::add_squares(isa, partial, rows);
                    }
                    compensated::add(squares, lost, partial);
                }
            }
        }
        let (squares, others) = squares[..vectors * group].split_at_mut(vectors);
        let (lost, lost_by_others) = lost[..vectors * group].split_at_mut(vectors);
        for (more, lost_by_more) in others.chunks_exact(vectors).zip(lost_by_others.chunks_exact(vectors)) {
            compensated::add(squares, lost, more);
            lost.iter_mut().zip(lost_by_more).for_each(|(lost, more)| *lost += more);
        }
        for ((to, &mut square), &mut lost) in to.iter_mut().zip(squares).zip(lost) {
            *to = compensated::total(square, lost);
        }
    }

    /// Contiguous vectors of a few elements.
    ///
    /// # Safety
    ///
    /// As the task says; the vectors are contiguous along K.
    #[inline(always)]
    unsafe fn short<S: Isa>(&mut self, isa: S) {
        let mut at = self.x.wrapping_add(self.k_range.start);
        for to in self.to.iter_mut() {
            // SAFETY: these are the elements of a vector in the range.
            let x = unsafe { core::slice::from_raw_parts(at, self.k_range.len()) };
            [*to] = loops::short_sums(isa, x, x);
            at = at.wrapping_offset(self.stride);
        }
    }

    /// The square of one vector, contiguous or gathered; all in f64, if `EXACT`.
    ///
    /// # Safety
    ///
    /// As the task says; `vector` is the index of one of them.
    #[inline(always)]
    unsafe fn along<S: Isa, const EXACT: bool>(&self, isa: S, vector: usize) -> f64 {
        let k_stride = self.k.inner().1.stride[self.tensor];
        let mut square = Compensated::default();
        for (_, len, from) in self.k.segments(self.k_range.clone()) {
            let at = self.x.wrapping_offset(from[self.tensor] + vector as isize * self.stride);
            if k_stride == 1 {
                // SAFETY: a segment is a part of the vector, and is contiguous here.
                square.add(square_of::<S, T, EXACT>(isa, unsafe { core::slice::from_raw_parts(at, len) }));
                continue;
            }
            let mut buffer = [T::default(); CHUNK];
            for first in (0..len).step_by(CHUNK) {
                let at = at.wrapping_offset(first as isize * k_stride);
                // SAFETY: a segment is a part of the vector.
                let gathered = unsafe { Strided { at, stride: k_stride, len: CHUNK.min(len - first) }.gather(&mut buffer) };
                square.add(square_of::<S, T, EXACT>(isa, gathered));
            }
        }
        square.total()
    }
}

/// The sum of squares of contiguous elements; all in f64, if `EXACT`.
#[inline(always)]
fn square_of<S: Isa, T: Element, const EXACT: bool>(isa: S, x: &[T]) -> f64 {
    if !EXACT {
        return loops::dot(isa, x, x);
    }
    let square = loops::dot_in::<f64, S, T>(isa, x, x);
    // Squares that f64 does not hold either: not those of a zero vector.
    if square == 0.0 && x.iter().any(|x| x.to_f64() != 0.0) { f64::MIN_POSITIVE } else { square }
}
